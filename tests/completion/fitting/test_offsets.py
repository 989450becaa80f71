"""Side means against a dense solve, and the loss in which they are eliminated."""

from __future__ import annotations

import pytest
import torch

from dln_geometry.completion import DenseCompletion, ProfiledCompletion, SideMeans
from dln_geometry.dynamics.losses import Completion
from dln_geometry.geometry.points import Collapsed
from dln_geometry.testing import assert_close

SHAPE = 7, 5


@pytest.fixture
def entries(generator):
    """Places, residuals and weights of 23 entries of a 7 x 5 table."""
    place = torch.randperm(35, generator=generator)[:23].sort().values
    r, w = torch.randn(2, 23, generator=generator, dtype=torch.float64)
    return place // 5, place % 5, r, w.exp()


def model_and_design(entries, generator, sides, features):
    rows, cols, r, w = entries
    f, g = (
        torch.randn(count, p, generator=generator, dtype=torch.float64) if p else None
        for count, p in zip(SHAPE, features, strict=True)
    )
    model = SideMeans(rows, cols, SHAPE, w, shrink=1.7, sides=sides, features=(f, g), like=r)
    # One column for each parameter: mean, rows, columns, slopes.
    blocks = [torch.ones_like(r)[:, None]]
    for side, count in ((rows, 7), (cols, 5)):
        blocks.append(torch.nn.functional.one_hot(side, count).to(r) * float(sides))
    blocks += [x[side] for x, side in ((f, rows), (g, cols)) if x is not None]
    slope = len(r) / max(SHAPE)
    ridge = [0.0] + [1.7] * 12 + [slope] * sum(features)
    return model, torch.cat(blocks, 1), torch.diag(torch.tensor(ridge, dtype=r.dtype))


@pytest.mark.parametrize("sides", [True, False])
@pytest.mark.parametrize("features", [(0, 0), (2, 0), (1, 3)])
@pytest.mark.parametrize("iterated", [False, True])
def test_side_means_are_the_least_squares_solution(sides, features, iterated, entries, generator):
    rows, cols, r, w = entries
    model, a, ridge = model_and_design(entries, generator, sides, features)
    if iterated:
        model.inverse = None
    expected = torch.linalg.solve(a.mT @ (w[:, None] * a) + ridge, -a.mT @ (w * r))
    condition = float(torch.linalg.cond(a.mT @ (w[:, None] * a) + ridge))
    found = model.solve(r, 200)
    assert_close(found, expected, ops=300 * condition)
    offsets = model.fit_squares(r, 200)
    assert_close(offsets.at(rows, cols), a @ expected, ops=300 * condition)
    assert_close(model.spread(found), a @ expected, ops=300 * condition)


def test_spread_and_gathered_are_adjoint(entries, generator):
    model, _, _ = model_and_design(entries, generator, True, (2, 1))
    o = torch.randn(4, len(model.ridge), generator=generator, dtype=torch.float64)
    t = torch.randn(4, 23, generator=generator, dtype=torch.float64)
    assert_close((model.spread(o) * t).sum(-1), (o * model.gathered(t)).sum(-1), ops=300)


def test_the_profiled_loss_is_the_minimum_over_offsets(entries, generator):
    rows, cols, v, w = entries
    model, a, ridge = model_and_design(entries, generator, True, (2, 0))
    loss = ProfiledCompletion.of(Completion(rows, cols, v, SHAPE, weights=w), model)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    gap = x[rows, cols] - v
    o = torch.linalg.solve(a.mT @ (w[:, None] * a) + ridge, -a.mT @ (w * gap))

    def explicit(o):
        return 0.5 * (w * (gap + a @ o).square()).sum() + 0.5 * o @ ridge @ o

    value = loss.value(x)
    assert_close(value, explicit(o), ops=1000)
    for _ in range(5):
        other = o + 0.1 * torch.randn(o.shape, generator=generator, dtype=o.dtype)
        assert value < explicit(other)


def test_the_profiled_gradient_is_that_of_its_value(entries, generator):
    rows, cols, v, w = entries
    model, _, _ = model_and_design(entries, generator, True, (0, 2))
    loss = ProfiledCompletion.of(Completion(rows, cols, v, SHAPE, weights=w), model)
    x, d = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    h = 1e-3  # the loss is quadratic: central differences are exact but for roundings
    slope = (loss.value(x + h * d) - loss.value(x - h * d)) / (2 * h)
    assert_close((loss.gradient(x) * d).sum(), slope, ops=1000 / h)


@pytest.mark.parametrize("features", [(0, 0), (2, 1)])
@pytest.mark.parametrize("sides", [True, False])
def test_dense_and_sparse_losses_agree(sides, features, entries, generator):
    """Also many at once, with other entries and weights."""
    rows, cols, v, w = entries
    model, _, _ = model_and_design(entries, generator, sides, features)
    sparse = ProfiledCompletion.of(Completion(rows, cols, v, SHAPE, weights=w), model)
    fewer = SideMeans(
        *(rows[3:], cols[3:], SHAPE, w[3:]),
        shrink=1.7,
        sides=sides,
        features=tuple(x[0] if x else None for x in model.features),
        like=v,
    )
    fewer.ridge[-sum(features) or None :] = model.ridge[-sum(features) or None :]
    other = ProfiledCompletion.of(
        Completion(rows[3:], cols[3:], 2.0 * v[3:], SHAPE, weights=w[3:]), fewer
    )
    fewer.inverse = fewer._dense_inverse()
    dense = [DenseCompletion.of(v, model), DenseCompletion.of(2.0 * v[3:], fewer)]
    both = DenseCompletion.stacked(dense)
    left = torch.randn(2, 4, SHAPE[0], 2, generator=generator, dtype=torch.float64)
    right = torch.randn(2, 4, SHAPE[1], 2, generator=generator, dtype=torch.float64)
    found = both.contract(left, right)
    for f, loss in enumerate((sparse, other)):
        for k in range(4):
            expected = loss.contract(left[f, k], right[f, k])
            for one, whole, alone in zip(
                expected, found, dense[f].contract(left[f, k], right[f, k]), strict=True
            ):
                assert_close(whole[f, k], one, ops=3000)
                assert_close(alone, one, ops=3000)
    x = left @ right.mT
    assert_close(both.value(x), found[0], ops=300)
    assert_close(both.gradient(x) @ right, found[1], ops=300)
    point = Collapsed.random(SHAPE, 2, 3, generator=generator, dtype=torch.float64)
    found = (vars(loss.offsets_of(point)) for loss in (dense[0], sparse))
    for a, b in zip(*(one.values() for one in found), strict=True):
        if a is None or b is None:
            assert a is b  # there are no features
        else:
            assert_close(a, b, ops=3000)
