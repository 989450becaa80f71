"""Layers, losses, parameters and kernels."""

from __future__ import annotations

import torch
from torch import nn

from tests.learning.wrong_calls.values import (
    F64,
    FLAG,
    MODULES,
    NUMBER,
    OPTIONAL,
    POSITIVE,
    SEED,
    Call,
    L,
    data,
    net,
    q,
    square,
    two,
    vector,
)

LAYERS: dict[str, Call] = {
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
}
