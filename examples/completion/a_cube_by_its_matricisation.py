"""
A hyperspectral cube by its matricisation
=========================================

A hyperspectral cube of which most entries are lost, completed as a matrix of pixels and bands.

A cube of height x width x bands is a matrix in three ways. Pixels by bands has low rank, since
every pixel mixes the spectra of a few materials; rows by (columns and bands) has not. The cube is
made: four materials with smooth spectra and smooth shares, bands that a part of the image lost,
noise. The held-out error tells which matricisation to use, without a look at the truth.

Source: Cohen, Menon, Veraszto, Deep linear networks for matrix completion, arXiv 2210.12497.
"""

from __future__ import annotations

import numpy as np

from dln_geometry import gallery
from dln_geometry.completion import MatrixCompleter

MATERIALS, NOISE = 4, 0.01


def made_cube(side, bands, rng):
    """Return a cube (side, side, bands) of mixed spectra."""
    wave = np.linspace(0, 1, bands)
    centres, widths = rng.random((3, MATERIALS, 1)), 0.05 + 0.2 * rng.random((3, MATERIALS, 1))
    spectra = 0.2 + np.exp(-(((wave - centres) / widths) ** 2)).sum(0) / 3
    y, x = np.mgrid[:side, :side] / side
    waves = rng.normal(size=(3, MATERIALS, 1, 1))
    fields = np.sin(7 * waves[0] * x + 7 * waves[1] * y + 3 * waves[2])
    shares = np.exp(2 * fields)
    return np.einsum("kyx,kb->yxb", shares / shares.sum(0), spectra)


# %%
run = gallery.begin(__doc__)
rng = np.random.default_rng(20)
side, bands = (16, 30) if run.quick else (48, 100)
truth = made_cube(side, bands, rng)
known = rng.random(truth.shape) < 0.4
lost = slice(bands // 4, bands // 3)
known[: side // 4, :, lost] = False  # a quarter of the image lost these bands
cube = np.where(known, truth + NOISE * rng.normal(size=truth.shape), np.nan)
print(f"{known.mean():.0%} of {cube.size} entries are known; noise {NOISE}")

shapes = {"pixels x bands": (side * side, bands), "rows x rest": (side, side * bands)}
found, held = {}, {}
for name, shape in shapes.items():
    completer = MatrixCompleter(2.5, 6, 0.05, shrink=5.0, rtol=1e-2)
    found[name] = completer.fit(cube.reshape(shape)).complete().reshape(truth.shape)
    held[name] = completer.validation_error_
found["band means"] = np.broadcast_to(np.nanmean(cube, axis=(0, 1)), truth.shape)
error = {name: np.sqrt(np.mean((x - truth)[~known] ** 2)) for name, x in found.items()}
for name in found:
    seen = f", held-out error {held[name]:.4f}" if name in held else ""
    print(f"{name:<15} rms error {error[name]:.4f}{seen}")
best = min(held, key=held.__getitem__)
assert best == "pixels x bands" == min(error, key=error.__getitem__)
assert error[best] < 0.3 * error["band means"]

# %%
# One of the bands that a part of the image lost.
band = (lost.start + lost.stop) // 2
figure, axes = run.figure(1, 4, aspect=1.1)
pictures = {"known": cube, "truth": truth, **found}
pictures.pop("band means")
low, high = truth[..., band].min(), truth[..., band].max()
for ax, (name, x) in zip(axes, pictures.items(), strict=True):
    image = ax.imshow(x[..., band], vmin=low, vmax=high)
    ax.set(title=name.replace(" x ", " × "))
    ax.set_axis_off()
figure.colorbar(image, ax=axes, label="reflectance", shrink=0.7)
figure.supxlabel(f"band {band}: no entry is known in the upper quarter")
run.save(figure)
