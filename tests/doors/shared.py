"""Points, networks, data and kinds of arguments that the tables of calls share."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch

import dln_geometry as dln
from dln_geometry import losses
from tests.doors import wrong
from tests.doors.calls import Call

F64 = wrong.F64
G = torch.Generator().manual_seed(7)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=F64)


X, Z, W, V = (normal(3, 2) for _ in range(4))
POINT, BATCH = dln.EndToEnd.of(X, 3), dln.EndToEnd.of(normal(4, 3, 2), 3)
NEAR = dln.EndToEnd.of(X + 0.01 * Z, 3)
PAIR = dln.Collapsed.of(POINT)
NET = dln.balanced_factors(POINT, gauge="haar", generator=3)
FREE = (normal(3, 2), normal(2, 3), normal(3, 2))
MOVES = dln.tangent(NET, [normal(*w.shape) for w in NET])
MORE = dln.tangent(NET, [normal(*w.shape) for w in NET])
# Of the component of NET, whatever the signs of singular vectors.
OTHER = dln.balance([w + 0.01 * move for w, move in zip(NET, MOVES, strict=True)])
GAUGE = tuple(torch.linalg.qr(normal(d, d))[0] for d in (2, 2))
FREE_GAUGE = tuple(normal(d, d) for d in (2, 2))
BATCHED = dln.balanced_factors(BATCH)
CROWD = dln.tangent(BATCHED, [normal(*w.shape) for w in BATCHED])


def of_point(
    function: Any, *names: str, rtol: list[Any] | None = None, **more: list[Any]
) -> list[Call]:
    """Return calls at a point with matrices under these names, and at a batch of points."""
    bad = {"point": wrong.POINTS, **{n: wrong.matrices(Z) for n in names}, **more}
    bad |= {"rtol": rtol} if rtol else {}
    given = dict(zip(names, (Z, W, V, Z), strict=False))
    crowd = {n: [normal(5, 3, 2), normal(3, 1, 3, 2, 3)] for n in names}
    return [
        Call(function, {"point": POINT, **given}, bad, names),
        Call(function, {"point": BATCH, **given}, crowd),
    ]


def of_layers(
    function: Any, *names: str, layers: Any = NET, rtol: list[Any] | None = None
) -> list[Call]:
    bad = {
        "factors": wrong.lists_of(layers, shaped=False),
        **{n: wrong.lists_of(MOVES)[:-1] for n in names},
    }
    bad |= {"rtol": rtol} if rtol else {}
    given = dict(zip(names, (MOVES, MORE), strict=False))
    crowd = {n: [tuple(normal(5, *w.shape) for w in MOVES)] for n in names}
    return [
        Call(function, {"factors": layers, **given}, bad),
        Call(function, {"factors": BATCHED, **dict.fromkeys(names, CROWD)}, crowd),
    ]


def two(function: Any, first: str, second: str, values: Any, crowd: Any, bad: list[Any]) -> Call:
    other = dict(zip((first, second), values, strict=True))
    return Call(function, other, {first: bad, second: [*bad, *crowd], "rtol": wrong.RTOL})


KIND = {"generator": wrong.GENERATOR, "dtype": wrong.DTYPE, "device": wrong.DEVICE}
# The numbers of points may be complex.
POINT_KIND = {**KIND, "dtype": wrong.POINT_DTYPE}
DRAWN = {"scale": [*wrong.FREE, -1.0], "batch": wrong.BATCH, **POINT_KIND}
SPECTRA = [*wrong.vectors(torch.tensor([2.0, 1.0], dtype=F64)), [-1.0, 2.0], [1.0, 2.0, 3.0]]
SPECTRA = [s for s in SPECTRA if s is not None]
U, S, VH = torch.linalg.svd(X, full_matrices=False)
PART = {"depth": wrong.DEPTH, "normalized": wrong.NORMALIZED}
SHAPES = [dln.EndToEnd.of(normal(2, 3), 3), dln.EndToEnd.of(X, 4), dln.EndToEnd.of(X, 3, rank=1)]
DEEP = dln.EndToEnd.of(X, 3, normalized=True)

TARGET, LOSS = normal(3, 2), losses.Quadratic(normal(3, 2))
VALUES, SPECTRUM = normal(3), torch.tensor([2.0, 1.0], dtype=F64)
PAIR = dln.Collapsed.of(POINT)
CHAINS = dln.Trajectory(
    t=torch.arange(9.0), loss=normal(9, 3), singular_values=normal(9, 3, 2).abs()
)
PATH = dln.gradient_flow(LOSS, PAIR, t_end=0.1)


def without(values: list[Any], *allowed: Any) -> list[Any]:
    """Return the values but for some that mean something to this argument."""
    return [v for v in values if not any(v is a for a in allowed)]


def numbers(values: list[Any]) -> list[Any]:
    """Return the values without tensors that hold NaN or infinity: losses show them."""
    return [
        v
        for v in values
        if not (
            type(v) is torch.Tensor
            and v.layout == torch.strided
            and v.is_cpu
            and v.isfinite().logical_not().any()
        )
    ]


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(3)


PLACES = [
    *wrong.junk(),
    None,
    "ab",
    [0.0, 1.0, 2.0],
    [0, 1],
    [0, 1, 99],
    [-1, 0, 1],
    [0, 1, wrong.HUGE],
    [],
    [True, False, True],
    [[0, 1, 2]],
    3,
    wrong.NAN,
    [0, 1, None],
]
ENTRIES = [
    *wrong.vectors(VALUES),
    torch.ones(2),
    torch.tensor(1.0),
    torch.ones(0),
    torch.ones(3, 2),
]
# Times are also a number of them, and progress may be any function.
SAVED = without(wrong.TIMES, None)
KIND = {"generator": wrong.GENERATOR, "dtype": wrong.DTYPE, "device": wrong.DEVICE}
ATOL = [*wrong.junk(), "1.5", wrong.NAN, wrong.INF, wrong.HUGE, True, [], -1.0]
REAL_JUNK = [v for v in wrong.junk() if not isinstance(v, complex)]
# A limit may be infinite, or a whole number of any type.
LIMIT = [*wrong.junk(), "ab", wrong.NAN, [], wrong.HUGE, True, -1, 2.7]
END = without(wrong.POSITIVE, None)
OBSERVE = [*(v for v in wrong.junk()), 3, "ab", {"a": 1}, {"loss": torch.sum}, {1: torch.sum}]
KEPT = {"store": wrong.STORE, "every": [*wrong.FREE, -1.0, {"days": 1}, {"steps": "a"}]}
RUN = {
    "observe": OBSERVE,
    "dense": wrong.FLAG,
    "rtol": wrong.RTOL,
    "save_at": SAVED,
    "atol": [*ATOL, [1.0, 2.0]],
    "method": [v for v in wrong.CHOICE if v is not None],
    "until": wrong.RULES,
    "progress": wrong.PROGRESS,
    **KEPT,
}
MOTION = {
    "t_end": [*END, None],
    "dt": END,
    "save_at": SAVED,
    "generator": wrong.GENERATOR,
    "progress": wrong.PROGRESS,
    **KEPT,
}
START = [*wrong.lists_of(NET, shaped=False), torch.eye(2), dln.EndToEnd]
SHARE = {
    "beta": wrong.POSITIVE,
    "kappa": [*wrong.FREE, -1.0],
    "entropy": wrong.FLAG,
    "widths": wrong.WIDTHS,
    "keep_points": wrong.FLAG,
    "observe": OBSERVE,
    **KEPT,
}
STEPS = [
    *wrong.junk(),
    None,
    "ab",
    wrong.HUGE,
    normal(2),
    normal(2, 3, 3),
    math.nan * normal(2, 3, 2),
]
PARTICLES = [*wrong.vectors(SPECTRUM), [], 1.0, torch.ones(2, 0)]
HERMITIAN = [
    *wrong.junk(),
    None,
    "ab",
    normal(3, 3),
    normal(2, 3),
    normal(3),
    torch.ones(0, 0),
    1.0,
    math.nan * torch.eye(2),
    [[1.0, 1j], [1j, 1.0]],
    torch.eye(2).to_sparse(),
]
AXES = [*wrong.junk(), "ax", 3, [], torch.ones(2)]


FILE = PATH.save(Path(tempfile.mkdtemp()) / "path.npz")


def decay(t: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(y, -1.0, out=out)
