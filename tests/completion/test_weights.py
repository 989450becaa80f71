"""Weights, features, held-out entries and bounds as users give them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from dln_geometry.completion import MatrixCompleter

pd = pytest.importorskip("pandas")
PLAIN = {"depth": 2, "rank": 2, "decay": 0.5, "shrink": 5.0, "rtol": 1e-2}
QUICK = {**PLAIN, "validation": 0.0}


@pytest.mark.parametrize("kind", ["pairs", "matrix", "sparse"])
def test_weights_count_entries(kind, holes, pairs, rng):
    """Zero leaves an entry out; however they come, weights belong to their entries."""
    rows, cols, values = pairs
    w = rng.integers(0, 3, len(values)).astype(float)
    seen = w > 0
    dense = np.full(holes.shape, np.nan)  # where nothing is known
    dense[rows, cols] = w
    table = holes.copy()
    table[rows[~seen], cols[~seen]] = np.nan
    if kind == "pairs":
        found = MatrixCompleter(**QUICK).fit((rows, cols), values, weights=w)
        expected = MatrixCompleter(**QUICK).fit(
            (rows[seen], cols[seen]), values[seen], weights=w[seen]
        )
    else:
        x = holes if kind == "matrix" else sparse.coo_array((values, (rows, cols)), holes.shape)
        weights = dense if kind == "matrix" else sparse.csr_array((w, (rows, cols)), holes.shape)
        found = MatrixCompleter(**QUICK).fit(x, weights=weights)
        expected = MatrixCompleter(**QUICK).fit(table, weights=dense)
    assert np.array_equal(found.complete(), expected.complete())
    plain = MatrixCompleter(**QUICK).fit(table)
    assert not np.allclose(plain.complete(), found.complete(), rtol=1e-3)


@pytest.mark.parametrize("bad", [[-1.0], [0.0], [np.nan], [1.0, 1.0]])
def test_wrong_weights_are_refused(bad, pairs):
    weights = np.resize(bad, len(pairs[2]) + len(bad) - 1)
    with pytest.raises(ValueError, match="weights (must|of known entries must)"):
        MatrixCompleter(**QUICK).fit(pairs[:2], pairs[2], weights=weights)


def test_features_of_frames_are_aligned_by_their_index(holes, pairs, rng):
    rows, cols, values = pairs
    features = pd.DataFrame(rng.normal(size=(15, 2)))
    shuffled = features.sample(frac=1.0, random_state=1)
    expected = MatrixCompleter(**QUICK).fit(holes, row_features=features)
    found = MatrixCompleter(**QUICK).fit(holes, row_features=shuffled)
    assert np.array_equal(found.complete(), expected.complete())
    scaled = MatrixCompleter(**QUICK).fit(holes, row_features=5.0 + 3.0 * features.to_numpy())
    assert scaled.complete() == pytest.approx(expected.complete(), rel=1e-6)
    names = [f"r{k}" for k in range(15)]
    shuffled.index = [names[k] for k in shuffled.index]
    by_name = MatrixCompleter(**QUICK).fit(
        ([names[k] for k in rows], cols), values, row_features=shuffled
    )
    order = [by_name.row_ids_.place(name) for name in names]
    assert by_name.models_[0].offsets.rows.numpy()[order] == pytest.approx(
        expected.models_[0].offsets.rows.numpy(), abs=0.05
    )
    with pytest.raises(ValueError, match="one line for every id, got 'r. repeatedly|repeatedly"):
        MatrixCompleter(**QUICK).fit(holes, row_features=pd.concat([features, features]))
    with pytest.raises(ValueError, match="must have a line for every id"):
        MatrixCompleter(**QUICK).fit(
            ([names[k] for k in rows], cols), values, row_features=shuffled[:-1]
        )
    with pytest.raises(ValueError, match=r"must have shape \(15, p\)"):
        MatrixCompleter(**QUICK).fit(holes, row_features=np.ones((14, 2)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda i, j, y: (i, j), "must be a tuple"),
        (lambda i, j, y: (i, j, y[:-1]), "must have one length"),
        (lambda i, j, y: (i, j, np.nan * y), "must be finite"),
        (lambda i, j, y: (i + 99, j, y), "known rows and columns"),
        (lambda i, j, y: (np.r_[i, i], np.r_[j, j], np.r_[y, y]), "every entry once"),
        (lambda i, j, y: (i[:0], j[:0], y[:0]), "known rows and columns"),
    ],
)
def test_wrong_held_out_entries_are_refused(change, match, holes):
    i, j = np.nonzero(np.isnan(holes))
    with pytest.raises((TypeError, ValueError), match=match):
        MatrixCompleter(**PLAIN).fit(holes, validation_entries=change(i, j, np.ones(len(i))))


def test_held_out_entries_must_not_be_given_twice(holes, pairs):
    held = tuple(x[:5] for x in pairs)
    with pytest.raises(ValueError, match="must not be among the entries of X, got 5 that are"):
        MatrixCompleter(**PLAIN).fit(holes, validation_entries=held)


def test_weights_stay_when_held_out_entries_are_added(holes, pairs):
    """The refit is that of all entries, those that were held out with weight 1."""
    rows, cols, values = pairs
    held = np.arange(len(values)) % 6 == 0
    w = np.where(np.arange(len(values)) % 5 == 0, 9.0, 0.5)
    completer = MatrixCompleter(**PLAIN)
    completer.fit(
        (rows[~held], cols[~held]),
        values[~held],
        weights=w[~held],
        validation_entries=(rows[held], cols[held], values[held]),
    )
    gap = values - completer.predict(rows, cols)
    assert np.abs(gap[~held][w[~held] > 1]).mean() < np.abs(gap[~held][w[~held] < 1]).mean()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), np.array([0.0, 1.0]), "observed", (None, 1.0)])
def test_bounds_clip_predictions(bounds, holes):
    low, high = np.nanmin(holes), np.nanmax(holes)
    unit = (holes - low) / (high - low)
    completer = MatrixCompleter(**QUICK, bounds=bounds).fit(unit)
    assert completer.complete().max() <= 1.0
    assert (isinstance(bounds, tuple) and bounds[0] is None) or completer.complete().min() >= 0.0


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (np.nan, 9.0), "all", 3.0, (0.0, 0.1), (1, 2, 3)])
def test_wrong_bounds_are_refused(bounds, holes):
    with pytest.raises((TypeError, ValueError), match="bounds"):
        MatrixCompleter(**QUICK, bounds=bounds).fit(holes)
