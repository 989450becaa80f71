"""Everything public survives copies, pickles and other processes; caches stay behind."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import dln_geometry as dln
from dln_geometry import learning, losses, ode
from dln_geometry.learning import closed_forms
from manifolds import geomstats_dln, pymanopt_dln

F64 = torch.float64
FACES = (dln, learning, losses, closed_forms, ode, pymanopt_dln, geomstats_dln)
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
# Protocols, and the working parts of the integrators, which no user holds.
PARTS = {
    "ElementwiseLoss",
    "LinkLoss",
    "Loss",
    "Pattern",
    "BlockNorms",
    "ChebyshevStepper",
    "ExplicitStepper",
    "Keeper",
    "KnownField",
    "Parts",
    "RosenbrockStepper",
    "RepeatedStepper",
    "Secants",
    "Tape",
}


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=2):
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


X = normal(4, 3)
NETWORK = dln.random_balanced((3, 4, 4), generator=seeded(), dtype=F64)
PAIR = dln.Collapsed.random((4, 3), 2, 3, generator=seeded(), dtype=F64)


def shifted(q, t):
    """The finite form of a symmetry: a function that can be pickled."""
    return {**q, "a": q["a"] + t}


def used(loss):
    """Return a loss whose caches a flow has filled."""
    dln.gradient_flow(loss, PAIR, t_end=0.01, rtol=1e-3)
    loss.value(PAIR.to(dtype=torch.float32))
    return loss


def decay(t, y, out):
    torch.neg(y, out=out)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def monitored():
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    monitor = learning.ChargeMonitor(module, optimizer, example_input=normal(5, 3))
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(normal(5, 3)), normal(5, 2)).backward()
        optimizer.step()
    return monitor


def stepped():
    optimizer = learning.EndToEndSGD([nn.Parameter(X.clone())], lr=0.1, depth=3)
    optimizer.param_groups[0]["params"][0].grad = X.clone()
    optimizer.step()
    return optimizer


def controlled():
    module = learning.dcs_(net(), "0.weight")
    optimizer = torch.optim.SGD(learning.dcs_parameter_groups(module, 0.1), lr=0.1)
    return learning.SparsityControl(module, optimizer, 0.5)


def quotient():
    space = geomstats_dln.BalancedNetworks((3, 4, 3))
    space.equip_with_group_action(geomstats_dln.HiddenRotationAction((3, 4, 3)))
    space.equip_with_quotient()
    return space


def family():
    return learning.mirrors_of(net(), normal(5, 3))[0]


def quartic(params):
    return params["a"].square().square().sum()


def report():
    data = normal(5, 3), normal(5, 2)
    return learning.collapse_report(net(), nn.functional.mse_loss, data, generator=seeded())


MODULE_LOSS = learning.functionalize(net(), nn.functional.mse_loss, (normal(5, 3), normal(5, 2)))
LAW = learning.DiscreteLaw(learning.Scale(["a"]), learning.Rule(lr=0.1, momentum=0.9))
ROTATION = X[:3] - X[:3].T


# One or several objects of every public class.
ALL = {
    "CentralFlow": lambda: learning.central_flow(quartic, 0.1),
    "CentralPath": lambda: learning.central_flow(quartic, 0.1)({"a": X[0]}, 1),
    "HessianSpectrum": lambda: learning.hessian_spectrum(quartic, {"a": X[0]}),
    "TrainingRegime": lambda: learning.TrainingRegime(0.1, 0.2, 0.3, (0.4, 0.5)),
    "TapeError": lambda: ode.TapeError("sort"),
    "NoiseEquilibrium": lambda: learning.NoiseEquilibrium({"a": X}, X[0], 0.0),
    "Sparsified": lambda: learning.sparsify(net(), normal(5, 3)),
    "SparsityControl": controlled,
    "EndToEnd": lambda: dln.EndToEnd.of(X, 3),
    "Collapsed": lambda: PAIR,
    "Network": lambda: [NETWORK, NETWORK.spectrum, dln.balance([normal(4, 3), normal(4, 4)])],
    "Trajectory": lambda: dln.gradient_flow(losses.Quadratic(X), PAIR, t_end=0.1, keep_points=True),
    "Quadratic": lambda: used(losses.Quadratic(X)),
    "Completion": lambda: used(losses.Completion([0, 1, 2], [0, 1, 1], X[0], (4, 3))),
    "Logistic": lambda: used(losses.Logistic([0, 1], [0, 1], [1.0, 0.0], (4, 3), offsets=X[0, :2])),
    "Poisson": lambda: used(losses.Poisson([0, 1], [0, 1], [2.0, 0.0], (4, 3), weights=[1.0, 2.0])),
    "LpNorm": lambda: used(losses.LpNorm(normal(5, 4), 3, inputs=normal(5, 3), reduction="mean")),
    "Huber": lambda: used(losses.Huber(X, 0.5, reduction="mean")),
    "SweepError": lambda: dln.SweepError("failed", {"depth": 3}),
    "Validation": lambda: dln.Validation([0, 1], [0, 1], [1.0, 0.0], (4, 3)),
    "Sensing": lambda: used(losses.Sensing(X[None], X[0, :1])),
    "Regression": lambda: used(losses.Regression(normal(6, 3), normal(6, 4))),
    "CallableLoss": lambda: [losses.from_callable(torch.sum, name=name) for name in (None, "sum")],
    "FreeEnergy": lambda: dln.FreeEnergy(used(losses.Quadratic(X)), 2.0, 3, (4, 3)),
    "FlowError": lambda: dln.FlowError("lost", ALL["Trajectory"]()),
    "GeodesicError": lambda: dln.GeodesicError("lost"),
    "IntegrationError": lambda: ode.IntegrationError("lost", ode.integrate(decay, X, t_end=0.1)),
    "ResumeError": lambda: ode.ResumeError("wrong"),
    "Solution": lambda: ode.integrate(decay, X, t_end=0.1),
    "Chebyshev": ode.Chebyshev,
    "Rosenbrock": lambda: ode.RODAS,
    "RungeKutta": lambda: ode.METHODS["rk5"],
    "Gauss": lambda: ode.GAUSS,
    "Journey": lambda: ode.Journey(*(X for _ in dataclasses.fields(ode.Journey))),
    "SymmetryError": lambda: learning.SymmetryError("broken", 0.5),
    "Rule": lambda: learning.Rule(lr=0.1, momentum=0.9),
    "Symmetry": lambda: learning.Symmetry(shifted),
    "Scale": lambda: learning.Scale(["a"]),
    "Rescale": lambda: learning.Rescale("a", "b"),
    "Gauge": lambda: [learning.Gauge("a", "b", ROTATION), learning.Gauge("a", "b")],
    "Rotation": lambda: learning.Rotation("a", ROTATION),
    "Translation": lambda: learning.Translation("a", X),
    "DiscreteLaw": lambda: LAW,
    "Charges": lambda: learning.Charges(*(X for _ in dataclasses.fields(learning.Charges))),
    "RMSPropState": lambda: learning.RMSPropState(X, X, X),
    "EffectiveRMSProp": lambda: learning.as_rmsprop(learning.Rule(lr=0.1, weight_decay=0.01)),
    "PeriodTwoOrbit": lambda: closed_forms.period_two_orbit([1.0, 0.5], 1.1, 2),
    "MomentState": lambda: closed_forms.MomentState((X,)),
    "ModuleLoss": lambda: MODULE_LOSS[0],
    "DeepLinear": lambda: learning.DeepLinear((3, 4, 3), dtype=F64, generator=1),
    "EndToEndSGD": stepped,
    "Part": lambda: learning.symmetries_of(net())[0].parts[0],
    "SymmetricGroup": lambda: learning.symmetries_of(net(), normal(5, 3)),
    "Family": lambda: learning.Family(
        "shift", (learning.Part("w", 0, 3),), basis=({"w": X[:, 0]},)
    ),
    "SymmetryCoverage": lambda: learning.SymmetryCoverage(1, 2, (), ("a",), (), 3),
    "Mirror": lambda: learning.Mirror(torch.linalg.qr(X)[0]),
    "MirrorFamily": family,
    "DeadUnit": lambda: learning.DeadUnit(*("a" for _ in dataclasses.fields(learning.DeadUnit))),
    "Collapse": report,
    "CollapseReport": report,
    "Lyapunov": lambda: learning.Lyapunov(0.1, 0.0),
    "Stability": lambda: learning.Stability(*(X for _ in dataclasses.fields(learning.Stability))),
    "ChargeMonitor": monitored,
    "ChargeRecord": lambda: monitored().record(),
    "ChargeReport": lambda: monitored().report(),
    "EndToEndManifold": lambda: pymanopt_dln.EndToEndManifold(4, 3, 2, 3, rng=1),
    "BalancedManifold": lambda: pymanopt_dln.BalancedManifold((3, 4, 4), rng=1),
    "FixedRankPoint": lambda: pymanopt_dln.EndToEndManifold(4, 3, 2, 3, rng=1).random_point(),
    "FactorPoint": lambda: pymanopt_dln.BalancedManifold((3, 4, 4), rng=1).random_point(),
    "FixedRankTangent": lambda: tangent(pymanopt_dln.EndToEndManifold(4, 3, 2, 3, rng=1)),
    "FactorVector": lambda: tangent(pymanopt_dln.BalancedManifold((3, 4, 4), rng=1)),
    "FullRankEndToEnd": lambda: geomstats_dln.FullRankEndToEnd(3, 3),
    "FixedRankEndToEnd": lambda: geomstats_dln.FixedRankEndToEnd(4, 3, 2),
    "FixedSpacesEndToEnd": lambda: geomstats_dln.FixedSpacesEndToEnd.of(X.numpy(), 2),
    "DepthMetric": lambda: geomstats_dln.FullRankEndToEnd(3, 3).metric,
    "BalancedNetworks": quotient,
    "BalancedMetric": lambda: quotient().metric,
    "BalancedBundle": lambda: quotient().fiber_bundle,
    "BalancedQuotientMetric": lambda: quotient().quotient.metric,
    "HiddenRotations": lambda: geomstats_dln.HiddenRotations((3, 4, 3)),
    "HiddenRotationAction": lambda: geomstats_dln.HiddenRotationAction((3, 4, 3)),
    "LayeredNetworks": lambda: geomstats_dln.LayeredNetworks((3, 4, 3)),
    "FrobeniusMetric": lambda: geomstats_dln.LayeredNetworks((3, 4, 3)).metric,
}  # fmt: skip


def tangent(manifold):
    return manifold.random_tangent_vector(manifold.random_point())


def told(value):
    """Return the tensors, numbers and texts of an object, whatever holds them; without caches."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return np.asarray(torch.as_tensor(value).detach()).tolist()
    if value is None or isinstance(value, str | int | float | complex | torch.dtype | torch.device):
        return repr(value)
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__qualname__
    if isinstance(value, dict):
        return [[told(key), told(part)] for key, part in value.items()]
    if isinstance(value, torch.optim.Optimizer):
        return told(value.state_dict())
    if isinstance(value, learning.ChargeMonitor):
        return told(value.record())
    if isinstance(value, dln.Network):
        return told(list(value))
    if type(value).__module__.startswith("manifolds._geomstats"):
        # Spaces and metrics know each other: what they compute tells them.
        return computed(value)
    content = [told(part) for part in value] if isinstance(value, tuple | list) else []
    content += [str(value)] if isinstance(value, BaseException) else []
    parts = getattr(value, "__dict__", {})
    return [type(value).__name__, content, told({k: parts[k] for k in parts if k not in CACHES})]


CACHES = {"_converted", "_kept", "_grad_and_value", "__notes__"}
"""What is made again when it is asked for."""


def computed(value):
    """Return some numbers that a space, metric, bundle or action of geomstats computes."""
    np.random.seed(0)  # noqa: NPY002 - geomstats draws from the global generator
    space = getattr(value, "_space", getattr(value, "_total_space", None)) or value
    numbers = [getattr(space, name, None) for name in ("dim", "shape", "widths", "rank", "depth")]
    metric = getattr(space, "metric", None)
    if metric is not None:
        point = space.random_point()
        numbers += [point, metric.inner_product(point, point, point)]
    return [type(value).__name__, *map(told, numbers)]


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.mark.parametrize("name", ALL)
def test_copies_and_pickles(name):
    value = ALL[name]()
    want = told(value)
    for how, made in COPIES.items():
        again = made(value)
        assert type(again) is type(value), how
        assert told(again) == want, how


def test_every_public_class_is_tried():
    classes = {
        name
        for face in FACES
        for name in getattr(face, "__all__", ())
        if inspect.isclass(getattr(face, name))
    }
    assert classes - PARTS <= set(ALL)


def answer(pipe):
    """In a child: tell what has come."""
    pipe.send({name: told(value) for name, value in pipe.recv().items()})


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=FORKS)])
def test_other_processes(method):
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=answer, args=(there,))
    child.start()
    values = {name: make() for name, make in ALL.items()}
    here.send(values)
    assert here.poll(120)
    got = here.recv()
    child.join()
    for name, value in values.items():
        assert got[name] == told(value), name


def test_copies_are_as_good_as_their_originals():
    """A copy continues: losses in flows, modules and monitors in training."""
    for name in ("Quadratic", "Completion", "Sensing", "Regression", "CallableLoss"):
        value = ALL[name]()
        loss = value[0] if isinstance(value, list) else value
        want = dln.gradient_flow(loss, PAIR, t_end=0.01, rtol=1e-3)
        for made in COPIES.values():
            got = dln.gradient_flow(made(loss), PAIR, t_end=0.01, rtol=1e-3)
            assert torch.equal(got.loss, want.loss)
    loss, params = MODULE_LOSS
    for made in COPIES.values():
        assert torch.equal(made(loss)(params), loss(params))
    error = ALL["FlowError"]()
    again = pickle.loads(pickle.dumps(error))
    assert torch.equal(again.trajectory.t, error.trajectory.t)
    assert again.trajectory.final.depth == 3
    assert math.isnan(pickle.loads(pickle.dumps(dln.Trajectory(t=X[0]))).depth)


def test_caches_stay_behind():
    loss = ALL["Completion"]()
    assert loss._kept
    assert loss._converted
    for made in COPIES.values():
        again = made(loss)
        assert not again._kept
        assert not again._converted
    assert loss._kept
