from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.support import Numbers, check_form

X = torch.ones(2, 3)
FORM = {"x": Numbers.like(X), "n": int, "t": [float, ...], "pair": [str, None], "by": {str: int},
        "rows": Numbers.like(X, rows=True), "free": ({}, {"a": bool})}  # fmt: skip
GOOD = {"x": X, "n": 0, "t": [0.0, math.inf], "pair": ["a", None], "by": {"rk8": 3},
        "rows": torch.ones(5, 2, 3), "free": {"a": True}}  # fmt: skip


def test_what_fits():
    check_form(GOOD, FORM, "state")
    check_form({**GOOD, "t": [], "by": {}, "free": {}}, FORM, "state")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.double()}, r"state.x must be a tensor torch.float32 \(2, 3\), got torch.float64"),
        ({"x": X[:1]}, "state.x must be a tensor"),
        ({"x": X * math.nan}, "state.x must not hold NaN, got 6"),
        ({"x": X.to_sparse()}, "state.x must be a tensor"),
        ({"rows": X}, r"state.rows must be a tensor torch.float32 \('any', 2, 3\)"),
        ({"n": -1}, "state.n must be at least 0, got -1"),
        ({"n": True}, "state.n must be int, got True"),
        ({"n": 1.0}, "state.n must be int, got 1.0"),
        ({"t": [math.nan]}, r"state.t\[0\] must be float, got nan"),
        ({"t": (0.0,)}, "state.t must be a list"),
        ({"pair": ["a"]}, "state.pair must hold 2 parts, got 1"),
        ({"pair": ["a", "b"]}, r"state.pair\[1\] must be None, got 'b'"),
        ({"by": {1: 2}}, "a name in state.by must be str, got 1"),
        ({"by": {"a": "b"}}, "state.by.a must be int, got 'b'"),
        ({"free": {"a": 1}}, "state.free must have one of 2 forms, got names"),
        ({"more": 1}, "state must hold .*, got names"),
    ],
)
def test_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        check_form({**GOOD, **change}, FORM, "state")


def test_infinity_is_refused_where_it_is_asked():
    x = torch.tensor([math.inf])
    check_form(x, Numbers.like(x), "x")
    with pytest.raises(ValueError, match="x must be finite, got infinity"):
        check_form(x, Numbers.like(x, finite=True), "x")
