"""Tables completed end to end: recovered, predicted, grown, refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from dln_geometry.completion import MatrixCompleter
from dln_geometry.tables import as_entries
from dln_geometry.testing import assert_close

QUICK = {"depth": 2.5, "rank": 6, "decay": 0.2, "shrink": 5.0, "rtol": 1e-2}


@pytest.fixture
def rng(request):
    return np.random.default_rng(sum(request.node.name.encode()))


@pytest.fixture
def table(rng):
    """A noisy table of rank 2 with side means, and the same with holes."""
    x = 3.0 + rng.normal(size=(40, 1)) + rng.normal(size=30)
    x = x + rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30)) + 0.1 * rng.normal(size=(40, 30))
    return x, np.where(rng.random(x.shape) < 0.6, x, np.nan)


def test_holes_are_filled_better_than_by_side_means(table):
    x, holes = table
    completer = MatrixCompleter(**QUICK).fit(holes)
    hidden = np.isnan(holes)
    error = np.sqrt(np.mean((completer.complete() - x)[hidden] ** 2))
    assert error < 0.5 * completer.side_means_error_
    assert completer.validation_error_ < completer.side_means_error_
    assert completer.coverage_ > 0.7
    filled = completer.transform(holes)
    assert np.array_equal(filled[~hidden], holes[~hidden])
    assert np.sqrt(np.mean((filled - x)[hidden] ** 2)) < 0.6 * completer.side_means_error_


def test_ids_of_any_kind_name_rows_and_columns(table):
    _, holes = table
    i, j = np.nonzero(~np.isnan(holes))
    rows, cols = [f"user {k}" for k in i], (104_000_100_004 + j)
    by_ids = MatrixCompleter(**QUICK).fit((rows, cols), holes[i, j])
    assert by_ids.row_ids_ is not None
    found, low, high = by_ids.predict((rows[:5], cols[:5]), interval=0.9)
    assert np.all((low < found) & (found < high))
    best = by_ids.recommend("user 3", 4)
    assert len(best) == 4
    seen = {104_000_100_004 + k for k in np.flatnonzero(~np.isnan(holes[3]))}
    assert not seen & {name for name, _ in best}
    assert [value for _, value in best] == sorted((v for _, v in best), reverse=True)


def test_unknown_ids_are_predicted_by_means_and_told(table):
    _, holes = table
    completer = MatrixCompleter(**QUICK).fit(holes)
    with pytest.warns(UserWarning, match="2 of 3 entries have a row or column"):
        found = completer.predict([0, 99, 77], [0, 1, 99])
    offsets, x = completer.models_[0].offsets, completer.models_[0].point.matrix
    assert found[1] == pytest.approx(float(offsets.mean + offsets.cols[1] + x.mean(0)[1]))
    assert found[2] == pytest.approx(float(offsets.mean + x.mean()))


def test_pickles_and_repeats(table):
    _, holes = table
    one, two = (MatrixCompleter(**QUICK, random_state=4).fit(holes) for _ in range(2))
    assert np.array_equal(one.complete(), two.complete())
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.complete(), one.complete())


def test_partial_fit_takes_new_rows(table):
    x, holes = table
    i, j = np.nonzero(~np.isnan(holes))
    first = i < 30
    completer = MatrixCompleter(**QUICK).fit((i[first], j[first]), holes[i, j][first])
    completer.partial_fit((i[~first], j[~first]), holes[i, j][~first])
    assert completer.shape_ == (40, 30)
    hidden = np.isnan(holes)
    places = np.nonzero(hidden)
    found = completer.predict(*places)
    assert np.sqrt(np.mean((found - x[hidden]) ** 2)) < 0.5 * completer.side_means_error_


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
def test_links_beat_their_side_means(loss, rng):
    z = rng.normal(size=(50, 1)) @ rng.normal(size=(1, 40)) * 1.5
    y = rng.random(z.shape) < 1 / (1 + np.exp(-z))
    y = y if loss == "logistic" else rng.poisson(np.exp(0.5 * z))
    holes = np.where(rng.random(z.shape) < 0.7, y, np.nan)
    completer = MatrixCompleter(2, 4, 0.5, loss=loss).fit(holes)
    assert completer.validation_error_ < completer.side_means_error_
    found = completer.complete()
    assert (found >= 0).all()
    assert loss == "poisson" or (found <= 1).all()


def test_a_table_without_structure_is_told(rng):
    noise = np.where(rng.random((30, 25)) < 0.6, rng.normal(size=(30, 25)), np.nan)
    with pytest.warns(UserWarning, match="is hardly better than that of the side means"):
        MatrixCompleter(3, 5, 0.0).fit(noise)


@pytest.mark.filterwarnings("ignore:the best validation error")
def test_validation_entries_never_enter_the_training(table):
    x, holes = table
    hidden = np.nonzero(np.isnan(holes))
    one, two = (
        MatrixCompleter(**QUICK, refit=False, patience=10**6).fit(
            holes, validation_entries=(*hidden, values)
        )
        for values in (x[hidden], 5.0 - x[hidden])
    )
    assert one.validation_error_ != two.validation_error_
    length = min(len(one.curve_), len(two.curve_))
    assert length > 20
    assert [t for t, _ in one.curve_[:length]] == [t for t, _ in two.curve_[:length]]


@pytest.mark.parametrize(
    ("options", "x", "match"),
    [
        ({"depth": 0.5}, None, "depth must"),
        ({"rank": 99}, None, "rank must"),
        ({"decay": -1.0}, None, "decay must"),
        ({"loss": "hinge"}, None, "loss must be one of"),
        ({"bounds": (0.0, 1.0)}, None, "entries must lie within the bounds"),
        ({"validation": 1.0}, None, "validation must lie"),
        ({"loss": "poisson"}, [[-1.0, 2.0], [np.nan, 3.0]], "at least 0"),
        ({}, [[np.nan, np.nan]], "known entry"),
        ({"starts": 0}, None, "starts must"),
        ({"random_state": "x"}, None, "random_state must"),
    ],
)
def test_wrong_arguments_are_refused(options, x, match, table):
    with pytest.raises((TypeError, ValueError), match=match):
        MatrixCompleter(**options).fit(table[1] if x is None else np.array(x))


def test_duplicates_follow_their_rule():
    rows, cols, values = [0, 0, 1, 1, 0], [0, 1, 0, 1, 0], [1.0, 2.0, 3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="given once each, got 0, 0 repeatedly"):
        MatrixCompleter(2, 1, validation=0.0).fit((rows, cols), values)
    for rule, expected in (("mean", 3.0), ("last", 5.0)):
        completer = MatrixCompleter(2, 1, validation=0.0, duplicates=rule)
        completer.fit((rows, cols), values)
        assert completer.entries_.values[0] == expected


def test_constant_values_need_no_network():
    completer = MatrixCompleter().fit([[3.0, np.nan, 3.0], [3.0, 3.0, np.nan], [3.0, 3.0, 3.0]])
    assert completer.complete() == pytest.approx(3.0)
    assert completer.models_[0].point is None


@pytest.mark.parametrize("dtype", [torch.float32, np.float32, "float32"])
def test_float32_on_request(dtype, table):
    completer = MatrixCompleter(**QUICK, validation=0.0, dtype=dtype).fit(table[1])
    assert completer.models_[0].point.L.dtype == torch.float32


def test_depths_and_starts_are_averaged_with_the_error_of_the_average(table):
    x, holes = table
    options = {**QUICK, "depth": (2, 3), "decay": "auto"}
    completer = MatrixCompleter(**options, starts=2, validation=0.2, refit=False).fit(holes)
    assert completer.depth_ == (2.0, 3.0)
    assert len(completer.decay_) == 2
    assert [float(model.point.depth) for model in completer.models_] == [2.0, 2.0, 3.0, 3.0]
    parts = [model.offsets.matrix() + model.point.matrix for model in completer.models_]
    assert completer.complete() == pytest.approx(np.mean([part.numpy() for part in parts], 0))
    held = completer._memory_.held
    rows, cols, values = (getattr(completer.entries_, n)[held] for n in ("rows", "cols", "values"))
    gap = completer.predict(rows, cols) - values
    assert_close(completer.validation_error_, np.sqrt(np.mean(gap**2)), ops=1000)
    again = completer.partial_fit(x[:1])
    assert again.depth_ == (2.0, 3.0)
    with pytest.raises(ValueError, match="depth must be a number or different ones"):
        MatrixCompleter((2, 2)).fit(holes)


def test_errors_are_those_of_predictions_and_of_side_means(table):
    x, holes = table
    hidden = np.nonzero(np.isnan(holes))
    completer = MatrixCompleter(**QUICK).fit(holes)
    error, alone = completer.errors(hidden, x[hidden])
    direct = np.sqrt(np.mean((completer.predict(hidden) - x[hidden]) ** 2))
    assert_close(error, direct, ops=1000)
    with pytest.warns(UserWarning, match="drove X to zero"):
        none = MatrixCompleter(**{**QUICK, "decay": 1e6, "validation": 0.0}).fit(holes)
    assert alone == pytest.approx(none.errors(hidden, x[hidden])[0], rel=1e-2)


def test_entries_of_files_are_fitted_as_they_are(table):
    _, holes = table
    by_entries = MatrixCompleter(**QUICK).fit(as_entries(holes))
    assert np.array_equal(by_entries.complete(), MatrixCompleter(**QUICK).fit(holes).complete())


def test_one_layer_and_side_means_that_are_best_can_be_fitted(table, rng):
    _, holes = table
    completer = MatrixCompleter(**{**QUICK, "depth": 1, "decay": 0.0}).fit(holes)
    assert np.isfinite(completer.complete()).all()
    assert np.isfinite(completer.partial_fit(holes).complete()).all()
    # Nothing but side means: the logistic fit keeps them alone.
    noise = np.where(np.isnan(holes), np.nan, (rng.random(holes.shape) < 0.5).astype(float))
    with pytest.warns(UserWarning, match="hardly better"):
        found = MatrixCompleter(**QUICK, loss="logistic").fit(noise).complete()
    assert np.all((found > 0) & (found < 1))
