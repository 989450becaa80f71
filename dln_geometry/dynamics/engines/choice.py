"""Which engine holds a start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.collapsed import EvenEngine, ProductEngine, SpectralEngine
from dln_geometry.dynamics.engines.engine import Engine
from dln_geometry.dynamics.engines.large_depth import CoreEngine, PairEngine
from dln_geometry.dynamics.engines.layered import LayeredEngine, PlainEngine
from dln_geometry.dynamics.losses import Loss, as_dense, prepared
from dln_geometry.geometry.points import Collapsed, EndToEnd, is_balanced, product
from dln_geometry.support import as_factors

ENGINES = ("auto", "spectral", "products", "layers")

LARGE_DEPTH = 100
"""Depth above which s^{1/N} resolves s too coarsely: N eps of relative error."""


def engine_for(loss: Loss, start: Any, name: str, watch: bool) -> tuple[Engine, tuple[int, ...]]:
    """Choose how to hold the state; return it with the batch shape."""
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    point = start
    if not isinstance(start, Collapsed | EndToEnd):
        point = as_factors(start, "start")
        if len(point) == 1:
            point = EndToEnd.of(point[0], 1)
        elif name != "layers" and bool(is_balanced(point).all()):
            point = Collapsed.of(point)
    elif name == "layers" and start.depth > 1.0:
        point = Collapsed.of(start).factors()
    # A flow is not differentiated: what the start remembers of its making is left behind.
    point = map_point(point, Tensor.detach)
    held = _tensors(point)
    if held[0].numel() == 0:
        raise ValueError(
            f"start must hold at least one sample, got leading dimensions {held[0].shape[:-2]}"
        )
    shape = (held[-1].shape[-2], held[0].shape[-1]) if isinstance(point, tuple) else point.shape
    ready = prepared(loss, shape, dtype=held[0].dtype, device=held[0].device)
    point, batch = _batched(ready, point)
    if isinstance(point, tuple):
        return LayeredEngine(ready, point, watch=watch), batch
    if point.depth == 1.0:
        return PlainEngine(ready, point.matrix, watch=watch), batch
    if isinstance(point, EndToEnd) and LARGE_DEPTH < point.depth < math.inf and name != "products":
        return PairEngine(ready, point, watch=watch), batch
    return collapsed_engine(ready, Collapsed.of(point), name, watch=watch), batch


Point = Collapsed | EndToEnd | tuple[Tensor, ...]


def _tensors(point: Point) -> tuple[Tensor, ...]:
    """Return what a point holds; the first tensor has the batch dimensions of all."""
    if isinstance(point, Collapsed):
        return point.L, point.R
    return (point.u, point.s, point.vh) if isinstance(point, EndToEnd) else point


def _batched(loss: Loss, point: Point) -> tuple[Point, tuple[int, ...]]:
    """Give a point the leading dimensions of the loss, once the loss is known to be finite."""
    x = product(point) if isinstance(point, tuple) else point
    held = _tensors(point)[0]
    batch = tuple(held.shape[:-2])
    try:
        value = loss.value(x.matrix if isinstance(x, EndToEnd) else x)
        wanted = torch.broadcast_shapes(value.shape, batch)
    except RuntimeError as error:
        raise ValueError(
            f"loss must fit starts with the leading dimensions {batch}, got: {error}"
        ) from None
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            "loss must be finite at the start, got NaN or infinity at a matrix of norm "
            f"{float(torch.linalg.matrix_norm(as_dense(x)).max()):.3g}: start smaller"
        )
    if tuple(value.shape) != tuple(wanted):
        raise ValueError(
            f"loss must have one value for every start {batch}, got shape {tuple(value.shape)}"
        )
    if tuple(wanted) == batch:
        return point, batch
    return map_point(point, lambda w: _expanded(w, held, wanted)), tuple(wanted)


def _expanded(w: Tensor, like: Tensor, batch: torch.Size) -> Tensor:
    """Return a tensor with its leading dimensions, those of `like`, broadcast to `batch`."""
    own = w.shape[like.ndim - 2 :]
    return w.expand(*batch, *own)


def map_point(point: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a point."""
    if isinstance(point, Collapsed):
        return Collapsed(f(point.L), f(point.R), point.depth, point.normalized)
    if isinstance(point, EndToEnd):
        return EndToEnd(f(point.u), f(point.s), f(point.vh), point.depth, point.normalized)
    return tuple(f(w) for w in point)


def collapsed_engine(
    loss: Loss, start: Collapsed, name: str = "auto", *, watch: bool = False
) -> Engine:
    """Choose between a decomposition and products by the measured crossover."""
    depth = start.depth
    integer = depth.is_integer() and depth > 2
    if name == "products" and not (integer or depth == 2):
        raise ValueError(f'engine "products" needs an integer depth >= 2, got depth {depth:g}')
    if math.isinf(depth):
        return CoreEngine(loss, start, watch=watch)
    if depth > LARGE_DEPTH and name != "products":
        return PairEngine(loss, start, watch=watch)
    if not integer or name == "spectral":
        return SpectralEngine(loss, start, watch=watch)
    if name == "auto" and _prefers_spectral(start):
        return SpectralEngine(loss, start, watch=watch)
    if depth % 2 == 0 and not watch:
        return EvenEngine(loss, start)
    return ProductEngine(loss, start, watch=watch)


def _prefers_spectral(start: Collapsed) -> bool:
    """Tell whether an `eigh` costs less than the products of the geometric sum.

    On a CPU an `eigh` costs as much as 30 products of r x r matrices at r = 50, 20 at 100, 11 at
    200 and 7 at 500 and above; on a GPU, and for batches of
    small matrices, far more than any depth needs. It saves all but two of them.
    """
    if start.L.device.type != "cpu":
        return False
    even = start.depth % 2 == 0
    terms = int(start.depth) - 2
    doublings = bin(terms // 2 if even else terms)[3:]
    per_doubling, per_unit = (2, 3) if even else (4, 4)
    products = per_doubling * len(doublings) + per_unit * doublings.count("1")
    return products > 2 + max(7.0, 2000.0 / start.rank)


class Watched(Engine):
    """An engine that also reports its defect at every evaluation, for re-balancing."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.sizes, self.depth = engine, engine.sizes, engine.depth

    def rows(self) -> Tensor:
        return self.engine.rows()

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        observed = self.engine.field(t, y, out)
        return torch.cat((observed, self.engine.defect(y, observed).reshape(-1, 1)), dim=1)

    def singular_values(self, y: Tensor) -> Tensor:
        return self.engine.singular_values(y)

    def defect(self, y: Tensor, obs: Tensor) -> Tensor:
        return self.engine.defect(y, obs)

    def point(self, y: Tensor) -> Any:
        return self.engine.point(y)

    def rebalanced(self, y: Tensor) -> Tensor:
        return self.engine.rebalanced(y)
