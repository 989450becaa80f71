"""Rows completed by a trained model against an explicit ridge solve; coverage of intervals."""

from __future__ import annotations

import numpy as np
import pytest

from dln_geometry.completion import MatrixCompleter


@pytest.fixture
def table(rng):
    x = 3.0 + rng.normal(size=(60, 1)) + rng.normal(size=60)
    x = x + rng.normal(size=(60, 2)) @ rng.normal(size=(2, 60)) + 0.3 * rng.normal(size=(60, 60))
    return x, np.where(rng.random(x.shape) < 0.6, x, np.nan)


@pytest.mark.parametrize("biases", [True, False])
def test_folded_rows_solve_their_ridge_problem(biases, table, rng):
    _, holes = table
    completer = MatrixCompleter(2, 4, 0.5, biases=biases, shrink=2.5, validation=0.0, rtol=1e-2)
    completer.fit(holes)
    rows = np.where(rng.random((3, 60)) < 0.3, rng.normal(size=(3, 60)), np.nan)
    (model,) = completer.models_
    o, x = model.offsets, model.point.matrix.numpy()
    _, s, vh = np.linalg.svd(x)
    r = int((s > 1e-4 * s[0]).sum())
    base = float(o.mean) + o.cols.numpy() + x.mean(0)
    design = np.column_stack([np.ones(60)] * biases + [vh[:r].T])
    spreads = np.r_[[np.linalg.norm(o.rows.numpy())] * biases, s[:r]]  # the prior of b and z
    ridge = completer.train_error_**2 * 60 / spreads**2
    for row, found in zip(rows, completer.predict(rows), strict=True):
        seen = ~np.isnan(row)
        a = np.vstack([design[seen], np.diag(np.sqrt(ridge))])
        b = np.concatenate([row[seen] - base[seen], np.zeros(len(ridge))])
        z = np.linalg.lstsq(a, b, rcond=None)[0]
        assert found == pytest.approx(base + design @ z, rel=1e-8)


def test_rows_are_completed_as_well_by_their_own_entries(table):
    """Those of the fit, and those that it has not seen."""
    x, holes = table
    completer = MatrixCompleter(2.5, 6, 0.1, shrink=5.0, rtol=1e-2).fit(holes[:40])
    hidden = np.isnan(holes)

    def error(found, rows):
        return np.sqrt(np.mean((found - x[rows])[hidden[rows]] ** 2))

    old, new = slice(40), slice(40, 60)
    least = error(completer.complete(), old)
    assert error(completer.transform(holes[old]), old) < 1.2 * least
    assert error(completer.transform(holes[new]), new) < 1.2 * least


def test_a_row_without_entries_is_completed_by_column_means(table):
    """With what X adds to all rows alike."""
    completer = MatrixCompleter(2, 4, 0.5, shrink=5.0, validation=0.0, rtol=1e-2).fit(table[1])
    (model,) = completer.models_
    expected = (float(model.offsets.mean) + model.offsets.cols + model.point.matrix.mean(0)).numpy()
    found = completer.transform(np.full((1, 60), np.nan))[0]
    assert found == pytest.approx(expected)


def test_intervals_cover_as_they_say(table):
    x, holes = table
    completer = MatrixCompleter(2, 6, 0.5, shrink=5.0, validation=0.2, rtol=1e-2).fit(holes)
    places = np.nonzero(np.isnan(holes))
    _, low, high = completer.predict(*places, interval=0.9)
    covered = ((low <= x[places]) & (x[places] <= high)).mean()
    # The quantile is estimated from the entries that are held out, the share from the others.
    held = 0.2 * (~np.isnan(holes)).sum()
    error = np.sqrt(0.09 * (1 / held + 1 / len(places[0])))
    assert abs(covered - 0.9) < 4 * error
    assert abs(completer.coverage_ - 0.9) < 4 * np.sqrt(0.09 * 4 / held)
    wide = completer.predict(*places, interval=0.99)
    assert (wide[2] - wide[1] > high - low).all()


@pytest.mark.filterwarnings("ignore:.* have a row or column that the fit did not see")
def test_intervals_of_unknown_rows_cover_too(table, rng):
    x, holes = table
    completer = MatrixCompleter(2, 6, 0.5, shrink=5.0, validation=0.2, rtol=1e-2)
    completer.fit(holes[:45])
    places = np.nonzero(np.ones((15, 60)))
    _, low, high = completer.predict(places[0] + 45, places[1], interval=0.9)
    assert ((low <= x[45:][places]) & (x[45:][places] <= high)).mean() > 0.75
    known = completer.predict(places[0], places[1], interval=0.9)
    assert (high - low).min() > (known[2] - known[1]).max()


@pytest.mark.filterwarnings("ignore:the best validation error")
def test_levels_beyond_the_held_out_entries_are_told(table):
    completer = MatrixCompleter(2, 2, 0.5, shrink=5.0, rtol=1e-2).fit(table[1][:8, :8])
    with pytest.warns(UserWarning, match="intervals of level 0.99 need 99 held-out entries"):
        completer.predict([0], [0], interval=0.99)


def test_starts_are_averaged(table):
    _, holes = table
    options = {"shrink": 5.0, "validation": 0.0, "rtol": 1e-2}
    both = MatrixCompleter(3, 2, 0.1, starts=2, **options).fit(holes)
    parts = []
    for model in both.models_:
        o = model.offsets
        z = o.mean + o.rows[:, None] + o.cols + model.point.matrix
        parts.append(z.numpy())
    assert not np.array_equal(*parts)
    assert both.complete() == pytest.approx(np.mean(parts, 0))
    rows, cols = np.indices(holes.shape).reshape(2, -1)
    assert both.predict(rows, cols) == pytest.approx(np.mean(parts, 0).ravel())
