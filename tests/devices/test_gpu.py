"""The same figures on a CUDA device as on the CPU; run where there is one."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.testing import assert_close

pytestmark = pytest.mark.gpu
F64 = torch.float64


def pair(generator, depth, rank=4, shape=(7, 5)):
    s = torch.linspace(1.3, 0.2, rank, dtype=F64)
    return dln.Collapsed.random(shape, rank, depth, spectrum=s, generator=generator)


def on_device(point):
    return dln.Collapsed(point.L.cuda(), point.R.cuda(), point.depth)


@pytest.mark.parametrize("depth", [1, 2.7, 4, math.inf])
def test_geometry(depth, generator):
    point = pair(generator, depth)
    here, there = point.point(), on_device(point).point()
    g = torch.randn(7, 5, generator=generator, dtype=F64)
    for f in (dln.cometric, dln.cometric_sqrt):
        assert f(there, g.cuda()).is_cuda
        assert_close(f(there, g.cuda()).cpu(), f(here, g), ops=1000)
    assert_close(dln.entropy(there).cpu(), dln.entropy(here), ops=1000)
    assert_close(dln.log_volume_density(there).cpu(), dln.log_volume_density(here), ops=1000)


def test_factors_and_frames(generator):
    device = torch.Generator(device="cuda").manual_seed(1)
    layers = dln.random_balanced((5, 6, 4, 7), rank=3, generator=device, dtype=F64, device="cuda")
    assert bool(dln.is_balanced(layers))
    again = dln.balance([w + 0.01 for w in layers])
    assert again[0].is_cuda
    for frame in (dln.horizontal_frame(layers), dln.vertical_frame(layers)):
        flat = torch.cat([part.flatten(-2) for part in frame], dim=-1)
        assert_close((flat @ flat.mT).cpu(), torch.eye(flat.shape[0], dtype=F64), ops=1000)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 2.7, 150, math.inf])
@pytest.mark.parametrize("kind", ["quadratic", "completion"])
def test_flow(depth, kind, generator):
    target = torch.randn(7, 5, generator=generator, dtype=F64)
    if kind == "quadratic":
        loss = losses.Quadratic(target)
    else:
        rows, cols = torch.arange(20) % 7, torch.arange(20) % 5
        loss = losses.Completion(rows, cols, target[rows, cols], (7, 5))
    point = pair(generator, depth)
    t = 0.5 if math.isinf(depth) else 0.5 / depth
    here = dln.gradient_flow(loss, point, t_end=t, rtol=1e-10)
    there = dln.gradient_flow(loss, on_device(point), t_end=t, rtol=1e-10)
    assert there.final.matrix.is_cuda
    gap = torch.linalg.matrix_norm(there.final.matrix.cpu() - here.final.matrix)
    assert float(gap / torch.linalg.matrix_norm(here.final.matrix)) < 1e-7


def test_balancing(generator):
    layers = [torch.randn(5, 5, generator=generator, dtype=F64).cuda() for _ in range(3)]
    moved = dln.balancing_flow(layers, 0.7)
    for got, start in zip(dln.moments(moved), dln.moments(layers), strict=True):
        assert_close(got.cpu(), math.exp(-1.4) * start.cpu(), ops=1e6)
