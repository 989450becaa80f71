"""One valid call of every public name of `learning`, and the values that are wrong in any of them.

`arguments` are the right values, made anew for each call; `right` names for each argument the
values of `WRONG` that have a meaning there, and `words` a pattern that a refusal must hold in place
of the name of the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam

from dln_geometry import learning

F64 = torch.float64


def _frozen():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)


def _twice():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, layer)


# Made anew for each call: some functions change what they are given.
WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "text",
    "empty text": lambda: "",
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-1": lambda: -1,
    "0": lambda: 0,
    "2.7": lambda: 2.7,
    "1e400": lambda: 10**400,
    "True": lambda: True,
    "1j": lambda: 1j,
    "list": list,
    "dict": dict,
    "nested": lambda: [[1.0], [2.0, 3.0]],
    "names": lambda: ["unknown", "unknown"],
    "missing": lambda: {"unknown": torch.ones(2, dtype=F64)},
    "nan dict": lambda: {"w": torch.full((2,), math.nan, dtype=F64)},
    "scalars": lambda: {"w": 1.0},
    "integers": lambda: torch.arange(6).reshape(2, 3),
    "complex": lambda: torch.ones(2, 3, dtype=torch.complex64),
    "shape": lambda: torch.ones(5, 7, 2, dtype=F64),
    "empty": lambda: torch.ones(0, 3, dtype=F64),
    "nan tensor": lambda: torch.full((2, 3), math.nan, dtype=F64),
    "meta": lambda: torch.ones(2, 3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "array": lambda: np.ones((5, 7)),
    "strings": lambda: np.array(["a", "b"]),
    "function": lambda: lambda *a, **k: None,
    "class": lambda: nn.Linear,
    "object": object,
    "no parameters": nn.Tanh,
    "frozen": _frozen,
    "lazy": lambda: nn.LazyLinear(3),
    "meta module": lambda: nn.Linear(3, 2, device="meta"),
    "twice": _twice,
    "optimizer": lambda: SGD(nn.Linear(3, 2).parameters(), lr=0.1),
    "adam": lambda: Adam(nn.Linear(3, 2).parameters(), lr=0.1),
    "rule": lambda: learning.Rule(lr=0.1),
    "symmetry": lambda: learning.Scale("unknown"),
}

POSITIVE, NUMBER = {"2.7"}, {"2.7", "0"}
SEED, FLAG, OPTIONAL = {"None", "0"}, {"True"}, {"None"}
RULE = {"rule"}
MODULES = {"no parameters", "frozen", "meta module", "twice"}  # functions of tensors


@dataclass
class Call:
    """A valid call, the values that are right there by argument, and the word of messages."""

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]
    right: dict[str, set[str]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def vector(*values):
    return torch.tensor(values, dtype=F64)


def q():
    return {"w": vector(1.0, 2.0)}


def two():
    return {"a": vector([3.0, 1.0], [1.0, -2.0]), "b": vector([2.0, 1.0], [0.5, 1.0])}


def loss(params):
    return (params["w"] ** 4).sum()


def angle(params):
    return params["w"][0] / params["w"].norm()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def square(y, *_):
    return y.square().mean()


def data():
    return torch.linspace(-1, 2, 15, dtype=F64).reshape(5, 3).cos()


def rewritten():
    return learning.dcs_(net(), "0.weight")


def monitored(**options):
    module = net()
    return {"module": module, "optimizer": SGD(module.parameters(), lr=0.1), **options}


def factors():
    return (vector([1.0, 2.0], [0.5, 1.0]), vector([1.0, 0.3], [-1.0, 1.0]))


def adaptive():
    return learning.as_rmsprop(rule())


def rule(**options):
    return learning.Rule(**{"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, **options})


def mechanics(**more):
    return {"symmetry": learning.Scale("w"), "rule": rule(), "params": q(), "velocity": q(), **more}


MECHANICS = {"rule": RULE}
# Dicts with other names than the others are refused by the first that is compared with them, or by
# the symmetry, which does not find its parameter.
VECTORS = {"params": "params|parameters|name", "symmetry": "symmetry|name", "after": "before|after"}


def plane():
    return learning.Mirror(vector([0.6], [-0.8]))


def swapped():
    return learning.Mirror.swap(two(), "a", "b")


def product(params):
    return (params["a"] * params["b"]).sin().sum()


def flow_law():
    return learning.DiscreteLaw(learning.Scale("w"), rule())


def step(params):
    return {name: 0.9 * x for name, x in params.items()}


L, C = learning, learning.closed_forms

POINT = {"params": r"\bq\b|params"}
SWAPPED = {"first": "parameters|params|first", "second": "parameters|params|second"}
SEARCHED = {"module": "module|example_input", "example_input": "example_input|data"}
