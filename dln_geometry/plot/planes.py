"""Planes: landscapes with flow lines, phase portraits, and curves of two singular values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.plot.axes import POINTS, as_calls, as_span, axes_of, draw_lines, float_array
from dln_geometry.support import as_count, as_flag, as_float_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Span = tuple[float, float]


def landscape(
    f: Callable[[Tensor], Any],
    ax: Axes | None = None,
    *,
    x: Span = (-2.0, 2.0),
    y: Span = (-2.0, 2.0),
    count: int = 121,
    levels: int = 24,
    lines: bool = False,
    label: str = "value",
    **style: Any,
) -> Axes:
    """Draw a function on a plane as filled level sets with a colour bar, and its flow lines.

    Parameters
    ----------
    f : callable
        ``f(points (k, 2)) -> (k,)``; values that are not finite are left white.
    x, y : pair of float
        Ends of the two axes.
    count, levels : int
        Points a side, and level sets.
    lines : bool
        Draw the lines of steepest descent (in the plane as it is drawn).
    label : str
        Title of the colour bar.
    **style
        Options of ``Axes.contourf``.

    Examples
    --------
    The entropy at depth 3 of the 2 x 2 matrices with the diagonal (1, 0.85), over the others:

    >>> def entropy(p):
    ...     a, b = p.unbind(-1)
    ...     x = torch.stack([torch.ones_like(a), a, b, 0.85 * torch.ones_like(a)], -1)
    ...     return dln.entropy(x.unflatten(-1, (2, 2)), depth=3)
    >>> ax = dln.plot.landscape(entropy, count=41, lines=True, label="entropy $S$ (nats)")
    """
    lines = as_flag(lines, "lines")
    as_calls(f=f, required=True)
    ax, (u, v, points) = axes_of(ax), _plane_grid(x, y, count)
    values = np.asarray(as_values(f(points), "f", (len(points),)), float).reshape(len(v), len(u))
    shown = np.ma.masked_invalid(values)
    picture = ax.contourf(u, v, shown, **{"levels": as_count(levels, "levels"), **style})
    whole: Any = ax.figure
    whole.colorbar(picture, ax=ax, label=label)
    if lines:
        # Differences, not autograd: f may be any function.
        down_y, down_x = np.gradient(-np.where(np.isfinite(values), values, np.nan), v, u)
        _streams(ax, u, v, down_x, down_y, color="white")
    ax.set(xlabel="$x$", ylabel="$y$", xlim=(u[0], u[-1]), ylim=(v[0], v[-1]))
    return ax


def phase_portrait(
    velocity: Callable[[Tensor], Any],
    ax: Axes | None = None,
    *,
    x: Span = (0.0, 2.0),
    y: Span = (0.0, 2.0),
    count: int = 31,
    **style: Any,
) -> Axes:
    """Draw the flow lines of a velocity field on a plane.

    Parameters
    ----------
    velocity : callable
        ``velocity(points (k, 2)) -> (k, 2)``.
    x, y, count
        As in `landscape`.
    **style
        Options of ``Axes.streamplot``.

    Examples
    --------
    Two singular values at depth 3, pulled towards 1 and 0.5:

    >>> def velocity(s):
    ...     return -3 * s ** (2 - 2 / 3) * (s - torch.tensor([1.0, 0.5]))
    >>> ax = dln.plot.phase_portrait(velocity)
    >>> ax.get_xlabel()
    '$s_1$'
    """
    as_calls(velocity=velocity, required=True)
    ax, (u, v, points) = axes_of(ax), _plane_grid(x, y, count)
    field = np.asarray(as_values(velocity(points), "velocity", tuple(points.shape)), float)
    a, b = field.reshape(len(v), len(u), 2).transpose(2, 0, 1)
    _streams(ax, u, v, a, b, **{"color": "#004488", **style})
    ax.set(xlabel="$s_1$", ylabel="$s_2$", xlim=(u[0], u[-1]), ylim=(v[0], v[-1]))
    return ax


def spectral_plane(
    path: Any, ax: Axes | None = None, *, modes: tuple[int, int] = (0, 1), **style: Any
) -> Axes:
    """Draw a path, such as a geodesic, by two of its singular values; a dot marks its start.

    Parameters
    ----------
    path : Trajectory, EndToEnd or Collapsed of shape (k, ...), or array_like of shape (k, ..., r)
        Points along the path, or singular values; several paths are drawn in the same axes.
    modes : pair of int
        Which two, from 0.

    Examples
    --------
    >>> start = dln.EndToEnd.of([[1.0, 0.0], [0.0, 0.5]], 3)
    >>> path = dln.geodesic(start, [[0.5, 0.0], [0.0, 2.0]], torch.linspace(0, 1, 20))
    >>> ax = dln.plot.spectral_plane(path, color=dln.plot.depth_color(3))
    """
    if isinstance(path, (Trajectory, *POINTS)):
        s = path.singular_values
        if s is None:
            raise ValueError("path must hold singular_values, got none")
    else:
        s = as_float_tensor(path, "path")
    i, j = (as_count(k, "modes", 0) for k in _two_modes(modes, "modes"))
    if s.ndim > 1 and s.shape[-1] <= max(i, j):
        raise ValueError(f"modes must lie below {s.shape[-1]}, got {modes}")
    if s.ndim < 2:
        raise ValueError(f"path must have shape (k, ..., r), got {tuple(s.shape)}")
    ax, values = axes_of(ax), float_array(s.as_subclass(Tensor))
    a, b = (values[..., k].reshape(len(values), -1) for k in (i, j))
    for k, line in enumerate(draw_lines(ax, a, b, style)):
        ax.plot(a[:1, k], b[:1, k], "o", color=line.get_color(), markersize=3.5)
    ax.set(xlabel=f"$s_{{{i + 1}}}$", ylabel=f"$s_{{{j + 1}}}$")
    return ax


def as_values(found: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return what a function of points gave, of the shape that it must have."""
    values = found.detach().cpu() if isinstance(found, Tensor) else torch.as_tensor(found)
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must return shape {shape}, got {tuple(values.shape)}")
    return values


def _two_modes(pair: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair, got {pair!r:.60}")
    return pair[0], pair[1]


def _plane_grid(x: Any, y: Any, count: Any) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return both axes, and the points (k, 2) row by row."""
    k = as_count(count, "count", 2)
    u, v = (np.linspace(*as_span(ends, name), k) for ends, name in ((x, "x"), (y, "y")))
    points = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    return u, v, torch.from_numpy(points)


def _streams(ax: Axes, u: Any, v: Any, a: Any, b: Any, **style: Any) -> None:
    ax.streamplot(u, v, a, b, **{"linewidth": 0.6, "arrowsize": 0.7, "density": 1.0, **style})
