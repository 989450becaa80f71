"""A run against time: singular values, loss; entropy against loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy as entropy_of
from dln_geometry.geometry.points import Network, effective_rank, point_of_values
from dln_geometry.plot.axes import (
    POINTS,
    axes_of,
    check_trajectory,
    draw_lines,
    float_array,
    tight_time,
    values_over_time,
)
from dln_geometry.support import as_count, as_depth, as_flag

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def singular_values(
    trajectory: Trajectory,
    ax: Axes | None = None,
    *,
    count: int = 12,
    log: bool = False,
    colorbar: bool = False,
    **style: Any,
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
    colorbar : bool
        Add a colour bar that numbers the modes.
    **style
        Options of ``Axes.plot`` for all lines; they win over the colours of the modes.

    Examples
    --------
    >>> loss, start = dln.losses.Quadratic([[1.0]]), dln.EndToEnd.of([[0.5]], 2)
    >>> ax = dln.plot.singular_values(dln.gradient_flow(loss, start, t_end=1.0))
    >>> ax.get_xlabel()
    'time $t$'
    """
    from matplotlib import colormaps

    values, count = values_over_time(trajectory, "singular_values"), as_count(count, "count", 0)
    log, colorbar = as_flag(log, "log"), as_flag(colorbar, "colorbar")
    ax, t, modes = axes_of(ax), float_array(trajectory.t), values.shape[-1]
    values = values.reshape(len(t), -1, modes)
    colours = colormaps["viridis"](np.linspace(0.0, 0.92, max(1, min(count, modes))))
    # From the last to the first: matplotlib draws later lines on top.
    for mode in reversed(range(modes)):
        colour, width = (colours[mode], 1.4) if mode < count else ("0.75", 0.5)
        # One entry of the legend for the run, that of the leading mode.
        own = {k: x for k, x in style.items() if mode == 0 or k != "label"}
        draw_lines(ax, t, values[..., mode], own, color=colour, linewidth=width)
    if colorbar and colours.size:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.ticker import MaxNLocator

        shown = len(colours)
        norm = BoundaryNorm(np.arange(shown + 1) + 0.5, shown)
        whole: Any = ax.figure
        bar = whole.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=ax, label="mode $i$")
        ticks = MaxNLocator(integer=True).tick_values(1, shown)
        bar.set_ticks([k for k in ticks if 1 <= k <= shown and k == int(k)])
        bar.ax.minorticks_off()
    ax.set(xlabel="time $t$", ylabel="singular values $s_i$")
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
    ('time $t$', 'log')
    """
    values = values_over_time(trajectory, "loss")
    ax, t = axes_of(ax), float_array(trajectory.t)
    draw_lines(ax, t, values.reshape(len(t), -1), style)
    ax.set(xlabel="time $t$", ylabel="loss $E$")
    if (values > 0).all():
        ax.set_yscale("log")
    tight_time(ax, t)
    return ax


def observable(
    trajectory: Trajectory,
    name: str,
    ax: Axes | None = None,
    *,
    log: bool | None = None,
    **style: Any,
) -> Axes:
    """Draw a series of a run against time, by its name: one line for each sample and component.

    Parameters
    ----------
    name : str
        An observable that the run was asked for (``observe={name: f}``), ``"effective_rank"``,
        ``"loss"``, ``"singular_values"``, ``"states"`` or ``"defect"``.
    log : bool, optional
        Draw a logarithmic axis; by default for losses and defects that are all positive.
    **style
        Options of ``Axes.plot``.

    Examples
    --------
    >>> start = dln.Collapsed.random((3, 3), 3, 3, scale=0.1, generator=0)
    >>> loss = dln.losses.Quadratic(torch.diag(torch.tensor([2.0, 1.0, 0.0])))
    >>> path = dln.gradient_flow(loss, start, t_end=3.0)
    >>> dln.plot.observable(path, "effective_rank").get_ylabel()
    'effective rank'
    """
    path = check_trajectory(trajectory)
    if name in path.observed:
        values = float_array(path.observed[name])
    elif name == "effective_rank":
        s = torch.from_numpy(values_over_time(path, "singular_values"))
        values = effective_rank(s).numpy()
    elif name in ("loss", "singular_values", "states", "defect"):
        values = values_over_time(path, name)
    else:
        known = ", ".join((*path.observed, "effective_rank", "loss", "singular_values", "defect"))
        raise ValueError(f"name must be one of {known}, got {name!r:.60}")
    if log is None:
        log = name in ("loss", "defect") and bool((values > 0).all())
    ax, t, log = axes_of(ax), float_array(path.t), as_flag(log, "log")
    draw_lines(ax, t, values.reshape(len(t), -1), style)
    ax.set(xlabel="time $t$", ylabel=name.replace("_", " "))
    if log:
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
    'entropy $S$ (nats)'
    """
    energy, relative = values_over_time(trajectory, "loss"), as_flag(relative, "relative")
    values = float_array(_entropies(trajectory, widths))
    if relative:
        values = values - values[0]
    ax, count = axes_of(ax), len(energy)
    draw_lines(ax, energy.reshape(count, -1), values.reshape(count, -1), style)
    label = "entropy since the start (nats)" if relative else "entropy $S$ (nats)"
    ax.set(xlabel="loss $E$", ylabel=label)
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
