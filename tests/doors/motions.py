"""Calls of flows and random motions."""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry import losses
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    BATCH,
    END,
    F64,
    FREE,
    HERMITIAN,
    KEPT,
    LOSS,
    MOTION,
    NET,
    OBSERVE,
    PAIR,
    PARTICLES,
    RUN,
    SHARE,
    SPECTRUM,
    START,
    STEPS,
    normal,
    seed,
    without,
)

UNBALANCED = normal(3, 2), normal(2, 3)
SPECTRUM_OF_FIVE = torch.tensor([0.5, 0.8, 1.0, 1.5, 2.5], dtype=F64)

CALLS: dict[str, list[Call]] = {
    "mean_field_flow": [
        Call(
            dln.mean_field_flow,
            {"density": SPECTRUM_OF_FIVE, "depth": 3, "beta": 1.3, "t_end": 0.01, "points": 16},
            {
                "density": wrong.vectors(SPECTRUM_OF_FIVE),
                "depth": wrong.DEPTH,
                "loss": [v for v in wrong.junk() if not callable(v)],
                "beta": wrong.POSITIVE,
                "kappa": without(wrong.POSITIVE, 0),
                "entropy": wrong.FLAG,
                "aspect": [*wrong.POSITIVE, 0.5],
                "t_end": wrong.POSITIVE,
                "save_at": [*wrong.junk(), "ab", wrong.NAN, [1.0, 0.5], [-1.0]],
                "points": [*wrong.COUNT, 3],
                "rtol": [v for v in wrong.RTOL if v is not None],
            },
            ("density",),
        )
    ],
    "gauge_noise": [
        Call(
            dln.gauge_noise,
            {"factors": UNBALANCED, "beta": 1.0, "t_end": 0.1, "steps": 3, "generator": 1},
            {
                "factors": [*wrong.lists_of(UNBALANCED, shaped=False), NET],
                "beta": wrong.POSITIVE,
                "t_end": wrong.POSITIVE,
                "steps": wrong.COUNT,
                "generator": wrong.GENERATOR,
            },
        )
    ],
    "gradient_flow": [
        Call(
            dln.gradient_flow,
            {"loss": LOSS, "start": PAIR, "t_end": 0.1},
            {
                "loss": wrong.losses_of((3, 2))[:-1],
                "start": START,
                "t_end": without(wrong.POSITIVE, 0),
                "engine": wrong.CHOICE,
                "precision": [v for v in wrong.CHOICE if v is not None],
                "rebalance": [v for v in wrong.POSITIVE if v is not None],
                "keep_points": wrong.FLAG,
                **RUN,
            },
        ),
        Call(
            dln.gradient_flow,
            {"loss": LOSS, "start": BATCH, "t_end": 0.1},
            {"loss": [losses.Quadratic(normal(5, 3, 2))]},
        ),
    ],
    "free_energy_flow": [
        Call(
            dln.free_energy_flow,
            {"loss": LOSS, "start": PAIR, "beta": 1.3, "t_end": 0.1},
            {
                "loss": wrong.losses_of((3, 2))[:-1],
                "start": [*wrong.POINTS, NET],
                "beta": wrong.POSITIVE,
                "widths": wrong.WIDTHS,
                "t_end": without(wrong.POSITIVE, 0),
                **RUN,
            },
        )
    ],
    "kirwan_ness_flow": [
        Call(
            dln.kirwan_ness_flow,
            {"factors": FREE, "t_end": 0.1},
            {
                "factors": wrong.lists_of(FREE, shaped=False),
                "t_end": without(wrong.POSITIVE, 0),
                **RUN,
            },
        )
    ],
    "balancing_flow": [
        Call(
            dln.balancing_flow,
            {"factors": FREE, "t": 0.1},
            {
                "factors": wrong.lists_of(FREE, shaped=False),
                "observe": OBSERVE,
                "progress": wrong.PROGRESS,
                **KEPT,
                "t": [
                    *wrong.junk(),
                    None,
                    "a",
                    wrong.NAN,
                    -1.0,
                    [0.2, 0.1],
                    [wrong.NAN],
                    [],
                    [[0.1]],
                    wrong.HUGE,
                    True,
                    [None],
                    ["a"],
                    1j,
                ],
            },
        )
    ],
    "balancing_velocity": [
        Call(
            dln.balancing_velocity,
            {"factors": FREE},
            {"factors": wrong.lists_of(FREE, shaped=False)},
        )
    ],
    "langevin": [
        Call(
            dln.langevin,
            {"loss": LOSS, "start": PAIR, "beta": 1.3, "t_end": 0.01, "dt": 0.005},
            {
                "loss": [v for v in wrong.losses_of((3, 2))[:-1] if v is not None],
                "start": START,
                "method": wrong.CHOICE,
                "upstairs": wrong.FLAG,
                "chains": [v for v in wrong.COUNT if v is not None],
                **SHARE,
                **MOTION,
            },
            fresh={"generator": seed},
        ),
        Call(
            dln.langevin,
            {
                "loss": LOSS,
                "start": PAIR,
                "beta": 1.3,
                "t_end": 0.01,
                "increments": 0.1 * normal(2, 3, 2),
            },
            {"increments": [v for v in STEPS if v is not None]},
        ),
    ],
    "brownian_motion": [
        Call(
            dln.brownian_motion,
            {"start": PAIR, "t_end": 0.01, "dt": 0.005},
            {"start": START, "upstairs": wrong.FLAG, **MOTION},
            fresh={"generator": seed},
        )
    ],
    "sample_gibbs": [
        Call(
            dln.sample_gibbs,
            {"loss": LOSS, "start": PAIR, "beta": 1.3, "draws": 2, "burn_in": 2},
            {
                "loss": wrong.losses_of((3, 2))[:-1],
                "start": [*wrong.POINTS, NET],
                "draws": wrong.COUNT,
                "thin": wrong.COUNT,
                "burn_in": wrong.COUNT,
                "dt": END,
                "generator": wrong.GENERATOR,
                "progress": wrong.PROGRESS,
                **{**SHARE, "kappa": wrong.POSITIVE},
            },
            fresh={"generator": seed},
        )
    ],
    "dyson": [
        Call(
            dln.dyson,
            {"start": SPECTRUM, "dyson_index": 1, "t_end": 0.01},
            {
                "start": PARTICLES,
                "dyson_index": without(wrong.POSITIVE, wrong.INF),
                "confinement": [*wrong.FREE, -1.0],
                "scheme": wrong.CHOICE,
                **MOTION,
            },
            fresh={"generator": seed},
        ),
        Call(
            dln.dyson,
            {"start": SPECTRUM, "dyson_index": math.inf, "t_end": 0.1},
            {"rtol": wrong.RTOL},
        ),
        Call(
            dln.dyson,
            {
                "start": SPECTRUM,
                "dyson_index": 1.5,
                "t_end": 0.1,
                "scheme": "implicit",
                "increments": 0.1 * normal(3, 2),
            },
            {"increments": [v for v in [*STEPS, normal(3, 3)] if v is not None][:-1]},
        ),
    ],
    "singular_dyson": [
        Call(
            dln.singular_dyson,
            {"start": SPECTRUM, "shape": (3, 2), "t_end": 0.01},
            {
                "start": [*PARTICLES, -SPECTRUM],
                "dyson_index": without(wrong.POSITIVE, wrong.INF),
                "shape": wrong.SHAPE,
                "signed": wrong.FLAG,
                "confinement": [*wrong.FREE, -1.0],
                **MOTION,
            },
            fresh={"generator": seed},
        ),
        Call(
            dln.singular_dyson,
            {"start": SPECTRUM, "shape": (3, 2), "dyson_index": math.inf, "t_end": 0.1},
            {"rtol": wrong.RTOL},
        ),
    ],
    "dln_dyson": [
        Call(
            dln.dln_dyson,
            {
                "start": SPECTRUM,
                "depth": 3,
                "beta": 1.3,
                "t_end": 0.01,
                "dt": 0.005,
                "shape": (3, 2),
            },
            {
                "start": [*PARTICLES, -SPECTRUM],
                **{**SHARE, **MOTION},
                "depth": wrong.DEPTH,
                "normalized": wrong.NORMALIZED,
                "shape": [v for v in wrong.SHAPE if v is not None],
                "loss": [
                    v for v in wrong.losses_of((3, 2))[:-3] if v is not None and v is not wrong.same
                ],
            },
            fresh={"generator": seed},
        ),
        Call(
            dln.dln_dyson,
            {"start": SPECTRUM, "depth": 3, "beta": 1.3, "t_end": 0.01, "kappa": 0.0},
            {"rtol": wrong.RTOL, "field": wrong.CHOICE},
        ),
    ],
    "isospectral_flow": [
        Call(
            dln.isospectral_flow,
            {"start": torch.eye(2, dtype=F64), "dyson_index": 2.5, "t_end": 0.01, "dt": 0.001},
            {
                "start": HERMITIAN,
                "dyson_index": without(wrong.POSITIVE, wrong.INF),
                "keep_points": wrong.FLAG,
                **{**MOTION, "dt": wrong.POSITIVE},
            },
            fresh={"generator": seed},
        ),
        Call(
            dln.isospectral_flow,
            {
                "start": torch.eye(2),
                "dyson_index": math.inf,
                "t_end": 0.1,
                "dt": 0.01,
                "generator": 3,
            },
            {"rtol": wrong.RTOL},
        ),
    ],
}
