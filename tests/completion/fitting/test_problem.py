"""Units of a problem against dense linear algebra, and errors of weighted entries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dln_geometry.completion import Problem, units_of


@pytest.fixture
def problem(rng):
    """A table of 30 x 20 with 400 known entries, weighted."""
    place = np.sort(rng.permutation(600)[:400])
    rows, cols = (torch.from_numpy(x) for x in (place // 20, place % 20))
    values, weights = (torch.from_numpy(rng.normal(size=400)) for _ in range(2))
    return Problem(rows, cols, values, (30, 20), weights.exp())


def norm(problem, entries):
    dense = np.zeros(problem.shape)
    dense[problem.rows, problem.cols] = problem.weights * entries
    return np.linalg.norm(dense, 2)


def test_units_are_spectral_norms(problem, rng):
    slope = problem.values + 1.0  # a mode that stands out
    curvature = torch.from_numpy(rng.random(400))
    found = units_of(problem, slope, curvature, 3)
    assert found.signal == pytest.approx(norm(problem, slope), rel=0.02)
    signs = rng.choice([-1.0, 1.0], (50, 400))
    noises = [norm(problem, slope * torch.from_numpy(s)) for s in signs]
    assert abs(found.noise - np.mean(noises)) < 4 * np.std(noises)
    density = float((problem.weights * curvature).sum()) / 600
    assert found.size == pytest.approx(found.signal / density)


def test_units_do_not_depend_on_the_order_of_entries(problem, rng):
    order = torch.from_numpy(rng.permutation(400))
    ones = torch.ones(400, dtype=torch.float64)
    found = units_of(problem.select(order), problem.values[order], ones, 3)
    assert found.signal == pytest.approx(units_of(problem, problem.values, ones, 3).signal)


def test_decay_scales_with_the_table(problem):
    """Twice the entries ask for twice the X, with the forces that balance there."""
    ones = torch.ones(400, dtype=torch.float64)
    one, two = (units_of(problem, k * problem.values, ones, 3) for k in (1.0, 2.0))
    for depth in (1.5, 2.0, 3.0, np.inf):
        ratio = two.decay(0.4, depth) / one.decay(0.4, depth)
        assert ratio == pytest.approx(2.0 ** (2.0 - 2.0 / depth))


def test_errors_count_by_weight_within_the_bounds(problem):
    bounded = replace(problem, bounds=(-1.0, 0.5))
    z = problem.values.flip(0)
    gap = np.clip(z.numpy(), -1.0, 0.5) - problem.values.numpy()
    expected = np.sqrt(np.average(gap**2, weights=problem.weights.numpy()))
    assert float(bounded.error(z)) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_log_losses_are_least_at_the_truth(loss, problem):
    z = problem.values
    with_link = replace(problem, loss=loss)
    truth = replace(with_link, values=with_link.link.mean(z))
    assert float(truth.error(z)) < float(truth.error(z + 0.1))
    assert float(truth.error(z)) < float(truth.error(z - 0.1))
