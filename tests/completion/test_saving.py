"""Completers in files: what is read back predicts as what was written, and nothing is run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.completion import MatrixCompleter

pd = pytest.importorskip("pandas")
PLAIN = {"rank": 4, "decay": 0.2, "shrink": 5.0, "rtol": 1e-2}


@pytest.fixture
def holes(rng):
    x = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 20)) + 0.3 * rng.normal(size=(30, 20))
    return np.where(rng.random(x.shape) < 0.7, x, np.nan)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 2.5, "validation": 0.2, "random_state": 3},
        {"depth": 1, "validation": 0.0, "bounds": (None, 9.0)},
        {"depth": float("inf"), "validation": 0.0, "dtype": torch.float32},
        {"depth": (2, 3), "starts": 2, "validation": 0.2},
    ],
)
def test_what_is_read_back_is_the_same_completer(options, holes, tmp_path):
    completer = MatrixCompleter(**PLAIN, **options).fit(holes)
    again = MatrixCompleter.load(completer.save(tmp_path / "model"))
    assert again.get_params() == completer.get_params()
    assert np.array_equal(again.complete(), completer.complete())
    assert np.array_equal(again.transform(holes), completer.transform(holes))
    assert again.report_ == completer.report_
    assert again.cv_results_ == completer.cv_results_
    assert again.curve_ == completer.curve_
    if options["validation"]:
        places = [0, 1], [2, 3]
        pair = (model.predict(*places, interval=0.8) for model in (again, completer))
        for found, expected in zip(*pair, strict=True):
            assert np.array_equal(found, expected)
    rows = holes[:3] + 1.0
    found, expected = (model.partial_fit(rows).complete() for model in (again, completer))
    assert np.array_equal(found, expected)


def test_ids_weights_and_features_are_kept(holes, tmp_path):
    i, j = np.nonzero(~np.isnan(holes))
    names = [f"u{k}" for k in range(33)]
    known = pd.DataFrame({"a": np.arange(33.0), "b": np.arange(33.0) ** 2}, index=names)
    completer = MatrixCompleter(2, **PLAIN, validation=0.0)
    completer.fit(
        ([f"u{k}" for k in i], 100 + j), holes[i, j], weights=1.0 + (i % 3), row_features=known
    )
    again = MatrixCompleter.load(completer.save(tmp_path / "model.npz"))
    assert again.row_ids_ == completer.row_ids_
    asked = ["u3", "u31"], [101, 104]
    assert np.array_equal(again.predict(asked), completer.predict(asked))
    assert again.recommend("u3", 3) == completer.recommend("u3", 3)
    more = ["u31", "u32"], [100, 101]
    found, expected = (
        model.partial_fit(more, [1.0, 2.0]).predict(asked) for model in (again, completer)
    )
    assert np.array_equal(found, expected)


def test_counts_are_kept(holes, tmp_path):
    completer = MatrixCompleter(2, **PLAIN, loss="poisson").fit(np.abs(np.round(holes)))
    again = MatrixCompleter.load(completer.save(tmp_path / "model"))
    assert np.array_equal(again.complete(), completer.complete())


def test_other_files_are_refused(holes, tmp_path):
    path = MatrixCompleter(2, **PLAIN, validation=0.0).fit(holes).save(tmp_path / "model")
    with pytest.raises(AttributeError, match="not fitted"):
        MatrixCompleter().save(tmp_path / "none")
    np.savez(tmp_path / "other.npz", x=holes)
    whole = path.read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("other.npz", "cut.npz"):
        with pytest.raises(ValueError, match="path must be a saved fitted completer"):
            MatrixCompleter.load(tmp_path / name)
    start = dln.Collapsed.random((2, 2), 2, 2, generator=0)
    flow = dln.gradient_flow(dln.losses.Quadratic(np.diag([2.0, 1.0])), start, t_end=0.1)
    flow.save(tmp_path / "flow.npz")
    with pytest.raises(ValueError, match="it holds no fitted completer"):
        MatrixCompleter.load(tmp_path / "flow.npz")
