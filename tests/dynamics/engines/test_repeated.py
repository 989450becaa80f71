"""Velocities that numpy repeats are those of the engines, with every loss that may be repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics import engines
from dln_geometry.ode import METHODS, BlockNorms, ExplicitStepper, RepeatedStepper, Tape
from dln_geometry.testing import assert_close
from tests.dynamics.flows.routes import F64

DEPTHS = (1.0, 1.5, 2.0, 2.7, 3.0, 6.0, 200.0, math.inf)


def some_losses(generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    places = [0, 0, 1, 2], [0, 2, 1, 2]
    return [
        losses.Quadratic(normal(3, 3), reduction="mean"),
        losses.Completion(*places, normal(4), (3, 3)),
        losses.Completion(*places, normal(4), (3, 3), weights=[1.0, 2.0, 0.5, 1.0]),
        losses.Regression(normal(7, 3), normal(7, 3)),
        losses.Sensing(normal(5, 3, 3), normal(5)),
        losses.LpNorm(normal(3, 3), 4),
        losses.Huber(normal(3, 3), 0.5),
    ]


def some_engines(loss, batch, generator):
    kind = {"batch": batch, "generator": generator, "dtype": F64}
    for depth in DEPTHS:
        point = dln.Collapsed.random((3, 3), 3, depth, scale=0.5, **kind)
        plain = engines.PlainEngine(loss, point.matrix, True)
        two = engines.SpectralEngine if depth < math.inf else engines.CoreEngine
        yield plain if depth == 1.0 else two(loss, point, True)
        if depth in (3.0, 6.0):
            yield engines.ProductEngine(loss, point, True)
        if depth == 6.0:
            yield engines.EvenEngine(loss, point)
        if depth == 200.0:
            yield engines.PairEngine(loss, point)
    layers = dln.random_balanced((3,) * 4, scale=0.5, **kind)
    yield engines.ThinEngine(loss, dln.Network.from_layers(layers), True)
    yield engines.LayeredEngine(loss, [w + 0.1 * w.mT for w in layers])


@pytest.mark.parametrize("batch", [(), (3,)])
def test_repeated_velocities_are_those_of_the_engine(batch, generator):
    for loss in some_losses(generator):
        for engine in some_engines(loss, batch, generator):
            assert engine.is_steady
            y = engine.rows().clone()
            out, t = torch.zeros_like(y), torch.zeros(len(y), dtype=F64)
            with torch.no_grad(), np.errstate(all="ignore"):
                with Tape(t, y) as tape:
                    seen = engine.field(t, y, out)
                y.mul_(0.9)
                wanted = torch.zeros_like(out)
                observed = engine.field(t, y.clone(), wanted)
                for f, arguments in tape.calls:
                    f(*arguments)
            assert_close(out, wanted, ops=3e4)
            assert_close(seen, observed, ops=3e4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_compiled_pass_over_entries_is_repeated(dtype, generator):
    places = torch.randperm(80 * 70, generator=generator)[:300]
    values = torch.randn(300, generator=generator, dtype=dtype)
    loss = losses.Completion(places // 70, places % 70, values, (80, 70))
    kind = {"generator": generator, "dtype": dtype}
    engine = engines.ProductEngine(loss, dln.Collapsed.random((80, 70), 4, 5, scale=0.5, **kind))
    y = engine.rows().clone()
    given = METHODS["rk5"], engine.field, y, BlockNorms(engine.sizes)
    plain, repeated = ExplicitStepper(*given), RepeatedStepper(*given)
    for _ in range(2):
        for stepper in (plain, repeated):
            engine.field(torch.zeros(1, dtype=dtype), y, stepper.f)
            stepper.step(np.zeros(1), np.full(1, 0.05), y)
        assert_close(repeated.y_new, plain.y_new, ops=1000)
        assert_close(repeated.f_new, plain.f_new, ops=1e4)
        assert_close(repeated.obs_new, plain.obs_new, ops=1e4)
        y = 0.8 * y


def test_functions_of_a_user_are_not_repeated(generator):
    class Own(losses.Quadratic):
        pass

    point = dln.Collapsed.random((3, 3), 3, 3, generator=generator, dtype=F64)
    for loss in (Own(torch.eye(3, dtype=F64)), losses.from_callable(lambda x: x.sum())):
        assert not engines.ProductEngine(loss, point).is_steady
