"""Which engine holds a start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.base import Engine
from dln_geometry.dynamics.engines.collapsed import EvenEngine, ProductEngine, SpectralEngine
from dln_geometry.dynamics.engines.deep import CoreEngine, PairEngine
from dln_geometry.dynamics.engines.layered import LayeredEngine, PlainEngine
from dln_geometry.dynamics.losses import Loss, prepared
from dln_geometry.geometry.balanced import is_balanced
from dln_geometry.geometry.doors import as_factors
from dln_geometry.geometry.point import Collapsed, EndToEnd

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
    if isinstance(point, tuple):
        first, last = point[0], point[-1]
        ready = prepared(
            loss, (last.shape[-2], first.shape[-1]), dtype=first.dtype, device=first.device
        )
        return LayeredEngine(ready, point, watch=watch), tuple(first.shape[:-2])
    held = point.L if isinstance(point, Collapsed) else point.u
    batch = tuple(held.shape[:-2])
    ready = prepared(loss, point.shape, dtype=held.dtype, device=held.device)
    if point.depth == 1.0:
        return PlainEngine(ready, point.matrix, watch=watch), batch
    return collapsed_engine(ready, Collapsed.of(point), name, watch=watch), batch


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
        return torch.cat((observed, self.engine.defect(y).reshape(-1, 1)), dim=1)

    def singular_values(self, y: Tensor) -> Tensor:
        return self.engine.singular_values(y)

    def defect(self, y: Tensor) -> Tensor:
        return self.engine.defect(y)

    def point(self, y: Tensor) -> Any:
        return self.engine.point(y)

    def rebalanced(self, y: Tensor) -> Tensor:
        return self.engine.rebalanced(y)
