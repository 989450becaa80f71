from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.geodesics import (
    Flow,
    GeodesicError,
    RootCoordinate,
    exponential,
    follow_geodesic,
    geodesic,
)
from dln_geometry.geometry.metric import Box
from dln_geometry.ode import GAUSS
from dln_geometry.testing import assert_close
from tests.geometry.geodesics.routes import (
    draw,
    gaussian,
    layered_geodesic,
    tangent,
)

# The default tolerance, eps^{3/4}, in units of eps.
RTOL_OPS = 1e4


@pytest.mark.parametrize("depth", [1.5, 2, 3])
def test_rank_is_lost_at_finite_distance(depth, generator):
    point = draw((2, 2), (1.0, 0.3), depth, generator)
    distance = math.sqrt(depth) * 0.3 ** (1 / depth)
    rate = torch.tensor([0.0, -1.0], dtype=torch.float64)
    z = (point.u * rate) @ point.vh
    z = z / dln.inner(point, z, z).sqrt()
    assert geodesic(point, z, 0.99 * distance).s[-1] > 0
    with pytest.raises(GeodesicError, match=f"reaches zero at t = {distance:.4f}"[:-1]):
        geodesic(point, z, 1.01 * distance)
    # Turning a little it is met as well, by the integration, about as far.
    turn = torch.tensor([[0.0, 0.05], [-0.02, 0.0]], dtype=torch.float64)
    z = z + point.u @ turn @ point.vh
    with pytest.raises(GeodesicError, match="a singular value reaches zero at t = ") as refusal:
        geodesic(point, z, 1.3 * distance)
    met = float(str(refusal.value).split("t = ")[1].split(":")[0])
    x = geodesic(point, z, [0.9 * met, 0.99 * met, 0.999 * met]).s[:, -1] ** (1 / depth)
    # In the root it arrives at a constant speed.
    assert_close(x[1:] / x[:-1], [0.1, 0.1], ops=0.02 / 2e-16, scale=1.0)


@pytest.mark.parametrize("depth", [2.7, 8, 64])
def test_deep_metrics_lose_rank_in_few_steps(depth, generator, monkeypatch):
    """In the root of the singular values, zero is nothing special; in X it took hundreds."""
    monkeypatch.setattr("dln_geometry.ode.collocation._MOST_STEPS", 20)
    point = draw((2, 2), (1.0, 0.3), depth, generator)
    rate = torch.tensor([[0.0, 0.02], [0.05, -1.0]], dtype=torch.float64)
    z = point.u @ rate @ point.vh
    z = z / dln.inner(point, z, z).sqrt()
    with pytest.raises(GeodesicError, match="a singular value reaches zero"):
        geodesic(point, z, 2.0 * math.sqrt(depth))


def test_zero_is_passed_where_the_layers_pass_it(generator):
    """Three layers, followed by scipy: the determinant of their product changes its sign."""
    point = draw((2, 2), (1.0, 0.3), 3, generator)
    factors = dln.balanced_factors(point)
    z = point.u @ (gaussian((2, 2), generator) - torch.diag(torch.tensor([0.0, 2.0]))) @ point.vh
    z = z * (math.sqrt(3) * 0.3 ** (1 / 3) / dln.inner(point, z, z).sqrt())
    seen = set()
    for length in (0.7, 1.6):
        velocity = dln.lift(factors, dln.metric(point, length * z))
        end = dln.end_to_end(layered_geodesic(factors, velocity, rtol=1e-10)[0])
        passes = bool(torch.linalg.det(end) * torch.linalg.det(point.matrix) < 0)
        (root,), _, _ = follow_geodesic(Box.around(point, length * z), [1.0], 1e-11, through=True)
        assert passes == bool(torch.linalg.eigvalsh(root.k)[0] < 0)
        found = root.u @ torch.linalg.matrix_power(root.k, 3) @ root.v.mT
        # Next to zero the constraint of the layers is ill-conditioned, and scipy drifts from it.
        assert_close(found, end, ops=(1e-5 if passes else 1e-8) / 2e-16)
        seen.add(passes)
        if passes:
            with pytest.raises(GeodesicError, match="a singular value reaches zero"):
                exponential(point, length * z)
    assert seen == {False, True}


@pytest.mark.parametrize("depth", [1.5, 2.7, 8, 64])
def test_refused_if_and_only_if_zero_is_met(depth, generator):
    """At fifty times along the way, a step for all or one for each."""
    point = draw((2, 2), (1.0, 0.3), depth, generator)
    z = torch.stack([tangent(point, generator, 1.0) for _ in range(6)])
    down = point.u[:, 1:] @ point.vh[1:]
    down = down / dln.inner(point, down, down).sqrt()
    z = torch.cat((z, 0.7 * z - down)) * (1.4 * math.sqrt(depth) * 0.3 ** (1 / depth))
    states, _, _ = follow_geodesic(
        Box.around(point, z), list(np.linspace(0.02, 1, 50)), 1e-8, through=True
    )
    roots = RootCoordinate(point.depth).matrix_roots
    lowest = torch.stack([torch.linalg.eigvalsh(roots(q.k))[..., 0] for q in states])
    _, _, lost = follow_geodesic(Box.around(point, z), [1.0], 1e-11)
    assert lost.which.tolist() == (lowest <= 0).any(0).tolist()
    assert lost.barred.tolist() == lost.which.tolist()
    assert 0 < lost.which.sum() < 12


def test_a_pass_through_zero_and_back_within_one_step_is_seen(generator):
    """The root of the smallest singular value dips below zero between two nodes."""
    point = draw((2, 2), (1.0, 0.3), 3, generator)
    z = tangent(point, generator, 0.1)
    flow, state = Flow.of(Box.around(point, z), 1.0, 1e-10)
    nodes = torch.as_tensor(np.append(GAUSS.nodes, 1.0))
    states = state.unsqueeze(1).repeat(1, 17, 1)
    gap = 0.5 * (nodes[7] + nodes[8])
    for depth, seen in ((1e-5, True), (-1e-5, False)):
        # A parabola below zero in the middle of the gap, or just not.
        states[0, :, 8 + 3] = (nodes - gap) ** 2 - depth
        when = flow.ends(np.zeros(1), np.ones(1), states)[0]
        assert math.isfinite(when) == seen
        if seen:
            assert abs(when - float(gap)) < 0.01


def test_the_samples_that_fail_are_named(generator):
    point = draw((2, 2), (1.0, 0.3), 3, generator, batch=(3,))
    rate = torch.tensor([[0.0, 0.02], [0.05, -1.0]], dtype=torch.float64)
    z = point.u @ rate @ point.vh
    z = z * torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)[:, None, None]
    with pytest.raises(GeodesicError, match=r"\(samples 1, 2 of the batch\)"):
        exponential(point, z)
    straight = (point.u * torch.tensor([0.0, -1.0], dtype=torch.float64)) @ point.vh
    straight = straight * torch.tensor([0.1, 4.0, 0.1], dtype=torch.float64)[:, None, None]
    with pytest.raises(GeodesicError, match=r"\(sample 1 of the batch\)"):
        exponential(point, straight)
    with pytest.raises(GeodesicError, match=r"\(samples \(0, 1\), \(0, 2\) of the batch\)"):
        exponential(point, torch.stack((z, 0.1 * z)))


def test_a_hard_sample_does_not_slow_the_others(generator, monkeypatch):
    """Every sample takes its own steps, and leaves when it has arrived."""
    point = draw((2, 2), (1.0, 0.3), 8, generator)
    z = tangent(point, generator, 0.4).repeat(32, 1, 1)
    hard = (point.u * torch.tensor([0.2, -9.0])) @ point.vh + tangent(point, generator, 0.3)
    calls = []
    field = Flow.field

    def counted(self, state):
        calls.append(len(state))
        return field(self, state)

    monkeypatch.setattr(Flow, "field", counted)
    exponential(point, z)
    alone = sum(calls)
    calls.clear()
    with pytest.raises(GeodesicError, match=r"sample 7 of"):
        exponential(point, torch.cat((z[:7], hard[None], z[8:])))
    assert sum(calls) < 1.5 * alone + 300


@pytest.mark.parametrize("depth", [64, math.inf])
def test_small_singular_values_are_as_precise_as_large_ones(depth, generator):
    """To and fro over singular values of 1e-12 of the largest."""
    point = draw((3, 3), (1.0, 1e-5, 1e-12), depth, generator)
    z = tangent(point, generator, 0.7)
    box = Box.around(point, z)
    (end,), _, _ = follow_geodesic(box, [1.0], 1e-12)
    spectrum = end.point(point).s
    # The same in the depth-independent chart of the roots, with half the way twice.
    half, _, _ = follow_geodesic(box, [0.5, 1.0], 1e-12)
    assert_close(half[1].point(point).s / spectrum, torch.ones(3), ops=RTOL_OPS * 64)
