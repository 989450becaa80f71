"""Figures of runs and of matrices.

Every function draws into the axes `ax` and returns them. Without `ax` it makes a new figure, which
pyplot does not know of: ``ax.figure.savefig(path)`` writes it. ``**style`` goes to the method of
matplotlib that draws, for instance ``label`` and ``color``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy as entropy_of
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network
from dln_geometry.support import as_count, as_depth, as_flag, as_matrix, read_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["entropy", "loss", "matrix", "singular_values", "spectrum"]

_POINTS = (Collapsed, EndToEnd, Network)


def singular_values(
    trajectory: Trajectory, ax: Axes | None = None, *, count: int = 12, log: bool = False
) -> Axes:
    """Draw the singular values of the end-to-end matrix against time.

    Parameters
    ----------
    trajectory, ax
        A run, and where to draw it; a batch is drawn sample by sample in the same axes.
    count : int
        Number of leading modes in colour; the others are thin grey lines.
    log : bool
        Draw the values on a logarithmic axis.
    """
    from matplotlib import colormaps

    values, count = _values_over_time(trajectory, "singular_values"), as_count(count, "count", 0)
    log = as_flag(log, "log")
    ax, t, modes = _axes_of(ax), _float_array(trajectory.t), values.shape[-1]
    values = values.reshape(len(t), -1, modes)
    colours = colormaps["viridis"](np.linspace(0.0, 0.92, max(1, min(count, modes))))
    # From the last to the first: matplotlib draws later lines on top.
    for mode in reversed(range(modes)):
        colour, width = (colours[mode], 1.4) if mode < count else ("0.75", 0.5)
        ax.plot(t, values[..., mode], color=colour, linewidth=width)
    ax.set(xlabel="time", ylabel="singular values")
    if log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0.0)
    _tight_time(ax, t)
    return ax


def loss(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the loss against time, on a logarithmic axis if all values are positive.

    A batch gives one line for each sample. Parameters as in `singular_values`.
    """
    values = _values_over_time(trajectory, "loss")
    ax, t = _axes_of(ax), _float_array(trajectory.t)
    ax.plot(t, values.reshape(len(t), -1), **style)
    ax.set(xlabel="time", ylabel="loss")
    if (values > 0).all():
        ax.set_yscale("log")
    _tight_time(ax, t)
    return ax


def entropy(
    trajectory: Trajectory,
    ax: Axes | None = None,
    *,
    widths: Sequence[int] | int | None = None,
    relative: bool = False,
    **style: Any,
) -> Axes:
    """Draw the entropy ``S(X(t))`` against the loss ``E(X(t))``, training from left to right.

    Other parameters as in `singular_values`; the run is that of a gradient flow.

    Parameters
    ----------
    widths : sequence of int or int, optional
        Widths of the network, see `dln_geometry.entropy`. They enter the constant of S and,
        above the rank, its slope; by default those of the factors of the run, or ``min(m, n)``.
    relative : bool
        Draw ``S(X(t)) - S(X(0))``, which is comparable between depths: the constant drops out.

    References
    ----------
    Menon, Yu, arXiv 2509.09088v3 (the entropy formula).
    """
    energy, relative = _values_over_time(trajectory, "loss"), as_flag(relative, "relative")
    values = _float_array(_entropies(trajectory, widths))
    if relative:
        values = values - values[0]
    ax, count = _axes_of(ax), len(energy)
    ax.plot(energy.reshape(count, -1), values.reshape(count, -1), **style)
    ax.set(xlabel="loss", ylabel="entropy since the start" if relative else "entropy")
    if (energy > 0).all():
        ax.set_xscale("log")
    ax.xaxis.set_inverted(True)
    return ax


def matrix(x: Any, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw a matrix as a picture without ticks; NaN entries are left in a pale colour.

    Parameters
    ----------
    x : array_like of shape (m, n), Collapsed, EndToEnd or Network
        One matrix.
    **style
        Options of ``Axes.imshow``; by default a diverging colour map, symmetric about 0.
    """
    from matplotlib import colormaps

    values = _float_array(x.matrix if isinstance(x, _POINTS) else read_array(x, "x", holes=True)[0])
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"x must have shape (m, n), got {values.shape}")
    ax = _axes_of(ax)
    known = np.isfinite(values)
    if "cmap" not in style:
        bound = float(np.abs(values[known]).max(initial=0.0)) or 1.0
        style = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound, **style}
    cmap = style.pop("cmap")
    cmap = (colormaps[cmap] if isinstance(cmap, str) else cmap).with_extremes(bad="#f2e3c6")
    ax.imshow(np.ma.masked_where(~known, values), cmap=cmap, **style)
    ax.set(xticks=[], yticks=[])
    return ax


def spectrum(x: Any, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the singular values of a matrix against their index, on a logarithmic axis.

    Singular values that are zero are not drawn. Parameters as in `matrix`.
    """
    s = x.singular_values if isinstance(x, _POINTS) else torch.linalg.svdvals(as_matrix(x))
    values = _float_array(s)
    if values.ndim != 1:
        raise ValueError(f"x must be a single matrix, got a batch of shape {values.shape[:-1]}")
    ax, kept = _axes_of(ax), values > 0
    ax.plot(1 + kept.nonzero()[0], values[kept], **{"marker": ".", "linewidth": 0.8, **style})
    ax.set(xlabel="index", ylabel="singular values")
    if kept.any():
        ax.set_yscale("log")
    return ax


def _axes_of(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure."""
    if ax is not None:
        if not all(callable(getattr(ax, name, None)) for name in ("plot", "imshow", "set")):
            raise TypeError(f"ax must be axes of matplotlib, got {type(ax).__name__}")
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(5.0, 3.6), layout="constrained").add_subplot()


def _float_array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().to(torch.float64).numpy()


def _values_over_time(trajectory: Trajectory, name: str) -> np.ndarray:
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
    values = getattr(trajectory, name)
    if values is None:
        raise ValueError(f"trajectory must hold {name}, got none")
    return _float_array(values)


def _entropies(trajectory: Trajectory, widths: Sequence[int] | int | None) -> Tensor:
    """Return the entropy at every saved time, shape (T, ...), in double precision."""
    s = torch.from_numpy(_values_over_time(trajectory, "singular_values"))
    final = trajectory.final
    if isinstance(final, tuple):
        final = Network(final)
        widths = final.widths if widths is None else widths
    if not isinstance(final, _POINTS):
        raise ValueError("trajectory must hold the last point of a gradient flow, got none")
    (m, n), depth = final.shape, as_depth(trajectory.depth)
    # The entropy depends on the singular values alone: any frames of the right shape do.
    batch, r = s.shape[1:-1], s.shape[-1]
    u = torch.eye(m, r, dtype=s.dtype, device=s.device).expand(*batch, m, r)
    vh = torch.eye(r, n, dtype=s.dtype, device=s.device).expand(*batch, r, n)
    # Time by time: the kernels of a whole run at full rank may not fit into memory.
    points = (EndToEnd(u, row, vh, depth, depth.infinite, check=False) for row in s)
    return torch.stack([entropy_of(point, widths=widths) for point in points])


def _tight_time(ax: Axes, t: np.ndarray) -> None:
    """Begin the axis of time at 0 and end it with the longest run drawn so far."""
    end = max([float(t[-1]), *(float(np.max(line.get_xdata())) for line in ax.lines)])
    if end > 0:
        ax.set_xlim(0.0, end)
