"""Wrong values for every kind of argument, and other makes of a right array."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch

import dln_geometry as dln

NAN, INF, HUGE = math.nan, math.inf, 10**400
F64 = torch.float64


def same(x: Any) -> Any:
    return x


def junk() -> list[Any]:
    """Values that no argument of any function means."""
    return [
        object(),
        int,
        {1, 2},
        {"a": 1},
        (k for k in range(3)),
        b"3",
        1j,
        np.datetime64("2020-01-01"),
        datetime.date(2020, 1, 1),
        torch.Generator,
        [None],
        ["a"],
        np.array([None]),
        Ellipsis,
        same,
        np.ma.masked,
        slice(2),
    ]


def no_numbers() -> list[Any]:
    return [*junk(), None, "1.5", NAN, Decimal("NaN"), [], [1.0, 2.0], np.ones((2, 2)), HUGE, True]


POSITIVE = [*no_numbers(), INF, -1.0, 0, -Fraction(1, 2), np.float32(-1)]
FREE = [*no_numbers(), INF]
COUNT = [*no_numbers(), INF, -1, 2.7, 2.0, Fraction(5, 2), np.float64(2)]
FLAG = [*junk(), None, "yes", 0, 1, 2.7, NAN, [], np.ones(2, bool)]
FACTOR_JUNK = [*junk(), None, "ab", 3.0, [], (), [1.0, 2.0]]


def matrices(x: torch.Tensor, *, shaped: bool = True) -> list[Any]:
    """Return wrong values for a matrix or a batch of them, like `x` (..., m, n).

    Matrices of another size are wrong too where they are `shaped` by a point.
    """
    m, n = x.shape[-2:]
    bad = [x.clone() for _ in range(3)]
    for y, value in zip(bad, (NAN, INF, -INF), strict=True):
        y[..., 0, 0] = value
    shapes = [(0, n), (m,), (), (m, n, 0), (0,)]
    shapes += [(m + 1, n), (m, n + 1), (n + 1, m + 2)] if shaped else []
    arrays = x.numpy()
    return [
        *junk(),
        None,
        "ab",
        HUGE,
        *bad,
        *(torch.ones(s, dtype=F64) for s in shapes),
        x.to(torch.complex128),
        arrays.astype("U3"),
        arrays.astype(object) * None_like(),
        np.ma.masked_less(arrays, float(arrays.mean())),
        [[1.0, 2.0], [3.0]],
        x.reshape(-1, n).to_sparse(),
        scipy.sparse.csr_matrix(arrays.reshape(-1, n)),
        x.to("meta"),
        pd.DataFrame([["a"] * n] * m),
    ]


class None_like:
    """Turns an array of objects into one of None."""

    def __rmul__(self, other: Any) -> None:
        return None


def vectors(x: torch.Tensor) -> list[Any]:
    """Return wrong values for numbers (..., n)."""
    bad = [x.clone() for _ in range(2)]
    bad[0][..., 0], bad[1][..., -1] = NAN, INF
    arrays = x.numpy()
    return [
        *junk(),
        None,
        "ab",
        HUGE,
        *bad,
        x.to(torch.complex128),
        arrays.astype("U3"),
        np.ma.masked_less(arrays, float(arrays.max()) + 1),
        [[1.0, 2.0], [3.0]],
        x.to("meta"),
        x.reshape(1, -1).to_sparse(),
        pd.Series(["a", "b"]),
    ]


def no_complex(values: list[Any]) -> list[Any]:
    """Return wrong values without complex ones, for arguments that may be complex."""
    return [v for v in values if not getattr(getattr(v, "dtype", None), "is_complex", False)]


def lists_of(layers: Any, *, shaped: bool = True) -> list[Any]:
    """Return wrong values for a sequence of matrices like the layers; `shaped` by others."""
    first, *rest = layers
    m, n = first.shape[-2:]
    wrong = [(w, *rest) for w in matrices(first, shaped=shaped)]
    wrong += [(first,) * (len(layers) + 3)] if shaped else []
    wrong += [
        torch.ones(2, 2, 2),
        np.ones((2, 2, 2)),
        pd.DataFrame(np.ones((2, 2))),
        (
            first.expand(5, m, n).contiguous()
            if first.ndim == 2
            else torch.ones(7, m, n, dtype=F64),
            *rest,
        ),
    ]
    return FACTOR_JUNK + wrong


def makes(x: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """Yield other makes of an array, which every door reads as the same numbers."""
    plain = x.numpy()
    yield "numpy", plain
    yield "big-endian, reversed", plain[::-1].astype(">f8")[::-1]
    yield "list", plain.tolist()
    yield "parameter", torch.nn.Parameter(x, requires_grad=False)
    yield "objects", plain.astype(object)
    if x.ndim == 2:
        yield "frame", pd.DataFrame(plain, index=range(5, 5 + len(plain)))
    if x.ndim == 1:
        yield "series", pd.Series(plain, index=range(5, 5 + len(plain)))


POINTS = [*junk(), None, "ab", 3.0, [], (), torch.eye(2), [torch.eye(2)], dln.EndToEnd]
DEPTH = [v for v in no_numbers() if v is not None] + [None, 0, 0.5, -1, -INF]
NORMALIZED = [v for v in FLAG if v is not None]
GENERATOR = [v for v in no_numbers() if v is not None] + [
    -1,
    2.7,
    "3",
    2**64,
    np.random.default_rng(0),
]
DTYPE = [*junk(), "float64", np.float64, torch.int64, torch.complex128, torch.bool, 64, NAN, []]
POINT_DTYPE = [v for v in DTYPE if v is not torch.complex128]
DEVICE = [*junk(), "cuda:77", "nowhere", "meta", "", 2.7, NAN, [], 99, -5]
TIMES = [
    *junk(),
    "ab",
    NAN,
    [],
    [NAN, 1.0],
    [0.0, INF],
    [-1.0, 0.1],
    [0.2, 0.1],
    [0.0, 1e9],
    [[0.0, 0.1]],
    ["a", "b"],
    [0.0, None],
    [0.0, 0.1j],
    np.ma.masked_less([0.0, 0.1], 0.05),
    HUGE,
    True,
    2.7,
    [0.1, 0.1],
]
RTOL = [v for v in POSITIVE if v is not None]
SHAPE = [
    *no_numbers(),
    (2.7, 3),
    (2,),
    (0, 3),
    (-1, 3),
    "23",
    3,
    (NAN, 2),
    (True, 2),
    (HUGE, 2),
    {3, 2},
    (2, 3, 4),
    (2, None),
    ("2", "3"),
    np.array([2.0, 3.0]),
    torch.tensor([2.5, 3.0]),
    (INF, 2),
]
BATCH = [
    *junk(),
    None,
    "ab",
    2.7,
    NAN,
    -1,
    True,
    HUGE,
    (2.7,),
    (-1,),
    (0, -2),
    ("a",),
    (HUGE,),
    {3, 2},
]
SEQUENCE = [
    *junk(),
    "ab",
    2.7,
    NAN,
    -1,
    0,
    True,
    HUGE,
    (3,),
    (3, 0, 3),
    (3, -1, 3),
    (3, 2.5, 3),
    (3, None, 3),
    (HUGE,) * 3,
    np.array([3.0, 3.0]),
    {3, 4},
    [],
]
WIDTHS = [*SEQUENCE, (7,) * 7]
RANK = [v for v in COUNT if v is not None] + [99]
CHOICE = [*junk(), None, "none of them", 3, True, NAN, []]
PROGRESS = [*(v for v in junk() if not callable(v)), "yes", 3, NAN, []]
STORE = [*junk(), 3.5, NAN, [], True]
RULES = [
    *junk(),
    "loss",
    3,
    [],
    {"lass": 1.0},
    {"loss": -1.0},
    {"loss": NAN},
    {"loss": "a"},
    {"loss": None},
    {"loss": 1j},
    {"steps": 2.7},
    {"loss": True},
    {3: 1.0},
]
TRAJECTORY = [*junk(), None, "ab", 3.0, [], torch.ones(3), dln.Trajectory]


def losses_of(shape: tuple[int, int]) -> list[Any]:
    m, n = shape
    other = dln.losses.Quadratic(torch.ones(m + 1, n, dtype=F64))
    batch = dln.losses.Quadratic(torch.ones(7, m, n, dtype=F64))
    return [*junk(), None, "ab", 3.0, [], torch.ones(m, n), dln.losses.Quadratic, other, batch]


# Times and radii may be arrays, and zero.
LATER = [*junk(), None, "1.5", NAN, INF, HUGE, -1.0, [NAN], True]
