"""Layers, losses, rules and mechanics."""

from __future__ import annotations

import torch
from torch import nn

from tests.learning.wrong_calls.values import (
    F64,
    FLAG,
    MECHANICS,
    MODULES,
    NUMBER,
    OPTIONAL,
    POSITIVE,
    RULE,
    SEED,
    VECTORS,
    Call,
    L,
    adaptive,
    angle,
    data,
    flow_law,
    loss,
    mechanics,
    net,
    q,
    rule,
    square,
    two,
    vector,
)

RULES: dict[str, Call] = {
    "noise_equilibrium": Call(
        L.noise_equilibrium,
        lambda: {
            "symmetry": L.Rescale("a", "b"),
            "loss": lambda p, b: (p["a"] @ p["b"]).sin().sum(),
            "data": [0],
            "params": two(),
            "lr": 0.1,
            "weight_decay": 0.1,
        },
        {
            # Tensors and mappings are no sequences of minibatches, though they can be iterated.
            "data": {"nested", "names", "array", "strings", "frozen", "twice"},
            "lr": POSITIVE,
            "weight_decay": NUMBER,
        },
        {"symmetry": "symmetry|name", "params": "params|parameters|name"},
    ),
    "tangent_kernel": Call(
        L.tangent_kernel,
        lambda: {"module": net(), "inputs": data()},
        words={"inputs": "inputs|data"},
    ),
    "kernel_distance": Call(
        L.kernel_distance,
        lambda: {"before": net(), "after": net(), "inputs": data()},
        words={
            "before": "before|after|module|inputs",
            "after": "after|before|module|inputs",
            "inputs": "inputs|data",
        },
    ),
    "training_regime": Call(
        L.training_regime,
        lambda: {"before": net(), "after": net(), "inputs": data()},
        words={
            "before": "before|after|module|inputs",
            "after": "after|before|module|inputs",
            "inputs": "inputs|data",
        },
    ),
    # Layers.
    "deepen": Call(
        L.deepen,
        lambda: {"model": net(), "depth": 3, "where": "0", "hidden": 3, "generator": 0},
        {
            "model": {"twice", "frozen"},
            "where": OPTIONAL,
            "hidden": OPTIONAL,
            "generator": SEED,
        },
        {"model": "model|where|linear", "hidden": "hidden|widths"},
    ),
    "flatten_depth": Call(L.flatten_depth, lambda: {"model": net()}, {"model": MODULES | {"lazy"}}),
    "balanced_adapter_": Call(
        L.balanced_adapter_,
        lambda: {
            "adapter": (vector([0.0, 0.0]), vector([0.0], [0.0])),
            "update": two()["a"],
            "scaling": 1.0,
        },
        {"scaling": POSITIVE | OPTIONAL},
        {"adapter": "adapter|weights|update"},
    ),
    "DeepLinear": Call(
        L.DeepLinear,
        lambda: {
            "widths": (3, 2, 4),
            "bias": True,
            "rank": 2,
            "scale": 1.0,
            "distribution": "gaussian",
            "generator": 0,
            "device": "cpu",
            "dtype": F64,
        },
        {
            "bias": FLAG,
            "rank": OPTIONAL,
            "scale": POSITIVE,
            "generator": SEED,
            "device": OPTIONAL,
            "dtype": OPTIONAL,
        },
    ),
    "DeepLinear.from_linear": Call(
        L.DeepLinear.from_linear,
        lambda: {
            "linear": nn.Linear(3, 2),
            "depth": 2,
            "hidden": 2,
            "gauge": "haar",
            "generator": 0,
        },
        {
            "linear": {"meta module"},
            "hidden": OPTIONAL,
            "gauge": OPTIONAL,
            "generator": SEED,
        },
        {"hidden": "widths"},
    ),
    "DeepLinear.reset_parameters": Call(
        lambda generator: L.DeepLinear((3, 2)).reset_parameters(generator),
        lambda: {"generator": 0},
        {"generator": SEED},
    ),
    "balanced_": Call(
        L.balanced_,
        lambda: {
            "module_or_weights": nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3)),
            "end_to_end": None,
            "distribution": "gaussian",
            "rank": 2,
            "scale": 1.0,
            "gauge": None,
            "generator": 0,
        },
        {
            "module_or_weights": {"frozen", "meta module"},
            "end_to_end": OPTIONAL,
            "rank": OPTIONAL,
            "scale": POSITIVE,
            "gauge": OPTIONAL,
            "generator": SEED,
        },
        {"module_or_weights": "weights|layers"},
    ),
    "EndToEndSGD": Call(
        L.EndToEndSGD,
        lambda: {
            "params": [nn.Parameter(torch.eye(2))],
            "lr": 0.1,
            "depth": 2,
            "weight_decay": 0.0,
            "momentum": 0.0,
            "nesterov": False,
        },
        {"lr": NUMBER, "depth": {"2.7", "inf"}, "weight_decay": NUMBER, "momentum": {"0"}},
    ),
    # Losses and parameters.
    "functionalize": Call(
        L.functionalize,
        lambda: {"module": net(), "loss_fn": square, "data": data()},
        {},
        {"loss_fn": "loss", "data": "data|loss"},
    ),
    "flatten": Call(L.flatten, lambda: {"params": two()}, {"params": {"missing", "nan dict"}}),
    "unflatten": Call(
        L.unflatten,
        lambda: {"vector": vector(1.0, 2.0), "like": q()},
        {"like": {"missing", "nan dict"}},
    ),
    # Rules and mechanics.
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
