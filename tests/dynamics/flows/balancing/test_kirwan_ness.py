"""The gradient flow of the squared moments."""

from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.dynamics.flows import (
    kirwan_ness_flow,
)
from dln_geometry.geometry.points import end_to_end, moments, random_balanced
from dln_geometry.testing import assert_close
from tests.dynamics.flows.routes import layers_of


def half_square(*layers):
    return 0.5 * sum(g.square().sum() for g in moments(layers))


@pytest.mark.parametrize("widths", [(3, 3, 3), (4, 3, 5, 4), (3, 4, 2, 5, 3)])
def test_kirwan_ness_is_the_gradient_flow_of_the_moments(widths, generator):
    layers = layers_of(widths, generator)
    h = 1e-3
    path = kirwan_ness_flow(layers, 4.0, save_at=[0.0, h, 1.0, 4.0], rtol=1e-11)
    assert_close(path.loss[0], half_square(*layers))
    gradient = torch.autograd.functional.jacobian(half_square, layers)
    slope = -sum(float(g.square().sum()) for g in gradient)
    # Steepest descent, and the motion of the first instant.
    early = kirwan_ness_flow(layers, h, rtol=1e-11)
    for w, v, g in zip(layers, early.final, gradient, strict=True):
        assert float((v - w + h * g).abs().max()) < 0.2 * h * float(g.abs().max())
    assert abs(float(path.loss[1] - path.loss[0]) / h / slope - 1) < 0.2
    assert bool((path.loss.diff() < 0).all())
    assert float(path.defect.max()) < 1e-8
    assert_close(end_to_end(path.final), end_to_end(layers), ops=1e-8 / 2e-16)
    assert path.status == "t_end"
    assert path.depth == len(layers)


def test_kirwan_ness_batch_and_single_precision(generator):
    layers = layers_of((3, 4, 3), generator, batch=(2, 3), dtype=torch.float32)
    path = kirwan_ness_flow(layers, 1.0, save_at=[0.0, 0.5, 1.0], rtol=1e-5)
    assert path.loss.shape == path.defect.shape == (3, 2, 3)
    assert path.singular_values.shape == (3, 2, 3, 3)
    assert path.final[0].shape == (2, 3, 4, 3)
    assert path.loss.dtype == torch.float32
    assert float(path.defect.max()) < 1e-4
    alone = kirwan_ness_flow([w[1, 2] for w in layers], 1.0, rtol=1e-5)
    assert abs(float(path.loss[-1, 1, 2] / alone.loss[-1]) - 1) < 1e-2


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_slowest_rate_of_kirwan_ness_at_balanced_factors(depth, generator):
    s = [2.0, 1.3, 0.4]
    point = random_balanced(
        (3,) * (depth + 1), spectrum=s, generator=generator, dtype=torch.float64
    )
    sizes = [w.numel() for w in point]

    def loss(flat):
        return half_square(*(x.view(3, 3) for x in flat.split(sizes)))

    flat = torch.cat([w.flatten() for w in point])
    rates = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    slow = 16 * s[-1] ** (2 / depth) * math.sin(math.pi / (2 * depth)) ** 2
    # Directions along the balanced factors have rate zero.
    moving = rates[rates > 1e-8]
    assert_close(moving.min(), slow, scale=float(rates.max()), ops=1000)
    # And the flow shows it: the loss decays at twice the rate.
    start = tuple(
        w + 1e-3 * torch.randn(3, 3, generator=generator, dtype=torch.float64) for w in point
    )
    path = kirwan_ness_flow(start, 7 / slow, save_at=[6 / slow, 7 / slow], rtol=1e-12)
    assert abs(float((path.loss[0] / path.loss[1]).log()) / 2 - 1) < 2e-2


def test_kirwan_ness_takes_a_number_of_times(generator):
    layers = layers_of((3, 4, 3), generator, batch=(2,))
    assert kirwan_ness_flow(layers, 0.5, save_at=5).t.tolist() == [0, 0.125, 0.25, 0.375, 0.5]
    for a, b in zip(kirwan_ness_flow(layers, 0.0).final, layers, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="save_at must be at least 2, got 1"):
        kirwan_ness_flow(layers, 0.5, save_at=1)


def test_kirwan_ness_stops_by_rules(generator):
    layers = layers_of((3, 4, 3), generator)
    path = kirwan_ness_flow(layers, until={"loss": 1e-6})
    assert path.status == "loss"
    # The step that passes the bound is the last.
    assert float(path.loss[-1]) <= 1e-6 < float(path.loss[-2])
    g = moments(path.final)
    assert_close(path.loss[-1], 0.5 * sum(x.square().sum() for x in g), ops=1000)
    many = kirwan_ness_flow(layers_of((3, 4, 3), generator, (2,)), 0.5, until={"evaluations": 40})
    assert set(many.status) <= {"t_end", "evaluations"}
    with pytest.raises(ValueError, match="until must hold rules among loss, steps"):
        kirwan_ness_flow(layers, until={"gradient": 1.0})
    with pytest.raises(
        ValueError, match="save_at must be times, or, with a finite t_end, a number >= 2"
    ):
        kirwan_ness_flow(layers, until={"loss": 1e-6}, save_at=5)


def test_kirwan_ness_continues_from_its_store(generator, tmp_path):
    layers, store = layers_of((3, 4, 3), generator), tmp_path / "run.pt"
    whole = kirwan_ness_flow(layers, 1.0)
    part = kirwan_ness_flow(layers, 1.0, until={"steps": 5}, store=store)
    assert part.status == "steps"
    again = kirwan_ness_flow(layers, 1.0, store=store)
    assert again.status == "t_end"
    assert torch.equal(again.t, whole.t)
    for a, b in zip(again.final, whole.final, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="store must belong to the same run"):
        kirwan_ness_flow(layers, 1.0, rtol=1e-6, store=store)


def test_kirwan_ness_keeps_points(generator):
    layers = layers_of((3, 4, 3), generator)
    path = kirwan_ness_flow(layers, 0.2, save_at=3, keep_points=True)
    assert len(path.points) == 3
    for w, v, last, end in zip(path.points[0], layers, path.points[2], path.final, strict=True):
        assert torch.equal(w, v)
        assert torch.equal(last, end)
