"""Calls of the functions of the landscape."""

from __future__ import annotations

import torch

from dln_geometry import landscape, losses
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import normal, without

F64 = torch.float64
TARGET = losses.Quadratic(normal(3, 2))
LAYERS = (normal(2, 2), normal(3, 2))
CRITICAL = landscape.critical_factors(TARGET, (2, 2, 2, 3), [0], generator=1)
PATTERN = landscape.RankPattern.of(LAYERS)
LOSSES = [*wrong.losses_of((3, 2)), losses.Huber(normal(3, 2)), losses.Quadratic(normal(2, 2))]
LOSSES = [v for v in LOSSES if v is not None]
RANK = [*wrong.COUNT, 7]
MODES = [*wrong.junk(), "ab", 3, [0, 0], [7], [-1], [0.5], [True], wrong.NAN]

CALLS: dict[str, list[Call]] = {
    "landscape.layer_hessian": [
        Call(
            landscape.layer_hessian,
            {"loss": TARGET, "factors": LAYERS},
            {"loss": LOSSES, "factors": wrong.lists_of(LAYERS)},
        )
    ],
    "landscape.classify": [
        Call(
            landscape.classify,
            {"loss": TARGET, "factors": CRITICAL},
            {
                "loss": LOSSES,
                "factors": [*wrong.FACTOR_JUNK, LAYERS],
                "rtol": wrong.POSITIVE,
                "spectrum": wrong.FLAG,
            },
        )
    ],
    "landscape.critical_factors": [
        Call(
            landscape.critical_factors,
            {"loss": TARGET, "widths": (2, 2, 2, 3), "modes": [0], "generator": 1},
            {
                "loss": LOSSES[:-1],
                "widths": [*wrong.SEQUENCE, (3, 2, 3)],
                "modes": MODES,
                "zeros": [v for v in [*wrong.COUNT, 0, 1, 4] if v is not None],
                "generator": wrong.GENERATOR,
            },
        )
    ],
    "landscape.saddle_index": [
        Call(
            landscape.saddle_index,
            {"target": torch.tensor([2.0, 1.0], dtype=F64), "widths": (2, 2, 3), "modes": [1]},
            {
                "target": [*wrong.vectors(torch.tensor([2.0, 1.0], dtype=F64)), [1.0, 2.0], [1.0]],
                "widths": wrong.SEQUENCE,
                "modes": MODES,
            },
            ("target",),
        )
    ],
    "landscape.CriticalPoint": [
        Call(
            landscape.CriticalPoint,
            {
                "kind": "strict saddle",
                "modes": (0,),
                "tightened": False,
                "value": 0.5,
                "gradient": 0.0,
                "index": 1,
                "nullity": 3,
            },
            {},
        )
    ],
    "landscape.RankPattern": [
        Call(
            landscape.RankPattern,
            {"widths": PATTERN.widths, "intervals": PATTERN.intervals},
            {"widths": wrong.SEQUENCE, "intervals": [*wrong.junk(), {(0, 2): 1}, {(2, 0): 1}]},
        )
    ],
    "landscape.strata": [
        Call(
            lambda widths, rank: [p.dimension for p in landscape.strata(widths, rank)],
            {"widths": (2, 2, 3), "rank": 1},
            {"widths": wrong.SEQUENCE, "rank": RANK},
        )
    ],
    "landscape.fibre_dimension": [
        Call(
            landscape.fibre_dimension,
            {"widths": (2, 2, 3), "rank": 1},
            {"widths": wrong.SEQUENCE, "rank": RANK},
        )
    ],
    "landscape.learning_coefficient": [
        Call(
            landscape.learning_coefficient,
            {"widths": (2, 2, 3), "rank": 1},
            {"widths": wrong.SEQUENCE, "rank": RANK},
        )
    ],
    "landscape.LearningCoefficient": [
        Call(landscape.LearningCoefficient, {"value": 0.5, "multiplicity": 1}, {})
    ],
    "landscape.estimate_learning_coefficient": [
        Call(
            landscape.estimate_learning_coefficient,
            {"factors": LAYERS, "beta": 10.0, "steps": 6, "chains": 3, "generator": 1},
            {
                "factors": wrong.lists_of(LAYERS, shaped=False),
                "beta": without(wrong.POSITIVE, None),
                "strength": without(wrong.POSITIVE, None),
                "steps": [*wrong.COUNT, 1],
                "chains": [*wrong.COUNT, 1],
                "generator": wrong.GENERATOR,
            },
        )
    ],
}
