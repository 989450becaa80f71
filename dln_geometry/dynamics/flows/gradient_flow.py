"""The Riemannian gradient flow of end-to-end matrices, for every start, rank and depth."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dln_geometry.dynamics.engines import (
    LOSS,
    CoreEngine,
    Engine,
    EvenEngine,
    LayeredEngine,
    PairEngine,
    PlainEngine,
    ProductEngine,
    SpectralEngine,
)
from dln_geometry.dynamics.flows.run import run_flow
from dln_geometry.dynamics.losses import Loss, as_dense, prepared
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network
from dln_geometry.ode import end_or_rules, until_rules
from dln_geometry.support import ProgressCallback

ENGINES = ("auto", "spectral", "products", "layers")

LARGE_DEPTH = 100
"""Depth above which s^{1/N} resolves s too coarsely: N eps of relative error."""


def gradient_flow(
    loss: Loss,
    start: Collapsed | EndToEnd | Sequence[Any],
    *,
    t_end: float | None = None,
    until: Mapping[str, float] | None = None,
    save_at: Any = None,
    rtol: float = 1e-8,
    atol: float | None = None,
    method: Any = None,
    engine: str = "auto",
    rebalance: float | None = None,
    keep_points: bool = False,
    progress: bool | ProgressCallback = False,
    store: str | os.PathLike[str] | None = None,
) -> Trajectory:
    r"""Integrate ``dX/dt = -A_{N,X}(E'(X))``.

    Balanced starts of any depth and rank are integrated as two or three thin matrices;
    unbalanced factors layer by layer; depth 1 is the plain flow of X; at infinite depth
    (normalised metric) the row and column spaces stand still and an r x r core moves.

    Parameters
    ----------
    loss : Loss
        What is minimised; see `dln_geometry.losses`.
    start : Collapsed, EndToEnd or sequence of array_like
        A point, or the factors ``(W_1, ..., W_N)``. Leading dimensions are a batch of
        independent runs, each with its own step sizes.
    t_end : float, optional
        Time at which every run ends; may be left out if `until` is given.
    until : mapping, optional
        Stopping rules, the first that is met ends a run: ``"loss"`` (value at or below),
        ``"gradient"`` (norm of the Riemannian gradient, ``sqrt(-dE/dt)``, at or below),
        ``"steps"`` (tried steps), ``"evaluations"`` (of the flow's right-hand side; 200 000 if
        there is no `t_end`, since the other rules may never be met), ``"seconds"`` (of wall
        clock).
    save_at : array_like of shape (T,) or int, optional
        Increasing times to save, hit exactly; or how many, equally spaced. By default every step
        of a single run is saved, and 101 equally spaced times of a batch (start and end if there
        is no `t_end`).
    rtol : float
        Tolerated local error of each matrix of the state relative to its Frobenius norm.
    atol : float, optional
        Absolute tolerance for the Frobenius norms; by default ``1e-3 rtol`` times the norm of
        the start.
    method : str or method value, optional
        ``"auto"`` (default: explicit Runge-Kutta, switching to the stabilised method where the
        flow is stiff), ``"rk3"``, ``"rk5"``, ``"rk8"``, ``"rkc"``, or a method of
        `dln_geometry.ode`.
    engine : {"auto", "spectral", "products", "layers"}
        How a balanced start is held: as two matrices with an `eigh` of an r x r matrix, or by
        matrix products alone (integer depth), whichever was measured to be faster; or as all its
        layers.
    rebalance : float, optional
        Restore the invariants (keeping X) when their defect passes this bound, which costs
        r x r work and one more evaluation each time. By default they are only monitored: they
        drift no more than the tolerance lets them.
    keep_points : bool
        Keep the whole point at every saved time in `Trajectory.points`: (m + n) r numbers each.
    progress : bool or callable
        Show a progress bar; or call ``progress(fraction_done, info)``, at most ten times a second,
        with the present ``info["loss"]`` (the largest of a batch), ``"t"``, ``"h"``, ``"steps"``,
        ``"evaluations"`` and ``"method"``.
    store : path, optional
        File that holds the state of the run, renewed every few seconds. If it exists, the run
        continues from it, and gives what an uninterrupted one would have given. `t_end` may be
        raised unless saved times depend on it, and `until` may be changed.

    Returns
    -------
    Trajectory
        ``final`` is a `Collapsed` for collapsed runs, the factors for layered runs, an `EndToEnd`
        at depth 1 and where an `EndToEnd` of a depth above 100 was given, whose N-th roots would
        lose digits.

    Raises
    ------
    TypeError
        If `start` is neither a point nor factors.
    ValueError
        If neither `t_end` nor `until` is given, a time is negative or NaN, a rule is unknown,
        the shapes of loss and start differ, or the loss is not finite at the start.
    FlowError
        If the flow blows up on the way; the error carries the trajectory so far.

    References
    ----------
    Menon, arXiv 2411.09004; Arora, Cohen, Hazan 2018.

    Examples
    --------
    The end-to-end entry of a 1 x 1 network of depth 2, pulled towards 1:

    >>> from dln_geometry import losses
    >>> path = gradient_flow(losses.Quadratic([[1.0]]), EndToEnd.of([[0.5]], 2), t_end=1.0)
    >>> round(float(path.final.matrix), 4)
    0.8808
    """
    rules = until_rules(until, ("loss", "gradient", "steps", "evaluations", "seconds"))
    t_end = end_or_rules(t_end, rules)
    chosen = engine_for(loss, start, engine, watch="gradient" in rules)
    slow = 1.0
    if isinstance(start, Collapsed | EndToEnd):
        # In the metric divided by N everything happens N times as slowly.
        slow = start.depth.unit(start.normalized)
    identity = {}
    if store is not None:
        identity = {
            "options": [rtol, atol, repr(method), rebalance, keep_points, slow],
            "engine": type(chosen).__name__,
            "loss": [type(loss).__name__, _figures(chosen)],
        }
    return run_flow(
        chosen,
        t_end=t_end,
        rules=rules,
        save_at=save_at,
        rtol=rtol,
        atol=atol,
        method=method,
        progress=progress,
        store=store,
        identity=identity,
        slow=slow,
        rebalance=rebalance,
        keep_points=keep_points,
    )


@torch.no_grad()
def _figures(engine: Engine) -> str:
    """Return the loss and the speed at the start, to six digits: they tell losses apart."""
    y = engine.rows()
    velocity = torch.empty_like(y)
    observed = engine.field(y.new_zeros(y.shape[0]), y, velocity)
    return f"{float(observed[:, LOSS].sum()):.5e} {float(torch.linalg.vector_norm(velocity)):.5e}"


def engine_for(loss: Loss, start: Any, name: str, watch: bool) -> Engine:
    """Return the engine that holds the state of a flow from `start`, of the loss's batch shape."""
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    # Detach the start: gradient_flow is not differentiable.
    if isinstance(start, Collapsed | EndToEnd):
        point = start.detach()
        if name == "layers" and point.depth > 1.0:
            point = Collapsed.of(point).factors()
    else:
        point = Network(start, "start").detach()
        if len(point) == 1:
            point = EndToEnd.of(point[0], 1)
        elif name != "layers" and point.is_balanced:
            point = Collapsed.of(point)
    if math.prod(point.batch_shape) == 0:
        raise ValueError(
            f"start must hold at least one sample, got leading dimensions {point.batch_shape}"
        )
    ready = prepared(loss, point.shape, dtype=point.dtype, device=point.device)
    point = _batched(ready, point)
    if isinstance(point, Network):
        return LayeredEngine(ready, point, watch=watch)
    if point.depth == 1.0:
        return PlainEngine(ready, point.matrix, watch=watch)
    if isinstance(point, EndToEnd) and _is_large(point) and name != "products":
        return PairEngine(ready, point, watch=watch)
    return collapsed_engine(ready, Collapsed.of(point), name, watch=watch)


def _batched(loss: Loss, point: Any) -> Any:
    """Return a point with the leading dimensions of the loss, which must be finite there."""
    x = point if isinstance(point, Collapsed) else point.matrix
    batch = point.batch_shape
    try:
        value = loss.value(x)
        wanted = torch.broadcast_shapes(value.shape, batch)
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
) -> Engine:
    """Choose between a decomposition and products by the measured crossover."""
    depth = start.depth
    integer = depth.is_integer() and depth >= 2
    if name == "products" and not integer:
        raise ValueError(f'engine "products" needs an integer depth >= 2, got depth {depth:g}')
    if depth.infinite:
        return CoreEngine(loss, start, watch=watch)
    if _is_large(start) and name != "products":
        return PairEngine(loss, start, watch=watch)
    if not integer or depth == 2 or name == "spectral":
        return SpectralEngine(loss, start, watch=watch)
    if name == "auto" and _prefers_spectral(start):
        return SpectralEngine(loss, start, watch=watch)
    if depth % 2 == 0 and not watch:
        return EvenEngine(loss, start)
    return ProductEngine(loss, start, watch=watch)


def _is_large(point: Collapsed | EndToEnd) -> bool:
    return point.depth > LARGE_DEPTH and not point.depth.infinite


def _prefers_spectral(start: Collapsed) -> bool:
    """Tell whether an `eigh` costs less than the products of the geometric sum.

    On a CPU an `eigh` costs as much as 30 products of r x r matrices at r = 50, 20 at 100, 11 at
    200 and 7 at 500 and above, and saves all but two of them; on a GPU, and for batches of small
    matrices, it costs far more than the products of any depth.
    """
    if start.L.device.type != "cpu":
        return False
    even = start.depth % 2 == 0
    terms = int(start.depth) - 2
    doublings = bin(terms // 2 if even else terms)[3:]
    per_doubling, per_unit = (2, 3) if even else (4, 4)
    products = per_doubling * len(doublings) + per_unit * doublings.count("1")
    return products > 2 + max(7.0, 2000.0 / start.rank)
