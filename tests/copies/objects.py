"""One or several objects of every public class."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

import dln_geometry as dln
from dln_geometry import learning, losses, ode
from dln_geometry.learning import closed_forms
from manifolds import geomstats_dln, pymanopt_dln

F64 = torch.float64


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
