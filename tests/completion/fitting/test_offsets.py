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
    ridge = [0.0] + [1.7] * 12 + [0.2 * 1.7] * sum(features)
    return model, torch.cat(blocks, 1), torch.diag(torch.tensor(ridge, dtype=r.dtype))


@pytest.mark.parametrize("sides", [True, False])
@pytest.mark.parametrize("features", [(0, 0), (2, 0), (1, 3)])
@pytest.mark.parametrize("way", ["inverse", "eliminated", "iterated"])
@pytest.mark.parametrize("wide", [False, True])
def test_side_means_are_the_least_squares_solution(
    sides, features, way, wide, entries, generator, monkeypatch
):
    rows, cols, r, w = entries
    model, a, ridge = model_and_design(entries, generator, sides, features)
    if wide:  # the other side is eliminated
        turned = torch.argsort(cols * SHAPE[0] + rows)
        model = SideMeans(
            *(cols, rows, SHAPE[::-1], w),
            shrink=1.7,
            sides=sides,
            features=tuple(x[0] if x else None for x in model.features[::-1]),
            like=r,
        )
        assert not model.is_sorted or turned.equal(torch.arange(23))
    if way != "inverse":
        model.inverse = None
    if way == "iterated":
        monkeypatch.setattr("dln_geometry.completion.fitting.equations.MOST", 0)
    expected = torch.linalg.solve(a.mT @ (w[:, None] * a) + ridge, -a.mT @ (w * r))
    condition = float(torch.linalg.cond(a.mT @ (w[:, None] * a) + ridge))
    found = model.solve(r, 200)
    offsets = model.fit_squares(r, 200)
    if wide:
        mean, c, b, *slopes = found.split(model.sizes)
        slopes = slopes[::-1] if all(features) else slopes
        assert_close(torch.cat((mean, b, c, *slopes)), expected, ops=300 * condition)
        assert_close(offsets.at(cols, rows), a @ expected, ops=300 * condition)
        return
    assert_close(found, expected, ops=300 * condition)
    assert_close(offsets.at(rows, cols), a @ expected, ops=300 * condition)
    assert_close(model.spread(found), a @ expected, ops=300 * condition)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shrink", [5.0, 0.01])
def test_two_steps_are_enough_for_many_entries(shrink, dtype, generator, monkeypatch):
    """What the ridge alone decides would take conjugate gradients many steps."""
    monkeypatch.setattr("dln_geometry.completion.fitting.equations.MOST", 0)
    key = torch.randperm(300 * 200, generator=generator)[:20_000].sort().values
    rows, cols, r = key // 200, key % 200, torch.randn(20_000, generator=generator).to(dtype)
    model = SideMeans(rows, cols, (300, 200), shrink=shrink, like=r)
    model.inverse = None
    r = r + 3.0 + model.spread(torch.randn(501, generator=generator).to(dtype))
    exact, few = (model.spread(model.solve(r, steps)) for steps in (100, 2))
    assert float((few - exact).norm()) < 2e-3 * float(exact.norm())


def test_means_that_nothing_decides_are_zero_or_agree(generator, monkeypatch):
    """Without a ridge the equations are singular; row 3 and column 4 have no entries."""
    rows, cols = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 3])
    r = torch.randn(5, generator=generator, dtype=torch.float64)
    for most in (0, 1024):
        monkeypatch.setattr("dln_geometry.completion.fitting.equations.MOST", most)
        model = SideMeans(rows, cols, (4, 5), shrink=0.0, like=r)
        model.inverse = None
        o = model.fit_squares(r)
        assert_close(o.at(rows, cols), -r, ops=1e6)
        assert float(o.rows[3]) == 0.0
        assert float(o.cols[4]) == 0.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("features", [(0, 0), (2, 1)])
def test_one_pass_is_the_same_as_residuals(weighted, features, generator, monkeypatch):
    """The compiled pass adds offsets to X; else the entries are gone through one by one."""
    monkeypatch.setattr("dln_geometry.dynamics.losses.completion.DENSE", 0)
    monkeypatch.setattr("dln_geometry.dynamics.entries.tiles.LEAST_WORK", 1)
    key = torch.randperm(60 * 40, generator=generator)[:900].sort().values
    rows, cols = key // 40, key % 40
    v, w = torch.randn(2, 900, generator=generator, dtype=torch.float64)
    f, g = (
        torch.randn(count, p, generator=generator, dtype=torch.float64) if p else None
        for count, p in zip((60, 40), features, strict=True)
    )
    w = w.exp() if weighted else None
    model = SideMeans(rows, cols, (60, 40), w, shrink=1.7, features=(f, g), like=v)
    loss = ProfiledCompletion.of(Completion(rows, cols, v, (60, 40), weights=w), model)
    left, right = (torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (60, 40))
    found = loss.contract(left, right)
    if loss._whole(left, right) is not None:
        monkeypatch.setattr(ProfiledCompletion, "_whole", lambda *_: None)
    for one, other in zip(found, loss.contract(left, right), strict=True):
        assert_close(one, other, ops=1e4)


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
    other = ProfiledCompletion.of(
        Completion(rows[3:], cols[3:], 2.0 * v[3:], SHAPE, weights=w[3:]), fewer
    )
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
