"""What the figures share: axes, numbers of tensors, axes of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network
from dln_geometry.support import as_real, refuse_complex, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

POINTS = (Collapsed, EndToEnd, Network)


def axes_of(ax: Any, name: str = "ax") -> Axes:
    """Return the given axes, or those of a new figure."""
    if ax is None:
        return new_figure().add_subplot()
    if not all(callable(getattr(ax, method, None)) for method in ("plot", "imshow", "set")):
        raise TypeError(f"{name} must be axes of matplotlib, got {shown(ax)}")
    return ax


def new_figure(size: tuple[float, float] | None = None) -> Figure:
    """Return an empty figure, of the size of the style in force, or else of 5 x 3.6 inches."""
    from matplotlib import rcParams, rcParamsDefault
    from matplotlib.figure import Figure

    if size is None:
        size = tuple(rcParams["figure.figsize"])
        size = (5.0, 3.6) if size == tuple(rcParamsDefault["figure.figsize"]) else size
    return Figure(figsize=size, layout="constrained")


def float_array(x: Tensor) -> np.ndarray:
    """Return the numbers of a tensor in double precision; complex ones are refused."""
    refuse_complex("what is drawn", x.dtype)
    return x.detach().cpu().to(torch.float64).numpy()


def check_trajectory(trajectory: Any) -> Trajectory:
    """Return a run; TypeError for anything else."""
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
    return trajectory


def values_over_time(trajectory: Any, name: str) -> np.ndarray:
    """Return a series of a run, shape (T, ...); ValueError if the run does not hold it."""
    values = getattr(check_trajectory(trajectory), name)
    if values is None:
        raise ValueError(f"trajectory must hold {name}, got none")
    return float_array(values)


def draw_lines(ax: Axes, x: Any, y: Any, style: Mapping[str, Any], **defaults: Any) -> list[Line2D]:
    """Draw the columns of y; the user's options win, also by their short names.

    A label stands once in the legend, for all columns. A default colour draws whole lines: cycles
    of line styles would dash them as if that had a meaning.
    """
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    whole = {"linestyle": "-"} if "color" in defaults else {}
    options = {**whole, **defaults, **normalize_kwargs(dict(style), Line2D)}
    name = options.pop("label", None)
    lines = ax.plot(x, y, **options, **({} if isinstance(name, str | None) else {"label": name}))
    if isinstance(name, str) and lines:
        lines[0].set_label(name)
    return lines


def tight_time(ax: Axes, t: np.ndarray) -> None:
    """Begin the axis of time at 0 and end it with the longest run drawn so far."""
    end = max([float(t[-1]), *(float(np.max(line.get_xdata())) for line in ax.lines)])
    if end > 0:
        ax.set_xlim(0.0, end)


def as_span(ends: Any, name: str) -> tuple[float, float]:
    """Return the two ends of an axis, the lower one first."""
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise TypeError(f"{name} must be a pair of numbers, got {shown(ends)}")
    low, high = (as_real(end, name) for end in ends)
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"{name} must increase and be finite, got {shown(ends)}")
    return low, high


def as_calls(*, required: bool = False, **calls: Any) -> list[Any]:
    """Return functions, or None where they may be left out."""
    for name, f in calls.items():
        if not callable(f) and (required or f is not None):
            raise TypeError(f"{name} must be a function, got {shown(f)}")
        if isinstance(f, type):
            raise TypeError(f"{name} must be a function, got the class {f.__name__}")
    return list(calls.values())
