"""
A video by its matricisation
============================

A video of which most pixels are lost, completed as a matrix of pixels and frames.

A video of height x width x frames is a matrix in three ways. Pixels by frames has low rank where
the camera stands still and only the light changes; what moves adds rank. The video is made: the
photograph that matplotlib ships, under two lamps that flicker in their own ways, with a ball that
crosses it; two of three pixels are lost, and a few frames but for every sixth line. Means of
pixels know no light, interpolation in time sees only the next frames; the completion shares the
light among all pixels. The ball stays a blur for all of them.

Source: Cohen, Menon, Veraszto, Deep linear networks for matrix completion, arXiv 2210.12497.
"""

from __future__ import annotations

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from dln_geometry import gallery
from dln_geometry.completion import MatrixCompleter

NOISE = 0.02


def made_video(height, width, frames, rng):
    """Return a video (height, width, frames) with values around 0 to 1, and where the ball is."""
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as picture:
        scene = np.asarray(picture.convert("L").resize((width, height)), dtype=np.float64) / 255
    y, x = np.mgrid[:height, :width] / max(height, width)
    lamps = np.stack([scene * np.exp(-2 * x), scene * np.exp(-2 * (x.max() - x) - y)])
    t = np.arange(frames)
    light = 0.5 + 0.2 * np.sin(t * [[0.9], [0.37]]) + 0.4 * rng.random((2, frames))
    video = np.einsum("kyx,kt->yxt", lamps, light)
    centre = 0.1 + 0.8 * t / frames
    ball = (x[..., None] - x.max() * centre) ** 2 + (y[..., None] - 0.5) ** 2 < 0.06**2
    return np.where(ball, 0.9, video), ball


def interpolated(cube):
    """Return the cube with the holes of every pixel interpolated in time."""
    filled, t = cube.copy(), np.arange(cube.shape[2])
    for pixel in filled.reshape(-1, len(t)):
        seen = ~np.isnan(pixel)
        pixel[:] = np.interp(t, t[seen], pixel[seen]) if seen.any() else np.nanmean(cube)
    return filled


# %%
run = gallery.begin(__doc__)
rng = np.random.default_rng(4)
height, width, frames = (24, 20, 16) if run.quick else (60, 50, 40)
truth, ball = made_video(height, width, frames, rng)
known = rng.random(truth.shape) < 0.35
lost = slice(frames // 2, frames // 2 + frames // 10 + 1)
known[:, :, lost] = (np.arange(height) % 6 == 1)[:, None, None]  # whole lines
known[..., 0] |= ~known.any(axis=2)
cube = np.where(known, truth + NOISE * rng.normal(size=truth.shape), np.nan)
print(f"{known.mean():.0%} of {cube.size} entries are known; noise {NOISE}")

shapes = {"pixels x frames": (height * width, frames), "rows x rest": (height, width * frames)}
found, held = {}, {}
for name, shape in shapes.items():
    completer = MatrixCompleter(2.5, 6, 0.05, shrink=0.2, rtol=1e-2)
    found[name] = completer.fit(cube.reshape(shape)).complete().reshape(truth.shape)
    held[name] = completer.validation_error_
found["in time"] = interpolated(cube)
hidden = ~known & ~ball
error = {name: np.sqrt(np.mean((x - truth)[hidden] ** 2)) for name, x in found.items()}
for name in found:
    seen = f", held-out error {held[name]:.4f}" if name in held else ""
    print(f"{name:<15} rms error off the ball {error[name]:.4f}{seen}")
best = min(held, key=held.__getitem__)
assert best == "pixels x frames" == min(error, key=error.__getitem__)

# %%
# A frame of which few lines are known.
frame = (lost.start + lost.stop) // 2
figure, axes = run.figure(1, 5, aspect=1.2)
pictures = {"known": cube, "truth": truth, **found}
for ax, (name, x) in zip(axes, pictures.items(), strict=True):
    ax.imshow(x[..., frame], vmin=0.0, vmax=truth[..., frame].max(), cmap="gray")
    ax.set(title=name, xticks=[], yticks=[])
figure.supxlabel(f"frame {frame}: every sixth line is known")
run.save(figure)
