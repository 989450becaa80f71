"""The conventions of scikit-learn: its own checks, searches, pipelines, copies, set_output."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dln_geometry.completion import MatrixCompleter

pd = pytest.importorskip("pandas")
QUICK = MatrixCompleter(2, 2, 0.5, validation=0.0)
HELD_OUT = MatrixCompleter(2, 2, 0.5, shrink=5.0)


@pytest.fixture
def holes(rng):
    """A table of rank 2 with noise, 30 x 12, of which a third is unknown."""
    x = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 12)) + 0.1 * rng.normal(size=(30, 12))
    return np.where(rng.random(x.shape) < 0.67, x, np.nan)


# The tables of these checks have no structure, or rows without entries, as the completer tells.
@pytest.mark.filterwarnings("ignore:the best validation error", "ignore:.* have no known entry")
@parametrize_with_checks([QUICK, HELD_OUT])
def test_checks_of_scikit_learn_pass(estimator, check):
    check(estimator)


def test_copies_keep_parameters_and_results(holes):
    completer = clone(HELD_OUT).set_params(decay=0.2, random_state=3)
    assert clone(completer).get_params() == completer.get_params()
    fitted = completer.fit(holes)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(holes), fitted.transform(holes))
    assert not hasattr(clone(fitted), "models_")


def test_a_pipeline_completes_scaled_tables(holes):
    pipe = make_pipeline(StandardScaler(), clone(QUICK))
    filled = pipe.fit_transform(holes)
    assert filled.shape == holes.shape
    assert np.isfinite(filled).all()
    assert np.array_equal(filled, pipe.transform(holes))


@pytest.mark.filterwarnings("ignore:decay drove X to zero")
def test_a_grid_search_over_decay_and_depth_finds_what_predicts(holes):
    grid = {"decay": [0.2, 20.0], "depth": [2, 2.5]}
    found = GridSearchCV(MatrixCompleter(rank=2, validation=0.0, rtol=1e-2), grid, cv=3)
    found.fit(holes)
    assert found.best_params_["decay"] == 0.2
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert found.best_score_ > 0.5


def test_frames_keep_names_and_index(holes):
    frame = pd.DataFrame(holes, columns=[f"c{k}" for k in range(12)])
    frame.index = [f"r{k}" for k in range(30)]
    completer = clone(QUICK).set_output(transform="pandas").fit(frame)
    filled = completer.transform(frame)
    assert list(filled.columns) == list(frame.columns)
    assert list(filled.index) == list(frame.index)
    assert completer.row_ids_.names == tuple(frame.index)
    with pytest.raises(ValueError, match="must be in the same order"):
        completer.transform(frame[frame.columns[::-1]])
    with pytest.raises(ValueError, match="seen at fit time, yet now missing:\n- c11"):
        completer.transform(frame.drop(columns="c11"))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        completer.transform(holes)


@pytest.mark.parametrize("make", [sparse.csr_array, sparse.coo_matrix, "torch"])
def test_sparse_tables_are_completed_where_nothing_is_stored(make, holes):
    known = ~np.isnan(holes)
    x = np.where(known, holes, 0.0)
    x = torch.from_numpy(x).to_sparse() if make == "torch" else make(x)
    completer = clone(QUICK)
    assert np.array_equal(completer.fit_transform(x), clone(QUICK).fit_transform(holes))
    assert completer.score(x) == clone(QUICK).fit(holes).score(holes)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("validation", [0.0, 0.1])
@pytest.mark.filterwarnings("ignore:the best validation error", "ignore:none of 1 entries can be")
def test_small_tables_are_fitted(shape, validation, rng):
    x = rng.normal(size=shape)
    completer = MatrixCompleter(2, 2, 0.5, validation=validation).fit(x)
    assert np.array_equal(completer.transform(x), x)
    assert np.isfinite(completer.complete()).all()


def test_a_table_without_holes_is_returned(rng):
    x = rng.normal(size=(8, 6))
    assert np.array_equal(clone(QUICK).fit_transform(x), x)


def test_predictions_of_a_matrix_are_those_of_its_holes(holes):
    completer = clone(QUICK).fit(holes)
    hidden = np.isnan(holes)
    assert np.array_equal(completer.predict(holes)[hidden], completer.transform(holes)[hidden])
    with pytest.raises(TypeError, match="sparse"):
        completer.predict(sparse.csr_array(np.nan_to_num(holes)))


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        ([1.0, 2.0], ValueError, "Expected 2D array, got 1D array instead"),
        (np.zeros((3, 2)) * 1j, ValueError, "Complex data not supported"),
        (np.zeros((3, 0)), ValueError, r"Found array with 0 feature\(s\)"),
        (np.zeros((0, 3)), ValueError, r"Found array with 0 sample\(s\)"),
        ([["a", "b"]], TypeError, "must be a real array"),
        ([[np.inf, 1.0]], ValueError, "infinite"),
    ],
)
def test_what_is_no_table_is_refused(x, error, match):
    with pytest.raises(error, match=match):
        clone(QUICK).fit(x)


WITHOUT = """
import sys
sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
import numpy as np
from dln_geometry.completion import MatrixCompleter
x = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])
x[2, 1] = np.nan
completer = MatrixCompleter(2, rank=1, decay=0.0, validation=0.0, biases=False)
try:
    completer.predict([0], [1])
except AttributeError as error:
    assert "not fitted" in str(error)
completer.set_params(decay=0.01).fit(x)
assert abs(completer.transform(x)[2, 1] - 6) < 0.5
assert completer.predict([2], [1]).shape == (1,)
assert completer.get_params()["decay"] == 0.01
assert repr(completer).startswith("MatrixCompleter(depth=2, rank=1, decay=0.01")
try:
    completer.set_params(depht=2)
except ValueError as error:
    assert "depht" in str(error)
"""


def test_runs_without_scikit_learn():
    subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT], check=True)
