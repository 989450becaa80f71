"""The figure of ``dln complete``: matrix, validation curve, singular values, what was tried."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.completing.split import SHOWN
from dln_geometry.completion import MatrixCompleter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLE = 200
"""Rows and columns that the figure shows of a matrix that is not formed."""


def singular_values_of(completer: MatrixCompleter) -> Tensor:
    """Return the singular values of X of the first model."""
    model = completer.models_[0]
    return torch.zeros(1) if model.point is None else model.decomposed().s.double()


def completion_panels(completer: MatrixCompleter, full: np.ndarray | None) -> Figure:
    """Draw the matrix, the validation curve, the singular values and what was tried."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 7.0), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)
    shown, title = (full, "completed") if full is not None else _sampled(completer)
    low, high = np.percentile(shown, SHOWN)
    style: dict[str, Any] = {"vmin": low, "vmax": high, "aspect": "auto", "cmap": "viridis"}
    plot.matrix(shown, a, **style).set_title(title)
    figure.colorbar(a.images[0], ax=a, extend="both")
    _draw_curve(completer, b)
    s = singular_values_of(completer).numpy()
    c.plot(np.arange(1, len(s) + 1), s, "o-", markersize=3)
    c.set(xlabel="number", ylabel="singular value", title="completed, without side means")
    c.set_ylim(bottom=0.0)
    _draw_trials(completer, d)
    return figure


def _sampled(completer: MatrixCompleter) -> tuple[np.ndarray, str]:
    """Return some rows and columns of a matrix that is too large, and a title."""
    names = (completer.row_ids_, completer.col_ids_)
    sides = [
        np.unique(np.linspace(0, count - 1, SAMPLE).astype(np.int64)) for count in completer.shape_
    ]
    rows, cols = (
        x if ids is None else np.array([ids[int(k)] for k in x], dtype=object)
        for x, ids in zip(sides, names, strict=True)
    )
    found = completer.predict(np.repeat(rows, len(cols)), np.tile(cols, len(rows)))
    return found.reshape(len(rows), len(cols)), f"{len(rows)} x {len(cols)} of the completed"


def _draw_curve(completer: MatrixCompleter, ax: Axes) -> None:
    ax.set(xlabel="time of the flow", ylabel="error", title="validation error")
    if len(completer.curve_) < 2:
        ax.text(0.5, 0.5, "no validation", ha="center", transform=ax.transAxes)
        return
    t, error = np.array(completer.curve_).T
    k = int(error.argmin())
    ax.plot(t, error)
    means = completer.side_means_error_
    ax.axhline(means, color="0.6", linestyle=":", label=f"side means alone, {means:.4g}")
    ax.plot(t[k], error[k], "o", color="C3", label=f"best, {error[k]:.4g}")
    # The noise of a random start may lie far above all that is learned.
    low, high = sorted((float(error[k]), means))
    ax.set_ylim(low - 0.1 * (high - low), min(high + 0.3 * (high - low), 1.05 * error.max()))
    ax.legend(frameon=False)


def _draw_trials(completer: MatrixCompleter, ax: Axes) -> None:
    """Draw the validation errors of all settings against their decays."""
    ax.set(xlabel="decay", ylabel="validation error", title="what was tried")
    trials = completer.cv_results_
    points = [
        (p["depth"], p["side_means"], p["decay"], -score)
        for p, score in zip(trials["params"], trials["mean_test_score"], strict=True)
        if math.isfinite(score)
    ]
    if not points:
        ax.text(0.5, 0.5, "no trials", ha="center", transform=ax.transAxes)
        return
    for depth, sides in sorted({point[:2] for point in points}, reverse=True):
        own = sorted(point[2:] for point in points if point[:2] == (depth, sides))
        label = f"depth {depth:g}" + ("" if sides else ", no side means")
        ax.plot(*np.array(own).T, "o-" if sides else "s--", markersize=4, label=label)
    decays = sorted({point[2] for point in points})
    ax.set_xscale("symlog", linthresh=0.01)
    ax.set_xticks(decays, [f"{decay:.3g}" for decay in decays])
    ax.set_xticks([], minor=True)
    ax.legend(frameon=False)
