"""The choice of the engine of a gradient flow, by start, depth, rank and device."""

from __future__ import annotations

import math
from typing import Any

import torch

from dln_geometry.dynamics import engines
from dln_geometry.dynamics.losses import Loss, as_dense, prepared
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network
from dln_geometry.support import as_choice, broadcast_shapes, check_loss

SPREAD = "several processes hold the start"

ENGINES = ("auto", "spectral", "products", "layers")

LARGE_DEPTH = 100
"""Depth above which s^{1/N} resolves s too coarsely: N eps of relative error."""


def is_spread(start: Any) -> bool:
    """Tell whether several processes hold the rows of a point."""
    return isinstance(start, Collapsed) and hasattr(start.L, "device_mesh")


def engine_for(loss: Loss, start: Any, name: str, watch: bool) -> engines.Engine:
    """Return the engine of a flow from `start`, which is expanded to the loss's batch shape."""
    as_choice(name, ENGINES, "engine")
    widths = None
    # Detach the start: gradient_flow is not differentiable.
    if isinstance(start, Collapsed | EndToEnd):
        point = start.detach()
        if name == "layers" and point.depth > 1.0:
            point = Collapsed.of(point).factors()
    else:
        point = Network(start, "start").detach()
        widths = (point[0].shape[-1], *(w.shape[-2] for w in point))
        if len(point) == 1:
            point = EndToEnd.of(point[0], 1)
        elif name in ("spectral", "products") and point.is_balanced:
            point = Collapsed.of(point)
    if math.prod(point.batch_shape) == 0:
        raise ValueError(
            f"start must hold at least one sample, got leading dimensions {point.batch_shape}"
        )
    chosen = _engine(loss, point, name, watch)
    chosen.widths = None if isinstance(point, Network) else widths
    return chosen


def sharded_engine(loss: Any, start: Any, name: str, watch: bool, store: Any) -> engines.Engine:
    """Return the engine of a flow on the rows that this process holds; loss and start fit.

    A store is told how states are cut.
    """
    from dln_geometry.dynamics import sharded  # Its imports take half a second.

    if as_choice(name, ENGINES, "engine") == "layers":
        raise ValueError(f'engine must not be "layers" where {SPREAD}, got {name!r}')
    check_loss(loss, start.shape, "value", "gradient")
    ranks, shape, whole = loss.ranks, start.shape, math.prod(start.batch_shape)
    if whole == 0:
        got = tuple(start.batch_shape)
        raise ValueError(f"start must hold at least one sample, got leading dimensions {got}")
    own = sharded.own_rows(start, ranks)
    ready = loss.to(dtype=own.dtype, device=own.device)
    right = ranks.gathered(own.R, shape[1])
    value = ranks.together(lambda: ready.own_value(own.L @ own.M, right))
    if not bool(torch.isfinite(ranks.summed(value)[0]).all()):
        raise ValueError("loss must be finite at the start, got NaN or infinity: start smaller")
    depth = own.depth
    if depth == 1.0 and start.rank == min(shape):
        local: Any = engines.PlainEngine(ready, own.L @ own.M @ right.mH, watch)
    elif depth.infinite:
        local = engines.CoreEngine(ready, own, watch, sharded.frames(own, ranks))
    elif depth > LARGE_DEPTH and name != "products":
        local = engines.PairEngine(ready, sharded.frames(own, ranks), watch)
    elif depth == 1.0:
        local = engines.SpectralEngine(ready, own, watch)
    else:
        local = collapsed_engine(ready, own, name, watch=watch)
    engine = sharded.ShardedEngine(local, shape, ranks)
    if store is not None:
        store.norms = engine.norms
    return engine


def _engine(loss: Loss, point: Any, name: str, watch: bool) -> engines.Engine:
    ready = prepared(loss, point.shape, dtype=point.dtype, device=point.device)
    point = _batched(ready, point)
    if isinstance(point, Network):
        thin = name == "auto" and point.is_balanced
        return (engines.ThinEngine if thin else engines.LayeredEngine)(ready, point, watch)
    if point.depth == 1.0 and point.rank < min(point.shape):
        return engines.SpectralEngine(ready, Collapsed.of(point), watch)
    if point.depth == 1.0:
        return engines.PlainEngine(ready, point.matrix, watch)
    # A PairEngine keeps the view of an EndToEnd, whose N-th roots would lose digits.
    if LARGE_DEPTH < point.depth < math.inf and isinstance(point, EndToEnd) and name != "products":
        return engines.PairEngine(ready, point, watch)
    return collapsed_engine(ready, Collapsed.of(point), name, watch=watch)


def _batched(loss: Loss, point: Any) -> Any:
    """Return a point with the leading dimensions of the loss, which must be finite there."""
    x = point if isinstance(point, Collapsed) else point.matrix
    batch = point.batch_shape
    try:
        value = loss.value(x)
        # The first call of torch's function imports a second's worth of modules.
        alike = value.shape == batch
        wanted = batch if alike else broadcast_shapes(value.shape, batch)
    except RuntimeError as error:
        raise ValueError(
            f"loss must fit starts with the leading dimensions {tuple(batch)}, got: {error}"
        ) from None
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            "loss must be finite at the start, got NaN or infinity at a matrix of norm "
            f"{float(torch.linalg.matrix_norm(as_dense(x)).max()):.3g}: start smaller"
        )
    if value.shape != wanted:
        raise ValueError(
            f"loss must have one value for every start {tuple(batch)}, got shape "
            f"{tuple(value.shape)}"
        )
    return point.expand(wanted)


def collapsed_engine(
    loss: Loss, start: Collapsed, name: str = "auto", *, watch: bool = False
) -> engines.Engine:
    """Choose between a decomposition and products; `_prefers_spectral` has the measurements."""
    depth = start.depth
    integer = depth.is_integer() and depth >= 2
    if name == "products" and not integer:
        raise ValueError(f'engine "products" needs an integer depth >= 2, got depth {depth:g}')
    if depth.infinite:
        return engines.CoreEngine(loss, start, watch)
    if depth > LARGE_DEPTH and name != "products":
        return engines.PairEngine(loss, start, watch)
    products = name == "products" or (name == "auto" and not _prefers_spectral(start))
    if not integer or depth == 2 or not products:
        return engines.SpectralEngine(loss, start, watch)
    if depth % 2 == 0 and not watch:
        return engines.EvenEngine(loss, start)
    return engines.ProductEngine(loss, start, watch)


def _prefers_spectral(start: Collapsed) -> bool:
    """Tell whether an `eigh` costs less than the products of the geometric sum.

    On a CPU an `eigh` costs as much as 30 products of r x r matrices at r = 50, 20 at 100, 11 at
    200 and 7 at 500 and above, and saves all but two of them; on a GPU, and for batches of small
    matrices, it costs far more than the products of any depth.
    """
    if start.L.device.type != "cpu":
        return False
    terms, even = int(start.depth) - 2, start.depth % 2 == 0
    doublings = bin(terms // 2 if even else terms)[3:]
    per_doubling, per_unit = (2, 3) if even else (4, 4)
    products = per_doubling * len(doublings) + per_unit * doublings.count("1")
    return products > 2 + max(7.0, 2000.0 / start.rank)
