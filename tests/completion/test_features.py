"""Features of rows and columns: of those of the fit, and of others."""

from __future__ import annotations

import numpy as np
import pytest

from dln_geometry.completion import MatrixCompleter

pd = pytest.importorskip("pandas")
PLAIN = {"depth": 2, "rank": 3, "decay": 0.5, "shrink": 5.0, "validation": 0.0}


@pytest.fixture
def world(rng):
    """A table whose row means are known functions of two features, and these features."""
    f = rng.normal(size=(60, 2)) * [2.0, 0.1] + [3.0, -1.0]
    x = (f @ [1.5, 20.0])[:, None] + rng.normal(size=25) + 0.1 * rng.normal(size=(60, 25))
    return x, f


def entries(x, rows, name):
    i, j = np.indices((len(rows), x.shape[1])).reshape(2, -1)
    return ([name(rows[k]) for k in i], j), x[rows][i, j]


def test_unknown_rows_are_predicted_from_features_of_the_frame(world):
    x, f = world
    frame = pd.DataFrame(f, index=[f"u{k}" for k in range(60)])
    pairs, y = entries(x, np.arange(45), lambda k: f"u{k}")
    completer = MatrixCompleter(**PLAIN).fit(pairs, y, row_features=frame)
    new, truth = entries(x, np.arange(45, 60), lambda k: f"u{k}")
    found = completer.predict(new)
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.2 * truth.std()
    with pytest.warns(UserWarning, match="1 of 2 entries have a row or column"):
        mixed = completer.predict(["u50", "nobody"], [3, 3])
    assert mixed[0] == pytest.approx(x[50, 3], abs=0.4 * x.std())


@pytest.mark.parametrize("as_frame", [True, False])
def test_unknown_rows_are_predicted_from_features_that_come_later(as_frame, world):
    x, f = world
    pairs, y = entries(x, np.arange(45), int)
    completer = MatrixCompleter(**PLAIN).fit(pairs, y, row_features=f[:45])
    new, truth = entries(x, np.arange(45, 60), int)
    given = pd.DataFrame(f) if as_frame else f[new[0]]
    found, low, high = (
        MatrixCompleter(**{**PLAIN, "validation": 0.1})
        .fit(pairs, y, row_features=f[:45])
        .predict(new, row_features=given, interval=0.9)
    )
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.2 * truth.std()
    assert ((low < truth) & (truth < high)).mean() > 0.8
    rows = completer.transform(np.full((15, 25), np.nan), row_features=f[45:])
    assert np.sqrt(np.mean((rows.ravel() - truth) ** 2)) < 0.2 * truth.std()
    assert completer.predict(x[45:], row_features=f[45:]).shape == (15, 25)


def test_unknown_columns_are_predicted_from_features_too(world):
    x, f = world
    (i, j), y = entries(x, np.arange(60), int)
    seen = np.array(i) < 50
    completer = MatrixCompleter(**PLAIN).fit(
        (j[seen], np.array(i)[seen]), y[seen], col_features=f[:50]
    )
    k, rest = np.array(i)[~seen], j[~seen]
    found = completer.predict(rest, k, col_features=f[k])
    assert np.sqrt(np.mean((found - y[~seen]) ** 2)) < 0.2 * y.std()


def test_grown_tables_take_features_that_the_fit_was_given(world):
    x, f = world
    frame = pd.DataFrame(f, index=[f"u{k}" for k in range(60)])
    pairs, y = entries(x, np.arange(45), lambda k: f"u{k}")
    completer = MatrixCompleter(**PLAIN).fit(pairs, y, row_features=frame)
    more, values = entries(x, np.arange(45, 50), lambda k: f"u{k}")
    completer.partial_fit(more, values)
    assert completer.shape_ == (50, 25)
    with pytest.raises(ValueError, match="row_features must be given for all 51 rows"):
        completer.partial_fit((["nobody"], [0]), [1.0])


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (np.ones((3, 2)), "must have one line for each of 2 entries, got 3"),
        (np.ones((2, 5)), "must have 2 columns as in the fit"),
        (np.full((2, 2), np.nan), "row_features"),
        (pd.DataFrame(np.ones((2, 2)), index=["a", "a"]), "'a' repeatedly"),
    ],
)
def test_wrong_features_of_unknown_rows_are_refused(features, match, world):
    x, f = world
    completer = MatrixCompleter(**PLAIN).fit(x, row_features=f)
    with pytest.raises(ValueError, match=match):
        completer.predict([70, 71], [0, 1], row_features=features)
    with pytest.raises(ValueError, match="col_features need a fit with col_features"):
        completer.predict([70, 71], [0, 1], col_features=np.ones((2, 2)))
