"""Random motions: paths of particles, and histograms against laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.plot.axes import (
    as_calls,
    axes_of,
    check_trajectory,
    draw_lines,
    float_array,
    tight_time,
    values_over_time,
)
from dln_geometry.support import as_float_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def particles(
    trajectory: Trajectory,
    ax: Axes | None = None,
    *,
    law: Callable[[Any], Any] | None = None,
    **style: Any,
) -> Axes:
    """Draw the paths of the particles of a Dyson motion, or the singular values of a Langevin path.

    Parameters
    ----------
    trajectory, ax
        A run, and where to draw it; a batch is drawn sample by sample in the same axes.
    law : callable, optional
        ``law(t) -> (T,)`` or several of these in a tuple, such as the edge of the semicircle:
        drawn dashed, in black.

    Examples
    --------
    >>> path = dln.dyson(torch.zeros(5), dyson_index=2, t_end=1.0, dt=0.01, generator=0)
    >>> ax = dln.plot.particles(path, law=lambda t: dln.laws.semicircle_radius(5, t))
    >>> len(ax.lines)
    6
    """
    has_states = check_trajectory(trajectory).states is not None
    values = values_over_time(trajectory, "states" if has_states else "singular_values")
    (law,) = as_calls(law=law)
    ax, t = axes_of(ax), float_array(trajectory.t)
    lines = values.reshape(len(t), -1)
    draw_lines(ax, t, lines, style, linewidth=0.6, color="#004488", alpha=0.8)
    if law is not None:
        found = law(trajectory.t)
        for k, curve in enumerate(found if isinstance(found, tuple) else (found,)):
            label = "law" if k == 0 else None
            ax.plot(t, np.asarray(curve, float), "k--", linewidth=1.0, label=label)
        ax.legend()
    ax.set(xlabel="time $t$", ylabel="particles $x_i$" if has_states else "singular values $s_i$")
    tight_time(ax, t)
    return ax


def histogram(
    values: Any,
    ax: Axes | None = None,
    *,
    density: Callable[[Any], Any] | None = None,
    bins: Any = "auto",
    law_label: str = "law",
    **style: Any,
) -> Axes:
    """Draw the histogram of a sample, of area 1, and the density of a law over it.

    Parameters
    ----------
    values : array_like
        The sample; its shape does not matter.
    density : callable, optional
        ``density(x (k,)) -> (k,)``, such as `laws.semicircle_density`.
    bins
        As for ``Axes.hist``.
    law_label : str
        The name of the law in the legend.

    Examples
    --------
    >>> x = dln.laws.beta_hermite(50, 2, size=20, generator=0) / 50**0.5
    >>> ax = dln.plot.histogram(x, density=dln.laws.semicircle_density, label="n = 50")
    >>> ax.get_ylabel()
    'density'
    """
    sample = float_array(as_float_tensor(values, "values")).ravel()
    if not sample.size:
        raise ValueError("values must hold at least one number, got none")
    low, high = float(sample.min()), float(sample.max())
    if not math.isfinite(high - low):
        raise ValueError(
            f"values must have a range that is a number, got values from {low:g} to {high:g}"
        )
    (density,) = as_calls(density=density)
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.patches import Patch

    ax = axes_of(ax)
    drawn = {"density": True, "color": "#DDAA33", "edgecolor": "white", "linewidth": 0.3}
    own = normalize_kwargs(style, Patch)
    ax.hist(sample, bins=bins, **{"label": "sample", **drawn, **own})
    if density is not None:
        low, high = ax.get_xlim()
        x = torch.linspace(low, high, 501, dtype=torch.float64, device="cpu")
        ax.plot(x.numpy(), np.asarray(density(x), float), color="#004488", label=law_label)
        ax.set_xlim(low, high)
        ax.legend()
    ax.set(xlabel="value", ylabel="density")
    ax.set_ylim(bottom=0.0)
    return ax
