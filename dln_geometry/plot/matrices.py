"""One matrix: its entries as a picture, its singular values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dln_geometry.plot.axes import POINTS, axes_of, draw_lines, float_array
from dln_geometry.support import as_matrix, read_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def matrix(x: Any, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw a matrix as a picture without ticks; NaN entries are left in a pale colour.

    Parameters
    ----------
    x : array_like of shape (m, n), Collapsed, EndToEnd or Network
        One matrix.
    **style
        Options of ``Axes.imshow``; by default a diverging colour map, symmetric about 0.

    Examples
    --------
    >>> ax = dln.plot.matrix([[1.0, float("nan")], [0.0, 2.0]])
    >>> len(ax.images)
    1
    """
    from matplotlib import colormaps

    values = float_array(x.matrix if isinstance(x, POINTS) else read_array(x, "x", holes=True)[0])
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"x must have shape (m, n), got {values.shape}")
    ax = axes_of(ax)
    known = np.isfinite(values)
    if not {"cmap", "norm"} & set(style):
        bound = float(np.abs(values[known]).max(initial=0.0)) or 1.0
        style = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound, **style}
    cmap = style.pop("cmap", None) or "viridis"
    cmap = (colormaps[cmap] if isinstance(cmap, str) else cmap).with_extremes(bad="#f2e3c6")
    ax.imshow(np.ma.masked_where(~known, values), cmap=cmap, **style)
    ax.set(xticks=[], yticks=[])
    return ax


def spectrum(x: Any, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the singular values of a matrix against their index, on a logarithmic axis.

    Singular values that are zero are not drawn. Parameters as in `matrix`.

    Examples
    --------
    >>> ax = dln.plot.spectrum(torch.diag(torch.tensor([4.0, 1.0])))
    >>> ax.get_yscale()
    'log'
    """
    from matplotlib.ticker import MaxNLocator

    s = (
        x.singular_values
        if isinstance(x, POINTS)
        else torch.linalg.svdvals(as_matrix(x, complex=True))
    )
    values = float_array(s)
    if values.ndim != 1:
        raise ValueError(f"x must be a single matrix, got a batch of shape {values.shape[:-1]}")
    ax, kept = axes_of(ax), values > 0
    draw_lines(ax, 1 + kept.nonzero()[0], values[kept], style, marker=".", linewidth=0.8)
    ax.set(xlabel="index", ylabel="singular values")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if kept.any():
        ax.set_yscale("log")
    return ax
