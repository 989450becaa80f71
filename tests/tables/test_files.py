from __future__ import annotations

import gzip
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse
import torch

from dln_geometry.tables import (
    Ids,
    TextFormat,
    as_budget,
    as_entries,
    as_table,
    read_entries,
    read_matrix,
    read_pairs,
)

HOLES = np.array([[0.5, np.nan, 2.5], [np.nan, 1.5, -1.0]])


def npy_header(shape, dtype="<f8"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_headers_that_claim_too_much_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    for shape in ((10**6, 10**6), (2**40, 2**40), (3, -3)):
        path.write_bytes(npy_header(shape) + bytes(72))
        with pytest.raises(ValueError, match="x.npy must be an array"):
            read_matrix(path)
    path = tmp_path / "x.mtx"
    for kind, sides in (("array", "100000 100000"), ("coordinate", "5 5 999999999")):
        path.write_text(f"%%MatrixMarket matrix {kind} real general\n{sides}\n1 1 1.0\n")
        with pytest.raises(ValueError, match="of memory, the limit|too short"):
            read_entries(path, max_memory=2**30)


def test_archives_that_unpack_to_more_than_memory_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_header((1000, 5000)) + bytes(40_000_000))
    assert path.stat().st_size < 10**5
    with pytest.raises(ValueError, match="of memory, the limit is 9.54 MiB"):
        read_matrix(path, max_memory=1e7)
    text = tmp_path / "x.csv.gz"
    for data in (b"1.5,2\n" * 10**6, b"1" * 10**7):
        text.write_bytes(gzip.compress(data))
        with pytest.raises(ValueError, match="memory"):
            read_matrix(text, max_memory=1e6)


def test_members_that_are_not_asked_for_are_not_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, rows=[0, 1], cols=[1, 0], values=[1.0, 2.0])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", npy_header((1000, 5000)) + bytes(40_000_000))
    assert read_entries(path, max_memory=1e6).notes == ("arrays left out: more",)
    np.savez(path, rows=[0], cols=[1], values=[1.0], shape=np.array([0, 5]))
    with pytest.raises(ValueError, match="shape of two integers"):
        read_entries(path)


def test_options_of_text_are_refused_for_other_files(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, HOLES)
    with pytest.raises(ValueError, match="must be left out unless a text is read"):
        read_entries(path, form=TextFormat(header=True))


def test_matrices_of_every_kind(tmp_path):
    x = np.array([[1.0, 0.5], [0.0, 2.0]])
    np.save(tmp_path / "a.npy", np.asfortranarray(x.astype(">f4")))
    np.savez(tmp_path / "b.npz", x)
    scipy.io.mmwrite(tmp_path / "c.mtx", scipy.sparse.coo_array(x))
    scipy.io.mmwrite(tmp_path / "d.mtx", x)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_matrix(path).values, x), path


def test_parquet_is_read_where_there_is_a_reader(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="pandas and pyarrow"):
            read_entries(path)
        return
    with pytest.raises(ValueError, match="a file of parquet"):
        read_entries(path)
    pd.DataFrame(HOLES).to_parquet(path)
    assert np.array_equal(read_entries(path).values, HOLES[~np.isnan(HOLES)])
    frame = pd.DataFrame({"user": ["b", "a"], "item": [10**11, 5], "rating": [1.5, 2.0]})
    frame.to_parquet(path)
    entries = read_entries(path)
    assert list(entries.row_ids) == ["a", "b"]
    assert list(entries.col_ids) == [5, 10**11]
    # Whole numbers stay numbers among words; nobody is called "None".
    frame.assign(user=["b", "a"], item=pd.array([10, 9], dtype="Int64")).to_parquet(path)
    assert list(read_entries(path).col_ids) == [9, 10]
    frame.assign(user=["b", None]).to_parquet(path)
    with pytest.raises(ValueError, match="an id in every row, got none in 'user'"):
        read_entries(path)


MATRICES = {
    "numpy": HOLES,
    "masked": np.ma.masked_invalid(HOLES),
    "integers": np.ma.array(np.where(np.isnan(HOLES), -9, 2 * HOLES), mask=np.isnan(HOLES)) / 2,
    "frame": pd.DataFrame(HOLES),
    "nullable": pd.DataFrame(HOLES).astype("Float64"),
    "tensor": torch.tensor(HOLES, requires_grad=True),
    "list": HOLES.tolist(),
    "turned": HOLES[::-1][::-1].astype(">f8"),
}


@pytest.mark.parametrize("make", MATRICES)
def test_arrays_in_memory_have_holes(make):
    assert np.array_equal(as_table(MATRICES[make]).values, HOLES, equal_nan=True)
    entries = as_entries(MATRICES[make])
    assert entries.values.tolist() == [0.5, 2.5, 1.5, -1.0]


def test_frames_keep_their_names():
    frame = pd.DataFrame(HOLES, index=["a", "b"], columns=[10, 20, 5])
    table = as_table(frame)
    assert table.rows is not None
    assert table.columns is not None
    assert (table.rows.names, table.columns.names) == (("a", "b"), (10, 20, 5))
    assert as_table(pd.DataFrame(HOLES)).rows is None


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.coo_matrix])
def test_stored_entries_of_sparse_matrices_are_known(make):
    entries = as_entries(make(([0.0, 2.0], ([0, 1], [1, 0])), shape=(3, 2)))
    assert entries.shape == (3, 2)
    assert sorted(entries.values.tolist()) == [0.0, 2.0]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "8", True])
def test_limits_of_memory_are_positive(wrong):
    with pytest.raises((TypeError, ValueError), match="max_memory must be"):
        as_budget(wrong)


def test_repeated_entries_follow_the_rule(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,1,2\nb,1,5\na,1,6\n")
    with pytest.raises(ValueError, match="repeatedly"):
        read_entries(path)
    for rule, value in (("mean", 4.0), ("last", 6.0)):
        found = read_entries(path, duplicates=rule)
        assert found.values.tolist() == [value, 5.0]
        assert f"1 entries are repeated: the {rule} counts" in found.notes
    np.savez(tmp_path / "x.npz", rows=[0, 0], cols=[1, 1], values=[1.0, 3.0])
    assert read_entries(tmp_path / "x.npz", duplicates="mean").values.tolist() == [2.0]
    with pytest.raises(ValueError, match="duplicates must be one of raise, mean, last"):
        read_entries(path, duplicates="first")


def test_pairs_are_named_as_the_entries_are(tmp_path):
    rows, columns = Ids(["ann", "7", "007"]), Ids([3, 104_000_100_004])
    path = tmp_path / "pairs.csv"
    path.write_text("who,what,when\nann,3,1\n7,104000100004,2\n007,8,3\n")
    found = read_pairs(path, rows, columns)
    assert found[:2] == (["ann", "7", "007"], [3, 104_000_100_004, 8])
    assert "is read as a header" in found[2][0]
    assert "after the second are left out" in found[2][1]
    # A known name in the first line is no header, nor is a number.
    path.write_text("ann,x\n")
    assert read_pairs(path, rows, columns)[:2] == (["ann"], ["x"])
    path.write_text("5,1\n2,3\n")
    assert read_pairs(path, first=1)[:2] == ([4, 1], [0, 2])
    path.write_text("5,1\n2,x\n")
    with pytest.raises(ValueError, match="places, whole numbers, got words"):
        read_pairs(path)
    path.write_text("5\n2\n")
    with pytest.raises(ValueError, match="columns row and column, got 1"):
        read_pairs(path)
