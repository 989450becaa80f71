"""Closed forms of deep linear networks."""

from __future__ import annotations

import torch

import dln_geometry as dln
from tests.learning.wrong_calls.values import (
    F64,
    FLAG,
    NUMBER,
    OPTIONAL,
    POSITIVE,
    RULE,
    C,
    Call,
    L,
    factors,
    rule,
)

CLOSED: dict[str, Call] = {
    "balance_step": Call(
        L.balance_step,
        lambda: {
            "moments": dln.moments(factors()),
            "gradients": factors(),
            "rule": L.Rule(0.1, weight_decay=0.1),
        },
        {"rule": RULE},
    ),
    "momentum_balance_step": Call(
        L.momentum_balance_step,
        lambda: {"state": dln.moments(factors()), "velocities": factors(), "rule": rule()},
        {},
        {"state": "state|moments"},
    ),
    "closed_forms.MomentState": Call(
        lambda **k: L.momentum_balance_step(C.MomentState(**k), factors(), rule(nesterov=True)),
        lambda: {
            "moments": dln.moments(factors()),
            "cross": dln.moments(factors()),
            "velocities": factors(),
        },
        {"cross": OPTIONAL, "velocities": OPTIONAL},
    ),
    "closed_forms.stationary_moments": Call(
        C.stationary_moments,
        lambda: {"kinetic": dln.moments(factors()), "rule": rule()},
        {"kinetic": {"list"}},  # a network of depth 1 has no moments
    ),
    "closed_forms.overdamped_moments": Call(
        C.overdamped_moments,
        lambda: {
            "moments": dln.moments(factors()),
            "kinetic": [torch.zeros(2, 2, 2, dtype=F64)],
            "times": [0.0, 1.0],
            "rule": rule(),
            "corrected": True,
        },
        {"rule": RULE, "corrected": FLAG},
        {"moments": "moment"},
    ),
    "closed_forms.period_two_orbit": Call(
        C.period_two_orbit,
        lambda: {"target": [2.0], "lr": 0.1, "depth": 3},
        {
            "target": {"0", "2.7", "True", "integers", "shape", "array", "empty", "list"},
            "lr": POSITIVE,
        },
    ),
    "closed_forms.root_moments": Call(C.root_moments, lambda: {"factors": factors()}),
    "closed_forms.misalignment": Call(C.misalignment, lambda: {"factors": factors()}),
    "closed_forms.branch_end": Call(
        C.branch_end,
        lambda: {"target": [2.0], "depth": 3},
        {
            "target": {"0", "2.7", "True", "integers", "shape", "array", "empty", "list"},
            "depth": {"2.7", "inf"},
        },
    ),
    "closed_forms.global_switch": Call(
        C.global_switch,
        lambda: {"target": [2.0], "depth": 3},
        {
            "target": {"0", "2.7", "True", "integers", "shape", "array", "empty", "list"},
            "depth": {"2.7", "inf"},
        },
    ),
    "closed_forms.decayed_singular_values": Call(
        C.decayed_singular_values,
        lambda: {"target": [2.0], "weight_decay": 0.1, "depth": 3, "branch": "learned"},
        {
            "target": {"0", "2.7", "True", "integers", "shape", "array", "empty", "list"},
            "weight_decay": NUMBER,
            "depth": {"2.7", "inf"},
        },
    ),
    "closed_forms.collapse_thresholds": Call(
        C.collapse_thresholds,
        lambda: {"factors": factors(), "gradient": torch.ones(2, 2, dtype=F64)},
    ),
    "closed_forms.dead_directions": Call(
        C.dead_directions,
        lambda: {"factors": factors(), "layer": 1, "rtol": 1e-6},
        {"rtol": OPTIONAL | NUMBER},
    ),
    "closed_forms.conserved_functions": Call(C.conserved_functions, lambda: {"widths": (2, 3)}),
    "closed_forms.imbalance_rate": Call(
        C.imbalance_rate,
        lambda: {"loss": lambda x: x.square().sum(), "factors": factors(), "lr": 0.1},
        {"lr": POSITIVE},
    ),
    "closed_forms.moment_motion": Call(
        C.moment_motion,
        lambda: {
            "loss": lambda x: x.square().sum(),
            "factors": factors(),
            "order": 1,
            "weight_decay": 0.1,
        },
        {"order": {"-1", "0"}, "weight_decay": NUMBER},
    ),
    "closed_forms.rotation_rate": Call(
        C.rotation_rate,
        lambda: {
            "loss": lambda x: x.square().sum(),
            "factors": factors(),
            "lr": 0.1,
            "weight_decay": 0.1,
        },
        {"lr": POSITIVE, "weight_decay": NUMBER},
    ),
    "closed_forms.modified_end_to_end_loss": Call(
        C.modified_end_to_end_loss,
        lambda: {
            "loss": lambda x: x.square().sum(),
            "factors": factors(),
            "lr": 0.1,
            "weight_decay": 0.1,
        },
        {"lr": POSITIVE, "weight_decay": NUMBER},
    ),
}
