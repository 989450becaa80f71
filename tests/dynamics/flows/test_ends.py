"""How runs end that meet neither their time nor their rules: with a status and a warning."""

from __future__ import annotations

import functools
import math
import sys
from contextlib import nullcontext

import pytest
import torch

import dln_geometry as dln
from dln_geometry.dynamics import losses
from dln_geometry.dynamics.flows import free_energy_flow, kirwan_ness_flow

F64 = torch.float64

NONSMOOTH = {
    "absolute": lambda x, y: (x - y).abs().sum((-2, -1)),
    "maximum": lambda x, y: (x - y).abs().amax((-2, -1)),
    "hinge": lambda x, y: (1 - x * y.sign()).clamp_min(0).sum((-2, -1)),
}


def target(generator, dtype=F64):
    return torch.randn(4, 3, generator=generator, dtype=dtype)


def start(generator, depth=3, **options):
    options = {"scale": 0.3, "dtype": F64} | options
    return dln.Collapsed.random((4, 3), 3, depth, generator=generator, **options)


@pytest.mark.parametrize(
    ("kind", "method"), [("absolute", "auto"), ("maximum", "rkc"), ("hinge", "rk3")]
)
def test_nonsmooth_losses_are_told(kind, method, generator):
    y = target(generator)
    loss = losses.from_callable(lambda x: NONSMOOTH[kind](x, y))
    with pytest.warns(UserWarning, match="loss looks nonsmooth near t = 0"):
        path = dln.gradient_flow(loss, start(generator), t_end=9.0, method=method)
    assert path.status == "nonsmooth"
    assert path.stats["evaluations"] < 10_000


def test_nonsmooth_losses_of_batches_and_free_energies(generator):
    y = target(generator)
    loss = losses.from_callable(lambda x: NONSMOOTH["absolute"](x, y))
    with pytest.warns(UserWarning, match="3 of 3 samples: the loss looks nonsmooth"):
        path = dln.gradient_flow(loss, start(generator, batch=(3,)), t_end=9.0, method="rk3")
    assert path.status == ["nonsmooth"] * 3
    with pytest.warns(UserWarning, match="nonsmooth"):
        free = free_energy_flow(loss, start(generator), beta=10.0, t_end=5.0, method="rk3")
    assert free.status == "nonsmooth"


@pytest.mark.parametrize("depth", [2, 2.5, 3, math.inf])
def test_starts_that_do_not_move_are_told_at_once(depth, generator):
    loss = losses.Quadratic(target(generator))
    rank = {} if math.isfinite(depth) else {"rank": 1}
    at_target = dln.EndToEnd.of(loss.target, depth)
    seen = losses.Completion([0], [0], [1.0], (4, 3))
    elsewhere = torch.zeros(4, 3, dtype=F64)
    elsewhere[1, 1] = 0.5
    beside = dln.EndToEnd.of(elsewhere, depth, rank=1)
    cases = [(seen, beside)]
    if not rank:
        cases.append((loss, dln.EndToEnd.of(torch.zeros(4, 3, dtype=F64), depth)))
    for energy, point in cases:
        for options in ({"t_end": 5.0, "save_at": 3}, {"until": {"loss": 1e-6}}):
            with pytest.warns(UserWarning, match="velocity of the flow is zero at the start"):
                path = dln.gradient_flow(energy, point, **options)
            assert path.status == "stationary"
            assert path.stats["evaluations"] == 1
            assert len(path) == (3 if "t_end" in options else 1)
    if depth == 2:
        with pytest.warns(UserWarning, match="velocity of the flow is (zero|rounding alone)"):
            dln.gradient_flow(loss, at_target, t_end=1.0)


def test_a_start_of_layers_of_zeros_and_part_of_a_batch(generator):
    loss, point = losses.Quadratic(target(generator)), start(generator)
    zeros = [torch.zeros(3, 3, dtype=F64), torch.zeros(4, 3, dtype=F64)]
    with pytest.warns(UserWarning, match="Start from a small random network"):
        assert dln.gradient_flow(loss, zeros, until={"loss": 0.1}).status == "stationary"
    both = dln.Collapsed(*(torch.stack([x, 0 * x]) for x in (point.L, point.R)), point.depth)
    with pytest.warns(UserWarning, match="1 of 2 samples"):
        path = dln.gradient_flow(loss, both, t_end=0.5)
    assert path.status == ["t_end", "stationary"]


def test_a_start_that_moves_by_rounding_alone(generator):
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64))
    loss = losses.from_callable(lambda x: 0.5 * ((q.mT @ x @ q)[..., 0, 0] - 1.0).square())
    turned = q @ torch.diag(torch.tensor([0.0, 0.5, 0.0, 0.0], dtype=F64)) @ q.mT
    with pytest.warns(UserWarning, match="rounding alone|is zero"):
        dln.gradient_flow(loss, dln.EndToEnd.of(turned, 3, rank=1), t_end=1.0)


@pytest.mark.parametrize("rule", [{"gradient": 1e-9}, {"loss": 1e-16}], ids=str)
def test_rules_below_rounding_are_told(rule, generator, tmp_path):
    y = target(generator, torch.float32)
    point = start(generator, depth=2, dtype=torch.float32)
    run = functools.partial(dln.gradient_flow, losses.Quadratic(y), point, until=rule)
    with pytest.warns(UserWarning, match="cannot be met in torch.float32"):
        path = run(store=tmp_path / "run.zarr")
    assert path.status == "stalled"
    assert path.stats["evaluations"] < 20_000
    # What has come to an end stays there.
    with pytest.warns(UserWarning, match="cannot be met in torch.float32"):
        again = run(store=tmp_path / "run.zarr")
    assert again.status == "stalled"
    assert again.stats == path.stats
    assert torch.equal(again.final.matrix, path.final.matrix)


def test_a_rule_below_the_minimum_is_told(generator):
    y = target(generator)

    class Lifted(losses.Quadratic):
        def contract(self, left, right):
            value, *rest = super().contract(left, right)
            return value + 0.3, *rest

    with pytest.warns(UserWarning, match=r"loss 0\.1 cannot be met .* loss is 0\.3"):
        path = dln.gradient_flow(Lifted(y), start(generator, depth=2), until={"loss": 0.1})
    assert path.status == "stalled"


def test_the_default_bound_is_told_and_a_given_one_is_not(generator, monkeypatch):
    # By the module: the room has a function of the same name.
    module = sys.modules["dln_geometry.ode.integrate"]
    monkeypatch.setattr(module, "MOST_EVALUATIONS", 200)
    loss, point = losses.Quadratic(-torch.eye(4, 3, dtype=F64)), start(generator)
    with pytest.warns(UserWarning, match="evaluations ended the run at"):
        assert dln.gradient_flow(loss, point, t_end=1e6).status == "evaluations"
    path = dln.gradient_flow(loss, point, t_end=1e6, until={"evaluations": 300})
    assert path.status == "evaluations"
    free = dln.gradient_flow(loss, point, t_end=3.0, until={"evaluations": math.inf})
    assert free.status == "t_end"


BEHIND = torch.diag(torch.tensor([2.0, -1.0], dtype=F64))
"""A target of negative determinant: for starts of a positive one, a rank drop is in the way."""


@pytest.mark.parametrize("depth", [1, 1.5])
def test_flows_past_a_rank_drop_are_told_between_depths_one_and_two(depth, generator):
    x = torch.eye(2, dtype=F64) + 0.1 * torch.randn(2, 2, generator=generator, dtype=F64)
    begin = dln.Collapsed.of(dln.EndToEnd.of(x, depth))
    told = pytest.warns(UserWarning, match="reached zero and grew again: at depth 1.5")
    with told if depth == 1.5 else nullcontext():
        path = dln.gradient_flow(losses.Quadratic(BEHIND), begin, t_end=20.0)
    assert float(torch.linalg.det(path.final.matrix)) < 0


@pytest.mark.parametrize("method", ["auto", "rk5", "rkc", "rodas"])
@pytest.mark.parametrize("depth", [2, 2.5, 3, math.inf])
def test_flows_never_cross_a_rank_drop_from_depth_two_on(depth, method, generator):
    """Unbalanced errors grow as fast as det X decays, and would lead to the other side."""
    x = torch.eye(2, dtype=F64) + 0.1 * torch.randn(3, 2, 2, generator=generator, dtype=F64)
    begin = dln.Collapsed.of(dln.EndToEnd.of(x, depth))
    loss = losses.Quadratic(BEHIND)
    path = dln.gradient_flow(loss, begin, t_end=40.0, method=method, rtol=1e-4)
    assert path.status == ["t_end"] * 3
    assert bool((torch.linalg.det(path.final.matrix) > -1e-7).all())
    assert bool((path.loss[-1] > 0.49).all())


@pytest.mark.parametrize("method", ["auto", "rk5", "rodas"])
@pytest.mark.parametrize("width", [2, 4])
def test_layers_never_cross_a_rank_drop(width, method, generator):
    """Balanced ones; the smallest value decays below the rounding of a layer at depth 2."""
    x = torch.eye(2, dtype=F64) + 0.1 * torch.randn(3, 2, 2, generator=generator, dtype=F64)
    layers = dln.balanced_factors(
        dln.EndToEnd.of(x, 2), widths=(2, width, 2), gauge="haar", generator=generator
    )
    path = dln.gradient_flow(losses.Quadratic(BEHIND), layers, t_end=60.0, method=method)
    assert isinstance(path.final, dln.Network)
    assert bool((torch.linalg.det(path.final.matrix) > -1e-12).all())
    assert bool((path.loss[-1] > 0.49).all())
    one = dln.gradient_flow(losses.Quadratic(BEHIND), dln.EndToEnd.of(x, 2), t_end=60.0)
    gap = path.final.matrix - one.final.matrix
    assert float(gap.norm() / one.final.matrix.norm()) < 1e-6


def test_balanced_layers_rest_without_a_warning(generator):
    layers = [torch.eye(3, dtype=F64)] * 3
    path = kirwan_ness_flow(layers, 1.0)
    assert (path.status, path.t[-1]) == ("stationary", 1.0)
