"""Calls of losses."""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry import losses
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    ENTRIES,
    LOSS,
    PLACES,
    TARGET,
    VALUES,
    X,
    normal,
    numbers,
)

HALVES = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
MORE = [v for v in ENTRIES if v is not None]
REDUCTION = [*wrong.CHOICE, "none"]
WEIGHTED = {"weights": MORE, "offsets": MORE}


def complex_too(loss):
    """Return what leaves complex matrices out, for a loss that takes them."""
    return wrong.no_complex if getattr(loss, "complex_numbers", False) else list


CALLS: dict[str, list[Call]] = {
    "losses.Quadratic": [
        Call(
            losses.Quadratic,
            {"target": TARGET},
            {
                "target": wrong.no_complex(wrong.matrices(TARGET, shaped=False)),
                "reduction": REDUCTION,
            },
        )
    ],
    "losses.LpNorm": [
        Call(
            losses.LpNorm,
            {"target": TARGET, "p": 3},
            {
                "target": wrong.matrices(TARGET, shaped=False),
                "p": [*wrong.FREE, 0.5, -1],
                "reduction": REDUCTION,
            },
            ("target",),
        ),
        Call(
            losses.LpNorm,
            {"target": normal(5, 3), "p": 3, "inputs": normal(5, 2)},
            {
                "target": [*wrong.matrices(normal(5, 3), shaped=False), normal(4, 3)],
                "inputs": [v for v in wrong.matrices(normal(5, 2), shaped=False) if v is not None],
            },
            ("target", "inputs"),
        ),
    ],
    "losses.Huber": [
        Call(
            losses.Huber,
            {"target": TARGET, "delta": 0.5},
            {
                "target": wrong.matrices(TARGET, shaped=False),
                "delta": wrong.POSITIVE,
                "reduction": REDUCTION,
            },
            ("target",),
        )
    ],
    "losses.Sensing": [
        Call(
            losses.Sensing,
            {"operators": normal(3, 3, 2), "values": VALUES},
            {
                "operators": wrong.no_complex(wrong.matrices(normal(3, 3, 2), shaped=False)),
                "values": ENTRIES,
                "reduction": REDUCTION,
            },
            ("operators", "values"),
        )
    ],
    "losses.Regression": [
        Call(
            losses.Regression,
            {"inputs": normal(5, 2), "outputs": normal(5, 3)},
            {
                "inputs": wrong.no_complex(wrong.matrices(normal(5, 2), shaped=False)),
                "outputs": [*wrong.matrices(normal(5, 3), shaped=False), normal(4, 3)],
                "reduction": REDUCTION,
            },
            ("inputs", "outputs"),
        ),
        Call(
            losses.Regression,
            {"inputs": normal(4, 5, 2), "outputs": normal(4, 5, 3)},
            {"outputs": [normal(3, 5, 3)]},
        ),
    ],
    "losses.Completion": [
        Call(
            losses.Completion,
            {"rows": [0, 1, 2], "cols": [0, 1, 1], "values": VALUES, "shape": (3, 2)},
            {
                "rows": PLACES,
                "cols": PLACES,
                "values": wrong.no_complex(ENTRIES),
                "shape": [v for v in wrong.SHAPE if not isinstance(v, set)],
                "reduction": REDUCTION,
            },
            ("values",),
        )
    ],
    **{
        name: [
            Call(
                kind,
                {"rows": [0, 1, 2], "cols": [0, 1, 1], "values": HALVES, "shape": (3, 2)},
                {
                    "rows": PLACES,
                    "cols": PLACES,
                    "values": ENTRIES if extra else wrong.no_complex(ENTRIES),
                    "shape": [v for v in wrong.SHAPE if not isinstance(v, set)],
                    **extra,
                },
                ("values",),
            )
        ]
        for name, kind, extra in (
            ("losses.Logistic", losses.Logistic, WEIGHTED),
            ("losses.Poisson", losses.Poisson, WEIGHTED),
            ("Validation", dln.Validation, {}),
        )
    },
    "losses.Completion.from_matrix": [
        Call(
            losses.Completion.from_matrix,
            {"x": X},
            {
                "x": [
                    *wrong.junk(),
                    None,
                    "ab",
                    normal(2),
                    normal(2, 3, 2),
                    math.nan * X,
                    X * math.inf,
                    torch.ones(0, 2),
                    [[1.0], [1.0, 2.0]],
                    X.to("meta"),
                    1.0,
                ]
            },
            ("x",),
        )
    ],
    "losses.from_callable": [
        Call(
            losses.from_callable,
            {"f": torch.sum},
            {"f": [v for v in wrong.junk() if not callable(v)]},
        )
    ],
    # Inside a run: its arguments come from the engine.
    "losses.narrowed_loss": [
        Call(
            losses.narrowed_loss,
            {"loss": losses.Quadratic(X), "batch": (), "samples": torch.tensor([0])},
            {},
        )
    ],
    "losses.as_dense": [
        Call(
            losses.as_dense,
            {"x": X},
            {"x": numbers(wrong.no_complex(wrong.matrices(X, shaped=False)))},
            ("x",),
        )
    ],
    **{
        f"losses.{type(loss).__name__}.{method}": [
            Call(
                getattr(loss, method),
                {"x": X},
                {"x": numbers(complex_too(loss)(wrong.matrices(X)))},
                ("x",),
            )
        ]
        for method in ("value", "gradient")
        for loss in (
            LOSS,
            losses.Completion([0, 1], [0, 1], [1.0, 2.0], (3, 2)),
            losses.Sensing(normal(3, 3, 2), VALUES),
        )
    },
    "FreeEnergy": [
        Call(
            dln.FreeEnergy,
            {"loss": LOSS, "beta": 1.3, "depth": 3, "shape": (3, 2), "rank": 2},
            {
                "loss": wrong.losses_of((3, 2))[:-1],
                "beta": wrong.POSITIVE,
                "depth": wrong.DEPTH,
                "shape": wrong.SHAPE,
                "rank": wrong.RANK,
                "widths": wrong.WIDTHS,
            },
        )
    ],
}
