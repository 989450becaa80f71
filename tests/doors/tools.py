"""Calls of ensembles, the integrator, closed forms, diagnostics and checks."""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import exact, ode, testing
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    ATOL,
    CHAINS,
    F64,
    FILE,
    KEPT,
    LIMIT,
    PATH,
    POINT,
    REAL_JUNK,
    SAVED,
    SPECTRUM,
    VALUES,
    X,
    decay,
    without,
)

UNBALANCED = dln.lambda_balanced(X, 0.5, (X.shape[1], X.shape[1], X.shape[0]))


def len_of(a):
    return a


def doubled(x, generator, store=None, every=None):
    return 2 * x


def swept(run, axes, **options):
    return dln.sweep(run, axes, **options)["len_of"].values


CALLS: dict[str, list[Call]] = {
    "sweep": [
        Call(
            swept,
            {"run": len_of, "axes": {"a": [1.0, 2.0]}},
            {
                "run": [*(v for v in wrong.junk() if not callable(v)), None, 3],
                "axes": [*(v for v in wrong.junk() if not isinstance(v, dict)), 3, {}],
                "executor": [*wrong.junk(), 3, "ab"],
                **KEPT,
                "progress": wrong.PROGRESS,
            },
        )
    ],
    "ensemble": [
        Call(
            dln.ensemble,
            {"run": doubled, "inputs": torch.ones(3, 2), "seed": 1},
            {
                "run": [*(v for v in wrong.junk() if not callable(v)), None, 3],
                "inputs": [None, 3, "ab", [], {}, [None], torch.ones(()), POINT],
                "executor": [*wrong.junk(), 3, "ab"],
                "seed": [v for v in wrong.GENERATOR if v is not None],
                "members": [v for v in wrong.COUNT if v is not None],
                "store": wrong.STORE,
                "every": [-1.0, "a", {"days": 1}],
                "progress": wrong.PROGRESS,
            },
        )
    ],
    **{
        f"exact.{f.__name__}": [
            Call(
                f,
                {"s0": SPECTRUM, "target": SPECTRUM.flip(0), "depth": 3, "t": SPECTRUM},
                {
                    "s0": [*wrong.vectors(SPECTRUM), -SPECTRUM],
                    "target": [*wrong.vectors(SPECTRUM), VALUES],
                    "t": [*wrong.vectors(SPECTRUM), -SPECTRUM],
                    "depth": wrong.DEPTH,
                    "normalized": wrong.NORMALIZED,
                },
                ("s0", "target", "t"),
            )
        ]
        for f in (exact.quadratic, exact.quadratic_residual)
    },
    "exact.two_layers": [
        Call(
            exact.two_layers,
            {"factors": UNBALANCED, "target": X, "t": [0.0, 0.5]},
            {
                "factors": [*wrong.junk(), None, [X]],
                "target": wrong.matrices(X),
                "t": wrong.LATER[:-1],
            },
        )
    ],
    **{
        f"diagnostics.{name}": [
            Call(
                getattr(dln.diagnostics, name),
                {"trajectory": CHAINS},
                {
                    "trajectory": wrong.TRAJECTORY,
                    "burn_in": [*wrong.COUNT, 8],
                    "thin": [*wrong.COUNT, 0, 5],
                    **({"method": wrong.CHOICE} if name == "effective_sample_size" else {}),
                },
            )
        ]
        for name in dln.diagnostics.__all__
    },
    "ode.integrate": [
        Call(
            ode.integrate,
            {"field": decay, "y0": torch.ones(2, 3, dtype=F64), "t_end": 0.5},
            {
                "field": [v for v in wrong.junk() if not callable(v)] + [None, "a"],
                "y0": [
                    *wrong.matrices(torch.ones(2, 3, dtype=F64), shaped=False),
                    torch.ones(2, 3, 4),
                ],
                "t_end": without(wrong.POSITIVE, 0),
                "rtol": wrong.RTOL,
                "atol": [*ATOL, [0.1] * 3],
                "blocks": [
                    *wrong.junk(),
                    "ab",
                    2,
                    (1, 1),
                    (0, 3),
                    (-1, 4),
                    (1.5, 1.5),
                    (None,),
                    wrong.NAN,
                    [True, 2],
                ],
                "method": wrong.CHOICE,
                "save_at": SAVED,
                "stop": [
                    *wrong.junk(),
                    3,
                    "ab",
                    {"a": 1},
                    {"a": (1.5, 1.0)},
                    {"a": (0, wrong.NAN)},
                    {"a": (-1, 1.0)},
                    {"a": (0, "b")},
                ],
                "max_steps": LIMIT,
                "max_evaluations": LIMIT,
                "max_seconds": [v for v in wrong.FREE if v is not None and v is not wrong.INF]
                + [-1.0],
                "record": [v for v in wrong.junk() if not callable(v)] + ["a", 3],
                "progress": [v for v in wrong.junk() if not callable(v)] + ["a", 3],
                "checkpoint": [v for v in wrong.junk() if not callable(v)] + ["a", 3],
                "checkpoint_every": [*wrong.FREE, -1.0],
                "resume": [*wrong.junk(), 3, "ab", {}, {"version": 2}, {"version": 1}],
                "correct": [*wrong.junk(), 3, "ab", (1, 2), (decay,)],
            },
        )
    ],
    "Trajectory": [
        Call(PATH.at, {"t": 0.05}, {"t": [*ATOL, 0.2, [0.1, 0.2]]}),
        Call(dln.Trajectory.load, {"path": FILE}, {"path": wrong.STORE}),
    ],
    "testing.assert_close": [
        Call(
            testing.assert_close,
            {"actual": VALUES, "expected": VALUES},
            {
                "actual": [*REAL_JUNK, None, "ab", [[1.0], [1.0, 2.0]]],
                "expected": [*REAL_JUNK, None, "ab", [[1.0], [1.0, 2.0]]],
                "ops": [*wrong.POSITIVE],
                "scale": [v for v in wrong.POSITIVE if v is not None],
                "condition": wrong.POSITIVE,
            },
            ("actual", "expected"),
        )
    ],
    "testing.assert_mean": [
        Call(
            testing.assert_mean,
            {"samples": SPECTRUM, "expected": 1.5},
            {
                "samples": [*wrong.junk(), None, "ab", [1.0], 1.0],
                "sigmas": wrong.POSITIVE,
                "expected": [*REAL_JUNK, None, "ab"],
            },
        )
    ],
    "testing.assert_order": [
        Call(
            testing.assert_order,
            {"steps": [0.1, 0.2, 0.4, 0.8], "errors": [0.1, 0.2, 0.4, 0.8], "order": 1},
            {
                "steps": [*wrong.junk(), None, "ab", [0.1, 0.2], [0.1] * 4, [-1.0, 0.2, 0.4, 0.8]],
                "errors": [*wrong.junk(), None, "ab", [0.1, 0.2]],
                "order": wrong.FREE,
                "tol": wrong.POSITIVE,
                "at_least": wrong.FLAG,
            },
        )
    ],
}
