"""Every argument of searches, symmetries and mirrors, given things that it is not."""

from __future__ import annotations

import inspect
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry import learning

WRONG = [
    None, True, -1, 0, 2.7, "a", b"x", float("nan"), float("inf"), [], {}, object(), int, 1j,
    torch.tensor(float("nan")), np.array([1, 2]), torch.zeros(2, 2), 10**400,
]  # fmt: skip
AXES = {"0.weight": 0, "0.bias": 0, "2.weight": 1}


@cache
def setting():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = torch.randn(7, 4).double(), torch.randn(7, 3).double()
    loss, params = learning.functionalize(net, functional.mse_loss, (x, y))
    mirror = learning.Mirror.permutation(params, AXES, 0, 1)
    return net, x, y, loss, params, mirror


NET, X, Y, LOSS, P, M = setting()
FAMILY = learning.MirrorFamily(
    "permutation", {n: (a, torch.arange(6)[:, None]) for n, a in AXES.items()}, 6
)
GROUP = learning.symmetries_of(NET)[0]
SCALE = learning.Scale("0.weight")
H = torch.tensor([-0.5, 1.0])
ROW, ORDER, COORDINATES = torch.ones(6), torch.arange(6), torch.zeros(M.dimension)
SQUARE, ZEROS = torch.ones(6, 6), torch.zeros(6, 6)
PAIR = {"u": torch.ones(3), "v": torch.ones(3)}

CALLS = {
    "symmetries_of": lambda module=NET, example_input=X, loss="cross_entropy": (
        learning.symmetries_of(module, example_input, loss=loss)
    ),
    "mirrors_of": lambda module=NET, example_input=X: learning.mirrors_of(module, example_input),
    "collapse_report": lambda module=NET, loss_fn=functional.mse_loss, data=(X, Y), **more: (
        learning.collapse_report(module, loss_fn, data, families=[], **more)
    ),
    "report options": lambda weight_decay=0.1, count=1, tol=1e-3, families=(), generator=3: (
        learning.collapse_report(
            NET, functional.mse_loss, (X, Y), weight_decay=weight_decay, count=count, tol=tol,
            families=families, generator=generator,
        )
    ),
    "Part": lambda name="w", axis=0, units=2, block=1, start=0: (
        learning.Part(name, axis, units, block, start)
    ),
    "slices": lambda tensor=ROW: GROUP.first[1].slices(tensor),
    "SymmetricGroup": lambda kind="permutation", first=GROUP.first, second=(), through=("a",),
    epsilon=0.1, reading=(): (
        learning.SymmetricGroup(kind, first, second, through, epsilon, reading)
    ),
    "act": lambda params=P, element=ORDER: GROUP.act(params, element),
    "random_element": lambda params=P, generator=3: GROUP.random_element(params, generator),
    "check": lambda params=P: GROUP.check(params),
    "symmetry_residual": lambda loss=LOSS, symmetry=SCALE, params=P: (
        learning.symmetry_residual(loss, symmetry, params)
    ),
    "is_symmetric": lambda rtol=0.1: learning.is_symmetric(LOSS, SCALE, P, rtol=rtol),
    "Symmetry": lambda action=len, shape=(2,), degree=1: (
        learning.Symmetry(action, shape=shape, degree=degree)
    ),
    "Translation": lambda name="0.bias", axis=0: (
        learning.Translation(name, None, axis).conserved(P)
    ),
    "direction": lambda direction=ROW: (
        learning.Translation("0.bias", direction).conserved(P)
    ),
    "Scale": lambda names="0.weight", axis=1: learning.Scale(names, axis).conserved(P),
    "Rescale": lambda first=("0.weight", "0.bias"), second="2.weight", axes=(0, 1): (
        learning.Rescale(first, second, axes).conserved(P)
    ),
    "Rotation": lambda names="0.weight", generator=ZEROS, axis=0: (
        learning.Rotation(names, generator, axis).conserved(P)
    ),
    "Gauge": lambda first="0.weight", second="2.weight", generator=SQUARE, axes=(0, 1): (
        learning.Gauge(first, second, generator, axes).conserved(P)
    ),
    "action": lambda params=P, s=1.0: SCALE.action(params, s),
    "field": lambda params=P, s=1.0: SCALE.field(params, s),
    "pair": lambda params=P, covector=P: SCALE.pair(params, covector),
    "Mirror": lambda o=((0.6,), (-0.8,)): learning.Mirror(o),
    "permutation": lambda params=P, axes=AXES, first=0, second=1, sign=1.0: (
        learning.Mirror.permutation(params, axes, first, second, sign=sign)
    ),
    "rescaling": lambda params=P, axes=AXES, units=2: (
        learning.Mirror.rescaling(params, axes, units)
    ),
    "rotation": lambda params=P, axes=AXES, direction=ROW: (
        learning.Mirror.rotation(params, axes, direction)
    ),
    "gauge": lambda params=P, first="0.weight", second="2.weight", direction=ROW: (
        learning.Mirror.gauge(params, first, second, direction)
    ),
    "swap": lambda params=PAIR, first="u", second="v", sign=1.0: (
        learning.Mirror.swap(params, first, second, sign=sign)
    ),
    "join": lambda mirror=M: learning.Mirror.join(mirror),
    "points": lambda q=P: (M.reflect(q), M.project(q), M.coordinates(q), M.defect(q)),
    "embed": lambda c=COORDINATES: M.embed(c),
    "residual": lambda loss=LOSS, params=P, generator=3: (
        M.residual(loss, params, generator=generator)
    ),
    "Mirror.is_symmetric": lambda rtol=0.1: M.is_symmetric(LOSS, P, rtol=rtol),
    "stability": lambda loss=LOSS, mirror=M, params=P, tol=0.1, generator=3: (
        learning.stability(loss, mirror, params, tol=tol, generator=generator)
    ),
    "curvature": lambda loss=LOSS, mirror=M, params=P: learning.curvature(loss, mirror, params),
    "batch_curvatures": lambda losses=(LOSS,), mirror=M, params=P, direction=None: (
        learning.batch_curvatures(losses, mirror, params, direction=direction)
    ),
    "lyapunov": lambda curvatures=H, lr=0.1, weight_decay=0.1, momentum=0.5, steps=9, generator=3: (
        learning.lyapunov(
            curvatures, lr, weight_decay=weight_decay, momentum=momentum, steps=steps,
            generator=generator,
        )
    ),
    "noise_threshold": lambda curvatures=H, weight_decay=0.1, steps=9, generator=3: (
        learning.noise_threshold(
            curvatures, weight_decay=weight_decay, steps=steps, generator=generator
        )
    ),
    "MirrorFamily": lambda kind="rescaling", axes=FAMILY.axes, units=6, through=(), readers=(): (
        learning.MirrorFamily(kind, axes, units, through, readers)
    ),
    "closest": lambda params=P, count=1: FAMILY.closest(params, count),
    "defects": lambda params=P: FAMILY.defects(params),
    "member": lambda params=P, member=(0, 1): FAMILY.mirror(params, member),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_refused_in_one_sentence(name):
    call = CALLS[name]
    refused: dict[object, str] = {}
    accepted = []
    for argument, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for wrong in WRONG:
            try:
                call(**{argument: wrong})
                accepted.append((argument, repr(wrong)))
            except (TypeError, ValueError) as error:
                refused[argument, repr(wrong)] = str(error)
    # Things that some arguments do take: None, numbers, small arrays.
    assert len(refused) > len(accepted), accepted
    assert all("must" in message for message in refused.values()), refused
    never = {repr(x) for x in ("a", b"x", 1j, int, 10**400)}
    kinds = {("action", "<class 'int'>"), ("name", "'a'")}
    assert not [a for a in accepted if a[1] in never and a not in kinds]


def test_the_calls_are_right_otherwise():
    for name, call in CALLS.items():
        if name not in ("Rotation", "Symmetry"):
            call()
    with pytest.raises(ValueError, match="generator must not be zero"):
        CALLS["Rotation"]()
    assert learning.Symmetry(len, shape=(2,), degree=1)
