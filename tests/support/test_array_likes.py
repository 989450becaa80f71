from __future__ import annotations

import array
import datetime
import math
from collections import deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import xarray as xr

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.support import as_device, as_float_tensor, as_matrix

VALUES = [[0.1, 2.0], [-3.0, 1e-100]]
X = np.array(VALUES)


class Exporting:
    """An array of another library: nothing but DLPack."""

    def __dlpack__(self, **options):
        return X.__dlpack__(**options)

    def __dlpack_device__(self):
        return X.__dlpack_device__()


class Converting:
    def __array__(self, dtype=None, copy=None):
        return np.array(X, dtype=dtype)


def read_only():
    x = X.copy()
    x.flags.writeable = False
    return x


LIKES = {
    "list": VALUES,
    "tuples": tuple(map(tuple, VALUES)),
    "deque": deque(VALUES),
    "arrays": list(X),
    "numpy numbers": [[np.float64(v) for v in row] for row in VALUES],
    "fractions": [[Fraction(v) for v in row] for row in VALUES],
    "decimals": [[Decimal(v) for v in row] for row in VALUES],
    "tensors": list(torch.tensor(X)),
    "scalars": [[torch.tensor(v, dtype=torch.float64) for v in row] for row in VALUES],
    "mixed": [torch.tensor(X[0]), X[1]],
    "objects": X.astype(object),
    "big-endian": X.astype(">f8"),
    "longdouble": X.astype(np.longdouble),
    "fortran": np.asfortranarray(X),
    "turned": X[::-1][::-1].T[::-1].T[:, ::-1],
    "reversed": X[::-1].copy()[::-1],
    "read-only": read_only(),
    "masked nowhere": np.ma.array(X, mask=False),
    "memoryview": memoryview(X),
    "frame": pd.DataFrame(X),
    "frame of objects": pd.DataFrame(X).astype(object),
    "nullable": pd.DataFrame(X).astype("Float64"),
    "series": [pd.Series(row) for row in VALUES],
    "xarray": xr.DataArray(X),
    "dlpack": Exporting(),
    "array": Converting(),
    "parameter": torch.nn.Parameter(torch.tensor(X)),
}


@pytest.mark.parametrize("make", LIKES)
def test_one_door_takes_every_make_of_array(make):
    x = as_matrix(LIKES[make], "x", dtype=torch.float64)
    assert x.tolist() == VALUES
    point = dln.EndToEnd.of(torch.eye(2, dtype=torch.float64), 3)
    expected = dln.cometric(point, torch.tensor(X))
    assert torch.equal(dln.cometric(point, LIKES[make]).detach(), expected)
    product = dln.end_to_end((LIKES[make], LIKES[make]))
    torch.testing.assert_close(product.detach().double(), torch.tensor(X @ X))
    loss = losses.Quadratic(LIKES[make])
    assert float(loss.value(X).detach()) <= 1e-14


def test_columns_of_a_table_are_places_and_values():
    table = pd.DataFrame({"row": [0, 2, 1], "col": [1, 0, 1], "rating": [0.1, 4.0, 3.0]})
    expected = losses.Completion([0, 2, 1], [1, 0, 1], np.array([0.1, 4.0, 3.0]), (3, 2))
    # A row filter leaves gaps in the index: labels are no positions.
    table.index = [7, 3, 5]
    for change in (lambda x: x, lambda x: x.convert_dtypes(), lambda x: x.to_numpy()):
        columns = [change(table[name]) for name in table]
        loss = losses.Completion(*columns, pd.Series([3, 2]))
        assert loss.values.dtype == torch.float64
        for name in ("rows", "cols", "values"):
            assert torch.equal(getattr(loss, name), getattr(expected, name))
    places = (table["row"].astype(np.uint16), array.array("q", [1, 0, 1]))
    loss = losses.Completion(*places, table["rating"], (3, 2))
    assert torch.equal(loss.cols, expected.cols)


def test_masked_and_missing_entries_are_unknown_where_something_may_be():
    hidden = np.ma.masked_equal([[1.0, -9.0], [-9.0, 4.0]], -9.0)
    table = pd.DataFrame([[1, None], [None, 4]]).convert_dtypes()
    counts = np.ma.masked_equal([[1, -9], [-9, 4]], -9)
    nan = [[1.0, math.nan], [math.nan, 4.0]]
    for x in (hidden, counts, table, table.astype(object), np.array(nan, object), nan):
        loss = losses.Completion.from_matrix(x)
        assert loss.rows.tolist() == loss.cols.tolist() == [0, 1]
        assert loss.values.tolist() == [1.0, 4.0]
    # Plain numbers have the default type, with holes as without.
    for x in (nan, [[1, None], [None, 4]], [[1.0, 2.0], [3.0, 4.0]]):
        assert losses.Completion.from_matrix(x).dtype == torch.float32
    with pytest.raises(ValueError, match="x must be finite or NaN, got infinite entries"):
        losses.Completion.from_matrix([[math.inf, math.nan]])
    for x in (hidden, counts):
        for door in (losses.Quadratic, lambda x: dln.EndToEnd.of(x, 2), as_matrix):
            with pytest.raises(ValueError, match=r"must have no masked entries, got 2: fill or"):
                door(x)
    with pytest.raises(ValueError, match="rows must have no masked entries, got 1"):
        losses.Completion(np.ma.array([0, 1], mask=[0, 1]), [0, 1], [1.0, 2.0], (2, 2))
    with pytest.raises(TypeError, match="target must be a real array or tensor, got "):
        losses.Quadratic(table)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_stored_entries_of_sparse_matrices_are_the_known_ones():
    places, values = ([0, 2, 1], [1, 0, 1]), [0.5, 0.0, 3.0]
    expected = losses.Completion(*places, np.array(values), (3, 2))
    coo = scipy.sparse.coo_matrix((values, places), (3, 2))
    own = torch.sparse_coo_tensor(places, torch.tensor(values, dtype=torch.float64), (3, 2))
    for x in (coo, coo.tocsr(), scipy.sparse.csc_array(coo), own, own.coalesce()):
        loss = losses.Completion.from_matrix(x)
        for name in ("rows", "cols", "values"):
            assert torch.equal(getattr(loss, name), getattr(expected, name)), name
    twice = scipy.sparse.coo_matrix(([1.0, 2.0], ([0, 0], [1, 1])), (3, 2))
    with pytest.raises(ValueError, match=r"entries must be given once each, got \(0, 1\)"):
        losses.Completion.from_matrix(twice)
    for x, how in (
        (coo, "toarray"),
        (own, "to_dense"),
        (own.coalesce().to_sparse_csr(), "to_dense"),
    ):
        with pytest.raises(TypeError, match=rf"x must be dense, got .*: pass its {how}\(\)"):
            dln.EndToEnd.of(x, 2)


DAY = datetime.date(2020, 1, 1)


@pytest.mark.parametrize(
    "x",
    [
        "1.0", b"1", bytearray(b"12"), memoryview(b"12"), None, {1.0}, {1.0: 2.0},
        (v for v in [1.0]), float, object(), [DAY], np.array([DAY], "M8[D]"),
        np.array(["1.0"]), np.array([b"1"]),
        pd.Series(["1.0", "2.0"]), pd.Series(["1.0", 2.0]), pd.Series([DAY]),
        pd.Series(["a"], dtype="category"), np.zeros(2, dtype=[("a", "f8")]), [None],
        [[1.0], ["2"]],
        1j, [1j], np.array([1j]),
        np.array([Fraction(1, 2), 1j]),
    ],
)  # fmt: skip
def test_what_holds_no_real_numbers_is_refused(x):
    with pytest.raises(TypeError, match="x must be "):
        as_float_tensor(x, "x")


@pytest.mark.parametrize(
    "x",
    [10**400, [10**400], [1.0, -(10**400)], Fraction(10**400), [[1.0], [1.0, 2.0]], Decimal("NaN"),
     np.longdouble("1e4000"), torch.ones(2, device="meta"), [[1.0, 2.0], 3.0], Decimal("sNaN")],
)  # fmt: skip
def test_numbers_that_are_none_in_double_precision_are_refused(x):
    with pytest.raises(ValueError, match="x must "):
        as_float_tensor(x, "x")


def test_a_list_of_tensors_keeps_its_graph():
    parts = [torch.tensor(v, requires_grad=True) for v in (1.0, 2.0)]
    x = as_float_tensor([[parts[0], 3.0], [0.0, parts[1]]], "x")
    (gradient,) = torch.autograd.grad(x.prod() + x.sum(), parts[0], retain_graph=True)
    assert x.dtype == torch.float32
    assert float(gradient) == 1.0


def test_nothing_that_lies_somewhere_is_moved_by_the_default_device():
    tensor, numbers = torch.tensor(X), X.copy()
    try:
        torch.set_default_device("meta")
        assert as_float_tensor(tensor, "x") is tensor
        assert as_float_tensor(numbers, "x").device.type == "cpu"
        assert as_float_tensor(VALUES, "x", device="cpu").device.type == "cpu"
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("device", ["cuda:77", "nowhere", "meta", "xpu:9", ""])
def test_devices_must_be_there(device):
    with pytest.raises(ValueError, match="device must be one that is there, got"):
        as_device(device)
    for wrong in (1.5, True, None, b"cpu"):
        with pytest.raises(TypeError, match="device must be one that is there, got"):
            as_device(wrong)
