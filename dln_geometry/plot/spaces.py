"""Scalar networks of three layers in space: a fibre, its balanced points, the flows on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dln_geometry.dynamics.flows import balancing_flow
from dln_geometry.plot.axes import new_figure
from dln_geometry.support import as_count, as_generator, as_positive, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scalar_fibre(
    product: float = 1.0,
    ax: Any = None,
    *,
    flows: int = 9,
    reach: float = 2.2,
    generator: torch.Generator | int | None = 0,
    orbits: Sequence[Any] = (),
    **style: Any,
) -> Axes:
    """Draw the scalar networks ``w_3 w_2 w_1 = product`` in space, and the balancing flow on them.

    The surface is one sheet of the fibre, the positive one. The balanced networks
    ``w_1 = w_2 = w_3`` are a line; it meets the sheet in one point (black), at which the balancing
    flow ends (red, from random networks).

    Parameters
    ----------
    product : float
        End-to-end value, positive.
    ax : Axes, optional
        Axes in three dimensions.
    flows : int
        Number of balancing flows.
    reach : float
        Largest weight that is drawn; above the cube root of the product.
    generator : torch.Generator or int, optional
        Source of the random networks, or its seed.
    orbits : sequence of array_like of shape (k, 3)
        More curves ``(w_1, w_2, w_3)``, such as gradient flows.
    **style
        Options of ``Axes3D.plot_surface``.

    Examples
    --------
    >>> ax = dln.plot.scalar_fibre(1.0, flows=3)
    >>> ax.get_zlabel()
    '$w_3$'
    """
    x, reach = as_positive(product, "product"), as_positive(reach, "reach")
    if reach**3 <= x:
        raise ValueError(f"reach must be above the cube root of the product {x:g}, got {reach:g}")
    from matplotlib.ticker import MaxNLocator

    flows, source = as_count(flows, "flows", 0), as_generator(generator, torch.device("cpu"))
    if ax is None:
        # Constrained layout cuts the labels of axes in space.
        made = new_figure()
        made.set_layout_engine("none")
        ax = made.add_subplot(projection="3d")
    if not callable(getattr(ax, "plot_surface", None)):
        raise TypeError(f"ax must be axes in three dimensions, got {shown(ax)}")
    low = x / reach**2
    side = np.geomspace(low, reach, 60)
    a, b = np.meshgrid(side, side)
    c = x / (a * b)
    c = np.where((c <= reach * 1.02) & (c >= low * 0.98), c, np.nan)
    surface = {"color": "#88AACC", "alpha": 0.45, "linewidth": 0.0, "antialiased": True}
    ax.plot_surface(a, b, c, **{**surface, **style})
    ends = np.array([0.0, reach])
    ax.plot(ends, ends, ends, "k--", linewidth=0.9, label="balanced: $w_1 = w_2 = w_3$")
    ax.plot(*[[x ** (1 / 3)]] * 3, "ko", markersize=5, label="balanced, on the fibre")
    times = [*np.linspace(0.0, 3.0, 40), np.inf]
    places = torch.rand(flows, generator=source, dtype=torch.float64, device=source.device)
    starts = []
    for k, place in enumerate(places.tolist()):
        # On the rim of the sheet, where one weight is the largest that is drawn.
        second = low ** (0.85 - 0.7 * place) * reach ** (0.15 + 0.7 * place)
        starts.append(np.roll([reach, second, x / (reach * second)], k % 3))
    layers = torch.tensor(np.array(starts), device="cpu").reshape(flows, 3, 1, 1).unbind(1)
    # All in one batch.
    path = balancing_flow(layers, times) if flows else []
    for k in range(flows):
        curve = np.array([[float(layer[k]) for layer in state] for state in path]).T
        ax.plot(*curve, color="#BB5566", linewidth=1.0, label=None if k else "balancing flow")
        ax.plot(*curve[:, :1], "o", color="#BB5566", markersize=2.5)
    for k, orbit in enumerate(orbits):
        curve = np.asarray(orbit, float)
        if curve.ndim != 2 or curve.shape[1] != 3:
            raise ValueError(f"orbits must have shape (k, 3), got {curve.shape}")
        ax.plot(*curve.T, color="#DDAA33", linewidth=1.6, zorder=9, label=None if k else "orbit")
    ax.set(xlabel="$w_1$", ylabel="$w_2$", zlabel="$w_3$")
    ax.set(xlim=(0, reach), ylim=(0, reach), zlim=(0, reach))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_major_locator(MaxNLocator(4, prune="lower"))
    ax.view_init(elev=22, azim=38)
    ax.set_box_aspect((1, 1, 1), zoom=0.85)
    ax.legend(loc="upper left", fontsize="small")
    return ax
