"""
A photograph in colour
======================

A photograph of which a third of the numbers are known, completed with its colours side by side.

Every pixel has three numbers, red, green and blue; each is lost or known by itself. A photograph is
three matrices of rows x columns, or one of rows x (columns and colours): edges and textures are the
same in all colours, so the rows of the wide matrix share more, and its completion is closer than
three alone. Neighbouring pixels are not used: the rows and columns could come in any order.

Source: Cohen, Menon, Veraszto, Deep linear networks for matrix completion, arXiv 2210.12497.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_sample_image

from dln_geometry import gallery
from dln_geometry.completion import MatrixCompleter

# %%
run = gallery.begin(__doc__)
rng = np.random.default_rng(21)
step = 8 if run.quick else 4
truth = load_sample_image("china.jpg")[::step, ::step] / 255.0
height, width, colours = truth.shape
known = rng.random(truth.shape) < 0.35
picture = np.where(known, truth, np.nan)
print(f"{known.mean():.0%} of {picture.size} numbers are known")


def completed(table):
    """Return a table with its holes filled by values between 0 and 1."""
    rank = min(60, *table.shape)
    completer = MatrixCompleter(2.5, rank, 0.1, shrink=5.0, bounds=(0, 1), rtol=1e-2)
    return completer.fit(table).complete()


found = {
    "colour means": np.broadcast_to(np.nanmean(picture, axis=(0, 1)), truth.shape),
    "each colour alone": np.stack([completed(x) for x in np.moveaxis(picture, 2, 0)], axis=2),
    "all colours": completed(picture.reshape(height, -1)).reshape(truth.shape),
}
error = {name: np.sqrt(np.mean((x - truth)[~known] ** 2)) for name, x in found.items()}
for name, rms in error.items():
    print(f"{name:<18} rms error {rms:.4f} of the lost numbers")
assert error["all colours"] < 0.95 * error["each colour alone"]
assert error["all colours"] < 0.5 * error["colour means"]

# %%
# Known numbers stay; lost ones are black in the first picture. Errors are of numbers from 0 to 1.
figure, axes = run.figure(2, 2, aspect=height / width + 0.08)
shown = {name: np.where(known, truth, x) for name, x in found.items() if name != "colour means"}
shown = {"known": np.where(known, truth, 0.0), **shown, "truth": truth}
for ax, (name, x) in zip(axes.flat, shown.items(), strict=True):
    ax.imshow(x, interpolation="nearest")
    told = f": rms error {error[name]:.3f} of the lost" if name in error else ""
    ax.set(title=name + told)
    ax.set_axis_off()
run.save(figure)
