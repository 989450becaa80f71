"""Critical points: made, classified, and their Hessians."""

from __future__ import annotations

import itertools

import pytest
import torch

import dln_geometry as dln
from dln_geometry import landscape, losses
from dln_geometry.testing import assert_close

F64 = torch.float64


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=F64)


def problems(generator, m, n):
    """Return a target of separate singular values, and a regression whose best X is generic."""
    u, v = (torch.linalg.qr(normal(generator, d, d))[0] for d in (m, n))
    s = torch.linspace(3.0, 1.0, min(m, n), dtype=F64)
    target = losses.Quadratic((u[:, : len(s)] * s) @ v[:, : len(s)].mT)
    pairs = normal(generator, 9, n), normal(generator, 9, m)
    return target, losses.Regression(*pairs), losses.Regression(*pairs, reduction="mean")


@pytest.mark.parametrize("widths", [(3, 2), (3, 4, 2), (2, 3, 1, 3), (2, 2, 3, 2, 3)])
def test_hessian_agrees_with_automatic_differentiation(widths, generator):
    shapes = [(b, a) for a, b in itertools.pairwise(widths)]
    layers = [normal(generator, *s) for s in shapes]
    sizes = [w.numel() for w in layers]

    def value(y):
        parts = [x.view(s) for x, s in zip(y.split(sizes), shapes, strict=True)]
        return loss.value(dln.end_to_end(parts))

    flat = torch.cat([w.flatten() for w in layers])
    for loss in problems(generator, widths[-1], widths[0]):
        hessian = landscape.layer_hessian(loss, layers)
        expected = torch.autograd.functional.hessian(value, flat)
        assert_close(hessian, expected, ops=1e3)


CASES = [
    ((3, 3, 3), (0, 2), None),
    ((3, 4, 3), (1,), None),
    ((2, 3, 3, 3), (1,), None),
    ((2, 3, 3, 3), (0,), None),
    ((3, 3, 4, 3), (), None),
    ((3, 4, 3, 3), (0,), 2),
    ((3, 4, 3, 3), (1, 2), 2),
    ((3, 3, 3, 3, 3), (0, 1), 3),
    ((3, 3, 3, 3, 3), (0,), 4),
    ((3, 2, 4, 3), (0, 1), None),
    ((3, 2, 4, 3), (0, 2), None),
    ((3, 3), (0, 1, 2), None),
]


@pytest.mark.parametrize(("widths", "modes", "zeros"), CASES)
def test_kinds_agree_with_the_spectrum_of_the_hessian(widths, modes, zeros, generator):
    for loss in problems(generator, widths[-1], widths[0]):
        layers = landscape.critical_factors(loss, widths, modes, zeros=zeros, generator=generator)
        found = landscape.classify(loss, layers)
        assert found.modes == modes
        assert found.gradient < 1e-9
        assert_close(found.value, loss.value(layers.matrix), ops=1e4)
        hessian = landscape.layer_hessian(loss, layers)
        e = torch.linalg.eigvalsh(hessian)
        assert (float(e[0]) < -1e-8) == found.is_strict
        best = len(modes) == min(widths) and modes == tuple(range(len(modes)))
        assert (found.kind == "global minimiser") == best
        if zeros is None:
            assert not landscape.RankPattern.of(layers).ranks[(len(widths) - 1, 0)] - len(modes)
            s = _whitened_values(loss)
            assert found.index == landscape.saddle_index(s, widths, modes)


def _whitened_values(loss):
    if isinstance(loss, losses.Quadratic):
        return torch.linalg.svdvals(loss.target)
    q, _ = torch.linalg.qr(loss.inputs)
    return torch.linalg.svdvals(loss.outputs.mT @ q)


def test_non_strict_saddles_can_be_left(generator):
    """No direction curves downward, but small steps of all layers lower the loss."""
    loss = problems(generator, 3, 3)[0]
    layers = landscape.critical_factors(loss, (3, 3, 3, 3), [0], generator=generator)
    found = landscape.classify(loss, layers)
    assert (found.kind, found.index, found.tightened) == ("non-strict saddle", 0, True)
    path = dln.gradient_flow(
        loss, [w + 0.05 * normal(generator, *w.shape) for w in layers], t_end=60.0
    )
    assert float(path.loss[-1]) < found.value - 0.1


def test_balanced_critical_points_have_the_closed_index(generator):
    loss = problems(generator, 4, 3)[0]
    u, s, vh = torch.linalg.svd(loss.target, full_matrices=False)
    for modes in ((2,), (0, 2), (1, 2), (0,)):
        kept = list(modes)
        point = dln.EndToEnd.of((u[:, kept] * s[kept]) @ vh[kept], 3, rank=len(kept))
        layers = dln.balanced_factors(point, widths=(3, 4, 3, 4), gauge="haar", generator=generator)
        found = landscape.classify(loss, layers)
        assert found.modes == modes
        assert found.index == landscape.saddle_index(s, (3, 4, 3, 4), modes)


def test_targets_of_low_rank_and_equal_values(generator):
    u, v = (torch.linalg.qr(normal(generator, 3, 3))[0] for _ in "uv")
    low = losses.Quadratic((u * torch.tensor([2.0, 1.0, 0.0], dtype=F64)) @ v.mT)
    layers = landscape.critical_factors(low, (3, 3, 3), [0, 1], generator=generator)
    assert landscape.classify(low, layers).kind == "global minimiser"
    equal = losses.Quadratic((u * torch.tensor([2.0, 2.0, 1.0], dtype=F64)) @ v.mT)
    layers = landscape.critical_factors(equal, (3, 3, 3, 3), [1], generator=generator)
    found = landscape.classify(equal, layers)
    assert (found.kind, found.modes, found.index) == ("non-strict saddle", (0,), 0)


def test_refusals(generator):
    loss = losses.Quadratic(normal(generator, 2, 2))
    layers = [normal(generator, 2, 2) for _ in range(2)]
    with pytest.raises(ValueError, match="factors must be a critical point"):
        landscape.classify(loss, layers)
    with pytest.raises(TypeError, match=r"loss must be losses.Quadratic or losses.Regression"):
        landscape.classify(losses.Huber(loss.target), layers)
    with pytest.raises(ValueError, match="inputs must span"):
        landscape.layer_hessian(losses.Regression([[1.0, 0.0]], [[1.0, 0.0]]), layers)
    with pytest.raises(ValueError, match="factors must be of one network"):
        landscape.layer_hessian(loss, [torch.ones(3, 2, 2), torch.ones(3, 2, 2)])
    with pytest.raises(ValueError, match="modes must be at most 2 different ones"):
        landscape.critical_factors(loss, (2, 2, 2), [0, 0])
    with pytest.raises(ValueError, match="modes must be of positive singular values"):
        landscape.critical_factors(loss, (2, 2, 2), [2])
    with pytest.raises(TypeError, match="must be real here"):
        landscape.layer_hessian(loss, [w.to(torch.complex128) for w in layers])
