from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics import engines
from dln_geometry.testing import assert_close

F64 = torch.float64
BATCH = (4, 3)
SAMPLES = torch.tensor([1, 5, 6, 10])


def all_losses(generator):
    """Losses whose data have all leading dimensions, some or none."""

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    places = [0, 1, 2, 4, 0], [1, 0, 2, 3, 3]
    signs = (draw(*BATCH, 5) > 0).to(F64)
    return {
        "target": losses.Quadratic(draw(*BATCH, 5, 4)),
        "broadcast": losses.Quadratic(draw(3, 5, 4)),
        "shared": losses.Quadratic(draw(5, 4), reduction="mean"),
        "sensing": losses.Sensing(draw(7, 5, 4), draw(*BATCH, 7)),
        "regression": losses.Regression(draw(*BATCH, 9, 4), draw(*BATCH, 9, 5)),
        "lp": losses.LpNorm(draw(*BATCH, 5, 4), 3.0),
        "huber": losses.Huber(draw(3, 9, 5), inputs=draw(9, 4)),
        "completion": losses.Completion(*places, draw(*BATCH, 5), (5, 4), weights=draw(5) ** 2),
        "few": losses.Completion([0], [1], draw(3, 1), (5, 4)),
        "logistic": losses.Logistic(*places, signs, (5, 4), offsets=draw(*BATCH, 5)),
        "callable": losses.from_callable(lambda x: x.square().sum().sin()),
    }


def engine_of(name, loss, generator):
    depth = {"plain": 1, "pair": 150, "core": math.inf, "spectral": 2.6, "even": 6, "two": 2}
    point = dln.EndToEnd.of(
        torch.randn(*BATCH, 5, 4, generator=generator, dtype=F64), depth.get(name, 3)
    )
    pair = dln.Collapsed.of(point)
    makes = {
        "plain": lambda: engines.PlainEngine(loss, point.matrix, True),
        "spectral": lambda: engines.SpectralEngine(loss, pair, True),
        "two": lambda: engines.SpectralEngine(loss, pair, True),
        "even": lambda: engines.EvenEngine(loss, pair),
        "products": lambda: engines.ProductEngine(loss, pair, True),
        "pair": lambda: engines.PairEngine(loss, point, True),
        "core": lambda: engines.CoreEngine(loss, pair, True),
        "thin": lambda: engines.ThinEngine(loss, pair.factors(), True),
        "layered": lambda: engines.LayeredEngine(loss, pair.factors(), True),
    }
    return makes[name]()


def check_narrowed(engine, generator):
    k = torch.rand(BATCH, generator=generator, dtype=F64).flatten()
    if not isinstance(engine, engines.MomentEngine):
        engine.decay = k
    small = engine.narrowed(SAMPLES)
    t, y = k, engine.rows()
    out = torch.empty_like(y)
    seen = engine.field(t, y, out)
    part = torch.empty_like(y[SAMPLES])
    again = small.field(t[SAMPLES], y[SAMPLES].clone(), part)
    assert_close(part, out[SAMPLES], ops=300)
    assert_close(again, seen[SAMPLES], ops=300, scale=seen.abs().max())
    defects = engine.defect(y, seen)[SAMPLES]
    assert_close(engine.defect(y[SAMPLES], again), defects, ops=300, scale=1)
    moved = y * (1 + 1e-7 * torch.randn(y.shape, generator=generator, dtype=F64))
    turned = engine.restored(y, moved)
    assert_close(small.restored(y[SAMPLES], moved[SAMPLES]), turned[SAMPLES], ops=1000)
    full, alone = engine.jacobian(t, y), small.jacobian(t[SAMPLES], y[SAMPLES])
    full, alone = (getattr(j, "whole", j) for j in (full, alone))
    assert_close(alone, full[SAMPLES], ops=3000)


@pytest.mark.parametrize(
    "name", ["plain", "spectral", "two", "even", "products", "pair", "core", "thin", "layered"]
)
@torch.no_grad()
def test_velocities_of_some_samples_are_those_of_all(name, generator):
    check_narrowed(engine_of(name, all_losses(generator)["target"], generator), generator)


@pytest.mark.parametrize("loss", sorted(all_losses(torch.Generator())))
@torch.no_grad()
def test_every_loss_tells_its_samples_apart(loss, generator):
    found = all_losses(generator)[loss]
    engine = engine_of("spectral", found, generator)
    check_narrowed(engine, generator)
    assert losses.narrowed_loss(found, BATCH, SAMPLES).fingerprint is not None


@torch.no_grad()
def test_moments_of_some_samples_are_those_of_all(generator):
    start = [torch.randn(*BATCH, 4, 4, generator=generator, dtype=F64) for _ in range(3)]
    check_narrowed(engines.MomentEngine(start), generator)


class Weighted:
    """A loss of a user's own, with a weight for every sample."""

    def __init__(self, weights, tells):
        self.weights = weights
        if tells:
            self.narrowed = lambda batch, samples: self

    def value(self, x):
        return self.weights * losses.as_dense(x).square().sum((-2, -1))

    def gradient(self, x):
        return 2.0 * self.weights[..., None, None] * losses.as_dense(x)


@pytest.mark.parametrize("tells", [False, True])
def test_a_loss_that_does_not_tell_keeps_the_batch_whole(tells, generator):
    """Nor one whose answer does not fit."""
    loss = Weighted(torch.rand(BATCH, generator=generator, dtype=F64), tells)
    assert engine_of("products", loss, generator).narrowed(SAMPLES) is None


@pytest.mark.parametrize("depth", [2, 3, math.inf])
def test_flows_of_a_batch_end_as_without_narrowing(depth, generator, tmp_path, monkeypatch):
    """And continue from a store to the same bits."""
    scale = torch.logspace(-2, 1, 24, dtype=F64).view(6, 4, 1, 1)
    loss = losses.Quadratic(scale * torch.randn(6, 4, 3, 3, generator=generator, dtype=F64))
    start = dln.Collapsed.random(
        (3, 3), 3, depth, scale=0.4, batch=(6, 4), generator=generator, dtype=F64
    )
    options = {"rtol": 1e-6, "save_at": [0.0, 1.0, 4.0], "t_end": 4.0}

    def flow(most, store=None):
        return dln.gradient_flow(
            loss, start, until={"gradient": 1e-2, "evaluations": most}, store=store, **options
        )

    whole = flow(4000)
    flow(whole.stats["evaluations"] // 2, tmp_path / "run")
    resumed = flow(4000, tmp_path / "run")
    assert torch.equal(resumed.final.matrix, whole.final.matrix)
    assert torch.equal(resumed.singular_values, whole.singular_values)
    assert resumed.status == whole.status
    monkeypatch.setattr(engines.Engine, "narrowed", lambda self, samples: None)
    together = flow(4000)
    assert together.status == whole.status
    # Rounding decides whether a step is taken: no closer than the tolerance.
    gap = (together.final.matrix - whole.final.matrix).norm(dim=(-2, -1))
    assert bool((gap <= 1e-6 * whole.final.matrix.norm(dim=(-2, -1))).all())
