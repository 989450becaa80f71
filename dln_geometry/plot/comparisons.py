"""Comparisons: depths in their colours, charges and their predictions, balance of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Network, layer_moments
from dln_geometry.learning.monitor import ChargeRecord
from dln_geometry.plot.appearance import depth_color, depth_label
from dln_geometry.plot.axes import axes_of, check_trajectory, draw_lines, float_array, tight_time
from dln_geometry.plot.runs import observable
from dln_geometry.support import as_depth, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def depths(
    runs: Mapping[float, Trajectory], name: str = "loss", ax: Axes | None = None, **style: Any
) -> Axes:
    """Draw a series of several depths against time, each in its colour, with a legend.

    Parameters
    ----------
    runs : mapping of float to Trajectory
        The runs by their depths.
    name : str
        A series or an observable of the runs, see `observable`.

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[1.0]])
    >>> runs = {
    ...     depth: dln.gradient_flow(loss, dln.EndToEnd.of([[0.1]], depth), t_end=3.0)
    ...     for depth in (1, 2, 3, float("inf"))
    ... }
    >>> [line.get_label() for line in dln.plot.depths(runs).lines]
    ['depth 1', 'depth 2', 'depth 3', 'depth ∞']
    """
    if not isinstance(runs, Mapping) or not runs:
        raise TypeError(f"runs must be a mapping of depths to trajectories, got {shown(runs)}")
    if not all(isinstance(path, Trajectory) for path in runs.values()):
        raise TypeError(f"runs must hold trajectories, got {shown(runs)}")
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    ax = axes_of(ax)
    for depth in sorted(map(as_depth, runs)):
        own = {"linestyle": "-", "color": depth_color(depth), "label": depth_label(depth)}
        observable(runs[depth], name, ax, **{**own, **normalize_kwargs(style, Line2D)})
    ax.legend()
    return ax


def charges(record: ChargeRecord, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the charges of a training run against its steps, and their predictions dashed.

    Parameters
    ----------
    record : ChargeRecord
        What a `learning.ChargeMonitor` recorded.

    Examples
    --------
    >>> record = dln.learning.ChargeRecord(
    ...     steps=torch.arange(3), labels=("scale(w)",), charge=torch.ones(3, 1),
    ...     predicted=torch.ones(3, 1), residual=torch.zeros(3, 1),
    ... )
    >>> [line.get_label() for line in dln.plot.charges(record).lines]
    ['scale(w)', 'predicted']
    """
    if not isinstance(record, ChargeRecord):
        raise TypeError(f"record must be a ChargeRecord, got {shown(record)}")
    from matplotlib.ticker import MaxNLocator

    ax, steps = axes_of(ax), float_array(record.steps)
    measured, predicted = float_array(record.charge), float_array(record.predicted)
    for k, label in enumerate(record.labels):
        draw_lines(ax, steps, measured[:, k], style, linewidth=2.2, alpha=0.6, label=label)
    for k in range(len(record.labels)):
        name = None if k else "predicted"
        ax.plot(steps, predicted[:, k], "k--", linewidth=0.8, label=name)
    ax.set(xlabel="step", ylabel="charge")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize="small")
    return ax


def balancedness(trajectory: Trajectory, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the norm of every moment ``|G_p|`` against time: how far neighbours are from balance.

    ``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T`` of a run on layers that kept its points.

    Examples
    --------
    >>> path = dln.kirwan_ness_flow(([[1.0]], [[3.0]], [[2.0]]), t_end=0.1, keep_points=True)
    >>> [line.get_label() for line in dln.plot.balancedness(path).lines]
    ['layers 1, 2', 'layers 2, 3']
    """
    points = check_trajectory(trajectory).points
    if not points or not all(isinstance(point, tuple) for point in points):
        raise ValueError(
            "trajectory must hold the layers at its times (keep_points=True, from layers), got none"
        )
    ax, t = axes_of(ax), float_array(trajectory.t)
    moments = [layer_moments(Network(point)) for point in points]
    positive = True
    for p in range(len(points[0]) - 1):
        sizes = torch.stack([torch.linalg.matrix_norm(row[p]) for row in moments])
        positive &= bool((sizes > 0).all())
        values, label = float_array(sizes).reshape(len(t), -1), f"layers {p + 1}, {p + 2}"
        draw_lines(ax, t, values, style, label=label)
    ax.set(xlabel="time $t$", ylabel="$|G_p|$ (squared weights)")
    if positive:
        ax.set_yscale("log")
    tight_time(ax, t)
    ax.legend()
    return ax
