"""Models of a small table trained at once, against one after the other; long flows in parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dln_geometry.completion import (
    Limits,
    MatrixCompleter,
    Problem,
    Search,
    Setting,
    train,
    train_together,
)
from dln_geometry.testing import assert_close


def problem_of(x, known, **options):
    rows, cols = (torch.from_numpy(k) for k in np.nonzero(known))
    return Problem(rows, cols, torch.from_numpy(x[known]), x.shape, **options)


@pytest.fixture
def folds(rng):
    """Two folds of a 14 x 9 table of rank 1 with side means, some weights and noise."""
    x = rng.normal(size=(14, 1)) @ rng.normal(size=(1, 9)) + rng.normal(size=(14, 1))
    x += 0.2 * rng.normal(size=x.shape)
    part = rng.integers(0, 6, x.shape)
    return [
        (problem_of(x, (part > 1) & (part != k + 2)), problem_of(x, part == k + 2))
        for k in range(2)
    ]


@pytest.mark.parametrize("depth", [2.0, 2.5, 3.0])
def test_many_at_once_are_many_one_by_one(depth, folds):
    settings = [Setting.of(depth, 4, decay, 1) for decay in (0.5, 0.1)]
    found = train_together(folds, settings, Limits(rtol=1e-9), t_end=0.3)
    assert found is not None
    for (problem, held), fits in zip(folds, found, strict=True):
        for setting, fit in zip(settings, fits, strict=True):
            alone = train(problem, setting, held, Limits(rtol=1e-9), times=(0.3,))
            assert fit.setting == setting
            assert fit.model.point.matrix == pytest.approx(
                alone.model.point.matrix, rel=1e-5, abs=1e-7
            )
            assert fit.train == pytest.approx(alone.train, rel=1e-6)
            assert fit.validation == pytest.approx(alone.validation, rel=1e-6)
            assert fit.side_means == pytest.approx(alone.side_means)


def test_each_fold_keeps_its_best_point(folds):
    """The validation error of a fit is the least of its curve, whatever the batch does."""
    settings = [Setting.of(2.5, 4, decay, 1) for decay in (0.5, 0.01)]
    found = train_together(folds, settings, Limits(), dtype=torch.float32)
    assert found is not None
    for fits in found:
        for fit in fits:
            times, errors = zip(*fit.curve, strict=True)
            assert list(times) == sorted(set(times))
            assert fit.validation == pytest.approx(min(errors), rel=1e-4)
            assert fit.times[0] == times[int(np.argmin(errors))]


@pytest.mark.parametrize("small", [True, False])
def test_offsets_are_shrunk_towards_zero_wherever_a_flow_ends(small, folds, rng, monkeypatch):
    """They minimise the penalised squares beside X: the flow begins at other offsets than zero."""
    monkeypatch.setattr(Problem, "is_small", small)
    problem = folds[0][0]
    places, weights = (problem.rows, problem.cols), torch.from_numpy(rng.random(len(problem)) + 0.5)
    features = torch.from_numpy(rng.normal(size=(14, 2))), None
    problem = replace(problem, shrink=3.0, weights=weights, features=features)
    fit = train(problem, Setting.of(2.5, 3, 0.1), None, Limits(rtol=1e-4))
    found, x = fit.model.offsets, fit.model.point.entries(*places)
    best = problem.side_means().fit_squares(x - problem.values)
    assert float((x - x.mean()).abs().max()) > 0.1
    assert_close(found.at(*places), best.at(*places), ops=1e4)


def test_a_fit_goes_on_as_one_long_flow(folds):
    problem, held = folds[0]
    setting = Setting.of(3.0, 4, 0.1, 1)
    rough = train(problem, setting, held, Limits(rtol=1e-8, evaluations=300))
    after = train(problem, setting, held, Limits(rtol=1e-8), start=rough.model).after(rough)
    whole = train(problem, setting, held, Limits(rtol=1e-8))
    assert after.validation <= rough.validation
    assert after.validation == pytest.approx(whole.validation, rel=5e-2)
    assert [t for t, _ in after.curve] == sorted({t for t, _ in after.curve})


def test_a_fold_that_learns_nothing_does_not_end_the_last_run(folds):
    """It runs up to the least pooled error; the best time of one fold is that of its start."""
    problem = folds[0][0].joined(folds[0][1])
    limits = {"rtol": 1e-3, "patience": 12, "seconds": np.inf}
    search = Search(problem, 0.2, seed=0, **limits)
    seen, held = search.folds[1]
    few = held.select(torch.arange(3))
    search.folds[1] = seen, replace(few, values=-5.0 * few.values)
    choice = search.choose((2.5,), 4, 0.1, refit=True, starts=1)
    first, second = choice.validated[:2]
    assert second.times[0] < 0.1 * first.times[0]
    assert choice.fits[0].times[0] > 0.3 * first.times[0]
    assert choice.fits[0].train < 2.0 * first.train


def test_large_tables_links_and_constants_are_not_trained_together(folds, rng):
    settings, budget = [Setting.of(2.0, 2, 0.5)], Limits()
    x = rng.random((300, 300))
    large = problem_of(x, rng.random(x.shape) < 0.2)
    counts = problem_of(np.floor(3 * x[:9, :9]), rng.random((9, 9)) < 0.7, loss="poisson")
    constant = problem_of(0 * x[:9, :9] + 2.0, rng.random((9, 9)) < 0.7)
    for problem in (large, counts, constant):
        assert train_together([(problem, None)], settings, budget, t_end=1.0) is None
    deep = [Setting.of(float("inf"), 2, 0.5)]
    assert train_together(folds, deep, budget) is None


@pytest.mark.parametrize(("noise", "most"), [(0.0, 0.1), (0.3, 1.0)])
def test_without_validation_the_decay_follows_the_noise(noise, most, rng):
    """A table without noise is recovered; with it, no decay may be so small that it is fitted."""
    truth = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 40))
    known = rng.random(truth.shape) < 0.6
    holes = np.where(known, truth + noise * rng.normal(size=truth.shape), np.nan)
    for depth in (2, "auto"):
        completer = MatrixCompleter(depth, validation=0).fit(holes)
        error = np.sqrt(np.mean((completer.complete() - truth)[~known] ** 2))
        assert error < most * (noise or 1.0)
        assert completer.decay_ < 0.5


def test_without_validation_noise_alone_is_told_and_hardly_fitted(rng):
    truth = rng.normal(size=(60, 1)) + rng.normal(size=40)
    known = rng.random(truth.shape) < 0.5
    holes = np.where(known, truth + rng.normal(size=truth.shape), np.nan)
    with pytest.warns(UserWarning, match="noise explains the entries as well"):
        completer = MatrixCompleter(validation=0).fit(holes)
    assert (completer.depth_, completer.decay_) == (2.0, 1.0)
    error, means = completer.errors(np.nonzero(~known), truth[~known])
    assert error < 1.05 * means
