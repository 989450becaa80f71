"""A run against time: singular values, loss; entropy against loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy as entropy_of
from dln_geometry.geometry.points import Network, point_of_values
from dln_geometry.plot.axes import POINTS, axes_of, float_array, tight_time, values_over_time
from dln_geometry.support import as_count, as_depth, as_flag

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    Examples
    --------
    >>> loss, start = dln.losses.Quadratic([[1.0]]), dln.EndToEnd.of([[0.5]], 2)
    >>> ax = dln.plot.singular_values(dln.gradient_flow(loss, start, t_end=1.0))
    >>> ax.get_xlabel()
    'time'
    """
    from matplotlib import colormaps

    values, count = values_over_time(trajectory, "singular_values"), as_count(count, "count", 0)
    log = as_flag(log, "log")
    ax, t, modes = axes_of(ax), float_array(trajectory.t), values.shape[-1]
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
    tight_time(ax, t)
    return ax


def loss(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the loss against time, on a logarithmic axis if all values are positive.

    A batch gives one line for each sample. Parameters as in `singular_values`.

    Examples
    --------
    >>> loss, start = dln.losses.Quadratic([[1.0]]), dln.EndToEnd.of([[0.5]], 2)
    >>> ax = dln.plot.loss(dln.gradient_flow(loss, start, t_end=1.0))
    >>> ax.get_xlabel(), ax.get_yscale()
    ('time', 'log')
    """
    values = values_over_time(trajectory, "loss")
    ax, t = axes_of(ax), float_array(trajectory.t)
    ax.plot(t, values.reshape(len(t), -1), **style)
    ax.set(xlabel="time", ylabel="loss")
    if (values > 0).all():
        ax.set_yscale("log")
    tight_time(ax, t)
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

    Examples
    --------
    >>> loss, start = dln.losses.Quadratic(torch.eye(2)), dln.EndToEnd.of(0.1 * torch.eye(2), 3)
    >>> ax = dln.plot.entropy(dln.gradient_flow(loss, start, t_end=1.0))
    >>> ax.get_ylabel()
    'entropy'
    """
    energy, relative = values_over_time(trajectory, "loss"), as_flag(relative, "relative")
    values = float_array(_entropies(trajectory, widths))
    if relative:
        values = values - values[0]
    ax, count = axes_of(ax), len(energy)
    ax.plot(energy.reshape(count, -1), values.reshape(count, -1), **style)
    ax.set(xlabel="loss", ylabel="entropy since the start" if relative else "entropy")
    if (energy > 0).all():
        ax.set_xscale("log")
    ax.xaxis.set_inverted(True)
    return ax


def _entropies(trajectory: Trajectory, widths: Sequence[int] | int | None) -> Tensor:
    """Return the entropy at every saved time, shape (T, ...), in double precision."""
    s = torch.from_numpy(values_over_time(trajectory, "singular_values"))
    final = trajectory.final
    if isinstance(final, tuple):
        final = Network(final)
        widths = final.widths if widths is None else widths
    if not isinstance(final, POINTS):
        raise ValueError("trajectory must hold the last point of a gradient flow, got none")
    depth = as_depth(trajectory.depth)
    # Time by time: the kernels of a whole run at full rank may not fit into memory.
    # The entropy depends on the singular values alone.
    points = (point_of_values(row, final.shape, depth) for row in s)
    return torch.stack([entropy_of(point, widths=widths) for point in points])
