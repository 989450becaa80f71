"""Tables and ids as users give them."""

from __future__ import annotations

from datetime import datetime, time

import numpy as np
import pytest
import torch
from scipy import sparse

from dln_geometry.completion import MatrixCompleter

pd = pytest.importorskip("pandas")
PLAIN = {"depth": 2, "rank": 2, "decay": 0.5, "shrink": 5.0, "rtol": 1e-2}
QUICK = {**PLAIN, "validation": 0.0}


@pytest.mark.parametrize(
    "kind", [list, pd.Index, pd.Series, torch.tensor, lambda x: np.asarray(x, float), "Int64"]
)
def test_ids_are_the_same_however_they_come(kind, pairs):
    rows, cols, values = pairs
    expected = MatrixCompleter(**QUICK).fit((rows + 7, cols), values)
    if kind == "Int64":
        ids = pd.array(rows + 7, dtype="Int64")
    else:
        ids = kind((rows + 7).tolist())
    found = MatrixCompleter(**QUICK).fit((ids, cols), values)
    assert found.row_ids_ == expected.row_ids_
    assert np.array_equal(found.predict(ids, cols), expected.predict(rows + 7, cols))


def test_dates_are_ids_in_every_form(pairs):
    rows, cols, values = pairs
    days = np.datetime64("2024-02-27") + rows
    completer = MatrixCompleter(**QUICK).fit((days, cols), values)
    assert list(completer.row_ids_) == sorted({str(day) for day in days})
    expected = completer.predict([str(day) for day in days], cols)
    for form in (
        [day.item() for day in days],
        [datetime.combine(day.item(), time()) for day in days],
        days.astype("M8[ns]"),
        days.astype("M8[h]"),
        pd.Series(days.astype("M8[us]")),
    ):
        assert np.array_equal(completer.predict(form, cols), expected)
    # A moment is another name than its day, and nanoseconds count.
    later = days.astype("M8[ns]") + np.timedelta64(1, "ns")
    with pytest.warns(UserWarning, match=f"{len(days)} of {len(days)} entries"):
        completer.predict(later, cols)
    both = MatrixCompleter(**QUICK).fit(([*later, *days], np.tile(cols, 2)), np.tile(values, 2))
    assert len(both.row_ids_) == 2 * len(completer.row_ids_)


def test_rows_of_a_frame_are_named_by_its_dates(holes):
    frame = pd.DataFrame(holes, index=pd.date_range("2024-02-27", periods=len(holes)))
    completer = MatrixCompleter(**QUICK).fit(frame)
    assert completer.row_ids_[2] == "2024-02-29"
    features = pd.DataFrame({"x": np.arange(len(holes)) ** 2.0}, index=frame.index)
    one, other = (
        MatrixCompleter(**QUICK).fit(frame, row_features=f) for f in (features, features[::-1])
    )
    assert np.array_equal(one.complete(), other.complete())
    asked = completer.predict(frame.index[[4, 7]], [0, 3])
    assert np.array_equal(asked, completer.complete()[[4, 7], [0, 3]])


def test_strings_and_integers_are_different_names(pairs):
    rows, cols, values = pairs
    names = [str(k) if k % 2 else int(k) for k in rows]
    completer = MatrixCompleter(**QUICK).fit((names, cols), values)
    assert set(completer.row_ids_) == set(names)
    assert np.isfinite(completer.predict(names, cols)).all()
    with pytest.warns(UserWarning, match="1 of 2 entries"):
        completer.predict(["1", 1], [0, 0])


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        ([[1], [2]], ValueError, "row ids must be a vector"),
        ([{}, 1], TypeError, "row ids must be strings, .*, got {}"),
        ([np.nan, 1], TypeError, "row ids must be strings, .*, got nan"),
        ([True, False], TypeError, "row ids must be strings, .*, got True"),
        ([None, "a"], TypeError, "row ids must be strings, .*, got None"),
        (np.array(["2020-01-01", "NaT"], "M8[ns]"), TypeError, "row ids must be strings, "),
        ("ab", ValueError, "row ids must be a vector"),
        (3, ValueError, "row ids must be a vector"),
    ],
)
def test_what_names_nothing_is_refused(ids, error, match, pairs):
    rows, cols, values = pairs
    with pytest.raises(error, match=match):
        MatrixCompleter(**QUICK).fit((ids, [0, 1]), [1.0, 2.0])
    completer = MatrixCompleter(**QUICK).fit((rows, cols), values)
    with pytest.raises(error, match=match):
        completer.predict(ids, [0, 1])


def test_tuples_and_fractions_name_rows_and_columns(pairs, tmp_path):
    """As pairs, in a frame of several levels, with features, and in a file."""
    rows, cols, values = pairs
    names = [("lab", int(k)) for k in rows]
    places = MatrixCompleter(**QUICK).fit((rows, cols), values)
    completer = MatrixCompleter(**QUICK).fit((names, 400.5 + 2.5 * cols), values)
    expected = places.predict(rows[:4], cols[:4])
    asked = names[:4], 400.5 + 2.5 * cols[:4]
    assert np.array_equal(completer.predict(asked), expected)
    again = MatrixCompleter.load(completer.save(tmp_path / "fit"))
    assert np.array_equal(again.predict(asked), expected)
    index = pd.MultiIndex.from_tuples([("lab", k) for k in range(15)])
    frame = pd.DataFrame(np.nan, index, 400.5 + 2.5 * np.arange(8))
    for i, j, value in zip(rows, cols, values, strict=True):
        frame.iloc[i, j] = value
    framed = MatrixCompleter(**QUICK).fit(frame)
    assert np.allclose(framed.predict(asked), expected)
    assert framed.recommend(("lab", 3), 1, seen=True)[0][0] in frame.columns


def test_calls_that_lose_something_are_refused_or_told(holes, pairs):
    rows, cols, values = pairs
    completer = MatrixCompleter(**QUICK)
    for x in ((rows, cols), (rows, cols, values)):
        with pytest.raises(ValueError, match=r"X must be a matrix, or a tuple \(rows, cols\)"):
            completer.fit(x)
    with pytest.raises(ValueError, match="y must be left out with a matrix"):
        completer.fit([rows, cols], values)
    with pytest.warns(UserWarning, match="X has three full columns"):
        completer.fit(pd.DataFrame({"row": rows, "column": cols, "value": values}))
    with pytest.warns(UserWarning, match="X has a column name that stands twice"):
        assert completer.fit(pd.DataFrame(holes, columns=["a"] * 8)).col_ids_ is None


def test_nothing_is_predicted_of_nothing(holes, pairs):
    assert MatrixCompleter(**QUICK).fit(holes).predict([], []).shape == (0,)
    assert MatrixCompleter(**QUICK).fit(pairs[:2], pairs[2]).predict([], []).shape == (0,)


def test_more_unknown_than_known_ids_are_predicted_by_the_mean(holes):
    completer = MatrixCompleter(**QUICK).fit(holes)
    with pytest.warns(UserWarning, match="4 of 5 entries") as told:
        found = completer.predict([90, 91, 92, 93, 0], [50, 51, 52, 53, 0])
    assert len(told) == 1
    (model,) = completer.models_
    assert found[:4] == pytest.approx(float(model.offsets.mean + model.point.matrix.mean()))


def test_rows_and_columns_without_entries_are_predicted_by_means_and_told(holes):
    holes[3], holes[:, 5] = np.nan, np.nan
    frame = pd.DataFrame(holes, index=[f"r{k}" for k in range(15)])
    with pytest.warns(UserWarning, match="1 rows and 1 columns have no known entry") as told:
        completer = MatrixCompleter(**{**QUICK, "decay": 0.0}).fit(frame)
    assert len(told) == 1
    o, found = completer.models_[0].offsets, completer.complete()
    assert [float(o.rows[3]), float(o.cols[5])] == pytest.approx([0.0, 0.0])
    # With the average of X over the others.
    x, (rows, cols) = completer.models_[0].point.matrix, (np.arange(15) != 3, np.arange(8) != 5)
    x = x[rows][:, cols].numpy()
    assert found[3, cols] == pytest.approx((o.mean + o.cols).numpy()[cols] + x.mean(0))
    assert found[rows, 5] == pytest.approx((o.mean + o.rows).numpy()[rows] + x.mean(1))
    assert found[3, 5] == pytest.approx(float(o.mean) + x.mean())
    asked = completer.predict(["r3", "r0", "r3", "r1"], [0, 5, 5, 2])
    assert asked == pytest.approx(found[[3, 0, 3, 1], [0, 5, 5, 2]])


@pytest.mark.parametrize("loss", ["logistic", "poisson"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_of_a_link_are_predicted_nearly(loss, value, holes):
    completer = MatrixCompleter(2, 2, 0.5, loss=loss)
    with pytest.warns(UserWarning, match=f"entries are {value:g}, so that a constant is learned"):
        completer.fit(np.where(np.isnan(holes), holes, value))
    found = completer.complete()
    assert found == pytest.approx(value, abs=0.02)
    assert (found > 0).all()


def test_large_numbers_are_resolved(rng):
    """Differences of large numbers need double precision, which float32 does not have."""
    x = rng.normal(size=(130, 1)) @ rng.normal(size=(1, 130))
    completer = MatrixCompleter(**QUICK).fit(x + 1e7)
    assert completer.models_[0].point.L.dtype == torch.float64
    assert MatrixCompleter(**QUICK).fit(x).models_[0].point.L.dtype == torch.float32
    with pytest.warns(UserWarning, match="float32 does not resolve"):
        MatrixCompleter(**QUICK, dtype=torch.float32).fit(x[:9, :9] + 1e7)
    with pytest.raises(ValueError, match="entries must be less than 1e.60"):
        MatrixCompleter(**QUICK).fit(x[:9, :9] * 1e100)
    with pytest.raises(ValueError, match="the largest entry must be at least 1e-60 or 0"):
        MatrixCompleter(**QUICK).fit(x[:9, :9] * 1e-100)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, object])
def test_arrays_of_ids_are_lists_of_ids(kind, pairs):
    """Close integers are found without a sort, others by one; places of unknown ones too."""
    rows, cols, values = pairs
    far = rows.astype(np.int64) * 10**15
    asked = np.array([5, 200, 5, 3], dtype=kind)
    plain = MatrixCompleter(**QUICK).fit((rows.astype(kind), cols), values)
    spread = MatrixCompleter(**QUICK).fit((far, cols), values)
    with pytest.warns(UserWarning, match="1 of 4 entries have a row or column"):
        found = plain.predict(asked, np.array([0, 1, 2, 3]))
    with pytest.warns(UserWarning, match="1 of 4 entries have a row or column"):
        again = spread.predict(10**15 * asked.astype(np.int64), np.array([0, 1, 2, 3]))
    assert np.array_equal(found, again)


def test_tensors_of_any_kind_are_tables(holes):
    table = torch.from_numpy(holes).to(torch.bfloat16)
    expected = MatrixCompleter(**QUICK).fit(table.double().numpy()).complete()
    assert np.array_equal(MatrixCompleter(**QUICK).fit(table).complete(), expected)
    stored = torch.nan_to_num(table).to_sparse_csr()
    fitted = MatrixCompleter(**QUICK).fit(stored)
    assert len(fitted.entries_.values) == len(stored.values())
    ids = torch.tensor([0.0, 1.0], dtype=torch.bfloat16, requires_grad=True)
    assert MatrixCompleter(**QUICK).fit(table).predict(ids, ids).shape == (2,)


def test_sparse_matrices_that_store_an_entry_twice_follow_the_rule(holes):
    i, j = np.nonzero(~np.isnan(holes))
    v, first = holes[i, j], holes[i[0], j[0]]
    x = sparse.coo_matrix((np.r_[v, first + 2.0], (np.r_[i, i[0]], np.r_[j, j[0]])), holes.shape)
    with pytest.raises(ValueError, match="repeatedly: give duplicates='mean' or 'last'"):
        MatrixCompleter(**QUICK).fit(x)
    for rule, expected in (("mean", first + 1.0), ("last", first + 2.0)):
        completer = MatrixCompleter(**QUICK, duplicates=rule).fit(x)
        assert completer.entries_.values[0] == expected


def test_scores_devices_and_types_that_mean_nothing_are_refused(holes, pairs):
    rows, cols, values = pairs
    completer = MatrixCompleter(**QUICK).fit((rows, cols), values)
    with pytest.raises(ValueError, match="y must hold a number for each of at least one entry"):
        completer.score(([], []), [])
    with pytest.raises(ValueError, match="y must hold a number for each"):
        completer.score((rows[:3], cols[:3]), values[:2])
    with pytest.raises(ValueError, match="y must be finite"):
        completer.score((rows[:2], cols[:2]), [1.0, np.nan])
    with pytest.raises(TypeError, match="y must be a real array"):
        completer.score((rows[:2], cols[:2]), ["a", "b"])
    with pytest.raises(ValueError, match="device"):
        MatrixCompleter(**QUICK, device="quantum").fit(holes)
    with pytest.raises(TypeError, match="dtype must be a real floating type, got 'floot'"):
        MatrixCompleter(**QUICK, dtype="floot").fit(holes)
