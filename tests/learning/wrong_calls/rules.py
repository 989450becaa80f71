"""Rules and mechanics."""

from __future__ import annotations

import torch

from tests.learning.wrong_calls.values import (
    FLAG,
    MECHANICS,
    MODULES,
    NUMBER,
    OPTIONAL,
    POSITIVE,
    RULE,
    VECTORS,
    Call,
    L,
    adaptive,
    angle,
    flow_law,
    loss,
    mechanics,
    q,
    rule,
    vector,
)

RULES: dict[str, Call] = {
    "Rule": Call(
        L.Rule,
        lambda: {
            "lr": 0.1,
            "momentum": 0.5,
            "weight_decay": 0.1,
            "nesterov": False,
            "dampening": 0.1,
            "potential": None,
        },
        {
            "lr": POSITIVE,
            "momentum": {"0"},
            "weight_decay": NUMBER,
            "dampening": {"0"},
            "potential": OPTIONAL | {"function"} | MODULES,
        },
    ),
    "Rule.step": Call(
        lambda loss, params, state: rule().step(loss, params, state),
        lambda: {"loss": loss, "params": q(), "state": q()},
        # In training loops NaN is not looked for, as in torch's optimisers.
        {"params": {"nan dict"}, "state": OPTIONAL | {"nan dict"}},
    ),
    "Rule.update": Call(
        lambda gradients, params, state: rule().update(gradients, params, state),
        lambda: {"gradients": q(), "params": q(), "state": q()},
        {"gradients": {"nan dict"}, "params": {"nan dict"}, "state": OPTIONAL | {"nan dict"}},
        VECTORS,
    ),
    "acceleration": Call(
        L.acceleration,
        lambda: {"rule": rule(), "loss": loss, "params": q(), "velocity": q()},
        {"rule": RULE},
        VECTORS,
    ),
    "kinetic_energy": Call(
        L.kinetic_energy,
        lambda: {"rule": rule(), "params": q(), "velocity": q()},
        {"rule": RULE},
        VECTORS,
    ),
    "charge": Call(L.charge, mechanics, MECHANICS, VECTORS),
    "kinetic_asymmetry": Call(L.kinetic_asymmetry, mechanics, MECHANICS, VECTORS),
    "charge_rate": Call(
        L.charge_rate,
        lambda: mechanics(rule=rule(nesterov=True), loss=loss),
        MECHANICS,
        VECTORS,
    ),
    "noether_residual": Call(L.noether_residual, lambda: mechanics(loss=loss), MECHANICS, VECTORS),
    "discrete_residual": Call(
        L.discrete_residual,
        lambda: {
            "symmetry": L.Scale("w"),
            "rule": rule(),
            "params": q(),
            "before": q(),
            "after": q(),
        },
        {**MECHANICS, "before": OPTIONAL},
        VECTORS,
    ),
    "preconditioned_charge": Call(
        L.preconditioned_charge,
        lambda: {
            "symmetry": L.Scale("w"),
            "params": q(),
            "step": q(),
            "scaling": {"w": torch.ones_like(q()["w"])},
        },
        {},
        VECTORS | {"step": "step", "scaling": "scaling"},
    ),
    "DiscreteLaw": Call(
        L.DiscreteLaw,
        lambda: {"symmetry": L.Scale("w"), "rule": rule()},
        {"rule": RULE, "symmetry": {"symmetry"}},
    ),
    "DiscreteLaw.observe": Call(
        lambda **k: flow_law().observe(**k),
        lambda: {"params": q(), "state": q(), "loss": angle, "rtol": 1e-6},
        {"state": OPTIONAL, "loss": OPTIONAL, "rtol": OPTIONAL | {"2.7"}},
        VECTORS,
    ),
    "DiscreteLaw.step": Call(
        lambda **k: flow_law().step(**k),
        lambda: {"charges": flow_law().observe(q()), "before": q(), "after": q()},
        {"before": OPTIONAL | {"nan dict"}, "after": {"nan dict"}},
        VECTORS,
    ),
    "overdamped_charge": Call(
        L.overdamped_charge,
        lambda: {
            "rule": rule(),
            "initial": 1.0,
            "sources": [1.0, 2.0],
            "corrected": True,
            "from_rest": True,
        },
        {
            "rule": RULE,
            "initial": {"-1", "0", "2.7", "True", "shape", "array", "integers"},
            "sources": {"integers", "shape", "array"},
            "corrected": FLAG,
            "from_rest": FLAG,
        },
    ),
    "overdamped_norm": Call(
        L.overdamped_norm,
        lambda: {
            "rule": rule(),
            "norm": 1.0,
            "gradients": [1.0, 2.0],
            "corrected": True,
            "from_rest": True,
        },
        {
            "rule": RULE,
            "norm": {"2.7", "True", "shape", "array"},
            "gradients": {"integers", "shape", "array"},
            "corrected": FLAG,
            "from_rest": FLAG,
        },
    ),
    "stationary_norm": Call(
        L.stationary_norm,
        lambda: {"rule": rule(), "gradient": 1.0},
        {"gradient": POSITIVE},
        {"rule": "weight_decay|rule"},
    ),
    "stationary_angle": Call(
        L.stationary_angle, lambda: {"rule": rule()}, {}, {"rule": "weight_decay|rule"}
    ),
    "as_rmsprop": Call(
        L.as_rmsprop,
        lambda: {"rule": rule(), "corrected": True},
        {"corrected": FLAG},
        {"rule": "weight_decay|rule"},
    ),
    "EffectiveRMSProp": Call(
        L.EffectiveRMSProp,
        lambda: {
            "lr": 0.1,
            "rho": 0.9,
            "scale": 1.0,
            "momentum": 0.5,
            "lookahead": 0.1,
            "drive": 1.0,
            "amplitude": 1.0,
            "boost": 1.0,
        },
        {
            "lr": POSITIVE,
            "rho": {"0"},
            "scale": POSITIVE,
            "momentum": {"0"},
            "lookahead": {"0"},
            "drive": POSITIVE,
            "amplitude": POSITIVE,
            "boost": POSITIVE,
        },
    ),
    "EffectiveRMSProp.init": Call(
        lambda **k: adaptive().init(**k),
        lambda: {"direction": [0.6, 0.8], "norm": 2.0},
        {"norm": {"2.7", "True"}},
    ),
    "EffectiveRMSProp.step": Call(
        lambda **k: adaptive().step(**k),
        lambda: {
            "direction": vector(0.6, 0.8),
            "gradient": vector(1.0, 2.0),
            "state": adaptive().init(vector(0.6, 0.8), 2.0),
        },
    ),
}
