"""Tables that grow: partial fits and warm starts, without leaks from what was held out."""

from __future__ import annotations

import numpy as np
import pytest

from dln_geometry.completion import MatrixCompleter, train, train_together

pd = pytest.importorskip("pandas")
PLAIN = {"depth": 2.5, "rank": 4, "decay": 0.2, "shrink": 5.0, "rtol": 1e-2}


@pytest.fixture
def holes(rng):
    x = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 20)) + 0.3 * rng.normal(size=(40, 20))
    return np.where(rng.random(x.shape) < 0.7, x, np.nan)


def key(problem):
    return set((problem.rows * 10_000 + problem.cols).tolist())


def seen_and_held(monkeypatch, completer, fit):
    """Return the places that the validated model was trained on, and those that measured it."""
    calls = []

    def note(problem, held):
        calls.append((key(problem), None if held is None else key(held)))

    def spy(problem, setting, held, budget, **options):
        note(problem, held)
        return train(problem, setting, held, budget, **options)

    def spy_together(folds, *arguments, **options):
        for problem, held in folds:
            note(problem, held)
        return train_together(folds, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dln_geometry.completion.fitting.search.train", spy)
        patch.setattr("dln_geometry.completion.fitting.search.train_together", spy_together)
        fit()
    return next((seen, held) for seen, held in calls if held is not None)


def test_held_out_entries_stay_held_out(monkeypatch, holes):
    """A model that goes on has seen what it was trained on: only the rest may measure it."""
    completer = MatrixCompleter(**PLAIN, validation=0.2)
    seen, held = seen_and_held(monkeypatch, completer, lambda: completer.fit(holes[:25]))
    assert not seen & held
    for _ in range(2):
        more, now = seen_and_held(
            monkeypatch, completer, lambda: completer.partial_fit(holes[25:33])
        )
        assert not more & now
        assert seen <= more
        assert held <= now
        seen, held = more, now
    assert completer.shape_ == (41, 20)


def test_a_warm_start_measures_with_what_it_has_not_seen(monkeypatch, holes):
    completer = MatrixCompleter(**PLAIN, warm_start=True)
    first = seen_and_held(monkeypatch, completer, lambda: completer.fit(holes))
    before = completer.n_iter_
    assert seen_and_held(monkeypatch, completer, lambda: completer.fit(holes)) == first
    assert completer.n_iter_ < before


def test_a_warm_start_takes_the_parameters_that_are_given(holes):
    completer = MatrixCompleter("auto", 4, 0.2, shrink=5.0, rtol=1e-2, warm_start=True).fit(holes)
    depth = completer.depth_
    assert completer.set_params(decay=0.4).fit(holes).decay_ == 0.4
    assert completer.depth_ == depth
    assert completer.set_params(depth=3, rank=6).fit(holes).depth_ == 3
    assert completer.rank_ == 6
    assert completer.models_[0].point.rank == 6
    assert completer.set_params(rank=2).fit(holes).models_[0].point.rank == 2


def test_a_warm_start_follows_the_names_of_rows(holes):
    """Rows in another order, some of them gone: every row begins where its name was."""
    frame = pd.DataFrame(holes, index=[f"r{k}" for k in range(40)])
    completer = MatrixCompleter(**PLAIN, warm_start=True, validation=0.0).fit(frame)
    full = dict(zip(frame.index, completer.complete(), strict=True))
    part = frame.iloc[::-1].iloc[:30]
    completer.fit(part)
    for name, row in zip(part.index, completer.complete(), strict=True):
        assert np.abs(row - full[name]).mean() < 0.3


def test_a_warm_start_on_another_table_begins_anew(holes):
    rows, cols = np.nonzero(~np.isnan(holes))
    completer = MatrixCompleter(**PLAIN, warm_start=True)
    completer.fit(([f"a{k}" for k in rows], cols), holes[rows, cols])
    completer.fit(([f"b{k}" for k in rows], cols), holes[rows, cols])
    cold = MatrixCompleter(**PLAIN).fit(([f"b{k}" for k in rows], cols), holes[rows, cols])
    assert np.array_equal(completer.complete(), cold.complete())


def test_partial_fits_add_rows_of_matrices(holes):
    completer = MatrixCompleter(**PLAIN, validation=0.0).fit(holes[:30])
    completer.partial_fit(holes[30:])
    assert completer.shape_ == holes.shape
    whole = MatrixCompleter(**PLAIN, validation=0.0).fit(holes)
    assert np.array_equal(completer.entries_.values, whole.entries_.values)
    assert np.abs(completer.complete() - whole.complete()).mean() < 0.2
    with pytest.raises(ValueError, match="X has 19 features, but MatrixCompleter is expecting 20"):
        completer.partial_fit(holes[:, :19])


def test_partial_fits_take_places_of_a_matrix_as_ids(holes):
    completer = MatrixCompleter(**PLAIN, validation=0.0).fit(holes)
    hidden = tuple(x[0] for x in np.nonzero(np.isnan(holes)))
    completer.partial_fit(([hidden[0], 40], [hidden[1], 3]), [7.0, 1.0])
    assert completer.shape_ == (41, 20)
    at = (completer.entries_.rows == hidden[0]) & (completer.entries_.cols == hidden[1])
    assert completer.entries_.values[at].tolist() == [7.0]
    with pytest.raises(ValueError, match="X must name its rows and columns"):
        completer.partial_fit((["a"], ["b"]), [1.0])


def test_partial_fits_know_frames_by_their_names(holes):
    columns = [f"c{k}" for k in range(20)]
    frame = pd.DataFrame(holes, columns=columns, index=[f"r{k}" for k in range(40)])
    completer = MatrixCompleter(**PLAIN, validation=0.0).fit(frame[:30])
    completer.partial_fit(frame[20:])
    assert completer.row_ids_.names == tuple(frame.index)
    assert completer.n_features_in_ == 20
    with pytest.raises(ValueError, match="must be in the same order"):
        completer.partial_fit(frame[columns[::-1]])
    # Pairs may name new columns, which a transform then has too.
    completer.partial_fit((["r0", "r1"], ["new", "new"]), [1.0, 2.0])
    assert completer.n_features_in_ == 21
    assert list(completer.get_feature_names_out()) == [*columns, "new"]
    frame["new"] = np.nan
    assert completer.transform(frame).shape == (40, 21)


def test_partial_fits_keep_weights_and_features(holes, rng):
    features = rng.normal(size=(40, 2))
    w = np.where(rng.random(holes.shape) < 0.5, 4.0, 1.0)
    completer = MatrixCompleter(**PLAIN, validation=0.0)
    completer.fit(holes, weights=w, row_features=features)
    again = MatrixCompleter(**PLAIN, validation=0.0, warm_start=True)
    again.fit(holes, weights=w, row_features=features).fit(holes, weights=w, row_features=features)
    rows, cols = np.nonzero(~np.isnan(holes))
    heavy = w[rows, cols] == 4.0
    completer.partial_fit(
        (rows[heavy], cols[heavy]), holes[rows, cols][heavy], weights=np.full(heavy.sum(), 4.0)
    )
    assert completer.complete() == pytest.approx(again.complete(), rel=1e-6, abs=1e-6)
    with pytest.raises(ValueError, match="row_features must be given for all 41 rows"):
        completer.partial_fit(([40], [0]), [1.0])
    more = rng.normal(size=(41, 2))
    assert completer.partial_fit(([40], [0]), [1.0], row_features=more).shape_ == (41, 20)


def test_a_partial_fit_without_a_fit_is_one(holes):
    one = MatrixCompleter(**PLAIN).partial_fit(holes)
    assert np.array_equal(one.complete(), MatrixCompleter(**PLAIN).fit(holes).complete())


@pytest.mark.filterwarnings("ignore:the best validation error")
def test_short_times_give_a_finite_model(holes):
    completer = MatrixCompleter(seconds=1e-3).fit(holes)
    assert np.isfinite(completer.complete()).all()
    assert "seconds" in completer.cv_results_["status"]
