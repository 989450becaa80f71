from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from dln_geometry.cli import read_entries
from tests.cli.routes import refusal, write_triples

ROWS = [(k % 7, k % 5, 0.5 * k + 1) for k in range(30)]


def test_complete_takes_every_kind_of_file(low_rank):
    x, known = low_rank
    holes = np.where(known, x, np.nan)
    i, j = np.nonzero(known)
    write_triples("a.csv", x, known)
    write_triples("b.tsv", x, known, first=1, delimiter="\t", header="user\titem\trating")
    write_triples("c.txt", x, known, delimiter=" ")
    Path("d.csv").write_text(
        "\n".join(";".join("" if np.isnan(v) else repr(float(v)) for v in row) for row in holes)
    )
    np.save("e.npy", holes)
    np.savez("f.npz", rows=i, cols=j, values=x[known], shape=np.array(x.shape))
    np.savez("g.npz", holes)
    sparse = scipy.sparse.coo_array((x[known], (i, j)), shape=x.shape)
    scipy.sparse.save_npz("h.npz", sparse.tocsr())
    scipy.io.mmwrite("i.mtx", sparse, precision=17)
    for path in sorted(Path().iterdir()):
        entries = read_entries(path, one_based=path.name == "b.tsv")
        assert entries.shape == x.shape, path
        read = np.full(x.shape, np.nan)
        read[entries.rows, entries.cols] = entries.values
        assert np.array_equal(read, holes, equal_nan=True), path


def test_layout_settles_what_a_table_of_three_columns_is(tmp_path):
    table = tmp_path / "x.csv"
    table.write_text("0,1,5\n1,0,7\n")
    assert read_entries(table).shape == (2, 2)
    assert read_entries(table, layout="matrix").shape == (2, 3)
    assert read_entries(table, shape=(4, 3)).shape == (4, 3)
    table.write_text("# ratings\n1\t2\t5\t881250949\n2\t1\t3\t881250950\n")
    entries = read_entries(table, layout="triples", one_based=True)
    assert entries.values.tolist() == [5, 3]
    assert entries.rows.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # The fourth column is no time.
        ([(*row, k % 3) for k, row in enumerate(ROWS)], "4 columns of which the first two"),
        ([*ROWS, (-1, 2, 3.0)], "look like row and column in 30 of 31 lines"),
        ([*ROWS, (1.5, 2, 3.0)], "look like row and column in 30 of 31 lines"),
        ([*ROWS, (1, 2, "")], "look like row and column in 31 of 31 lines"),
        ([*ROWS, ("", 2, 3.0)], "look like row and column in 30 of 31 lines"),
        ([(k + 0.5, *row) for k, row in enumerate(ROWS)], "30 x 4 numbers without a hole"),
        ([(0.5, 1), (1, 2)], "2 x 2 numbers without a hole"),
    ],
)
def test_a_doubtful_layout_must_be_told(rows, said, capsys):
    Path("x.csv").write_text("\n".join(",".join(str(cell) for cell in row) for row in rows) + "\n")
    error = refusal(["complete", "x.csv"], capsys)
    assert said in error
    assert "give --layout triples or --layout matrix" in error
    assert list(Path().iterdir()) == [Path("x.csv")]
    # Said outright, anything goes.
    entries = read_entries(Path("x.csv"), layout="matrix")
    assert entries.shape == (len(rows), len(rows[0]))
    if len(rows[0]) == 4 and rows[0][0] == 0:
        assert read_entries(Path("x.csv"), layout="triples").shape == (7, 5)


def test_layouts_without_doubt_are_named(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array(ROWS))
    entries = read_entries(path)
    assert entries.shape == (7, 5)
    assert entries.layout == "triples (row, column, value) counted from 0"
    np.save(path, np.array([[0.5, 1, 2, 3], [np.nan, 1, 2, 3], [4, 5, 6, 7]]))
    assert read_entries(path).layout == "matrix"
    # Ratings with holes are no places.
    np.save(path, np.array([[4, np.nan, 2], [np.nan, 1, 2], [3, 5, np.nan]]))
    assert read_entries(path).shape == (3, 3)
    path = path.with_suffix(".mtx")
    scipy.io.mmwrite(path, scipy.sparse.coo_array(([1.0, 2.0], ([0, 1], [1, 0]))))
    assert read_entries(path).layout == "sparse matrix"
    scipy.io.mmwrite(path, np.eye(2))
    with pytest.raises(ValueError, match="2 x 2 numbers without a hole"):
        read_entries(path)


def test_zeros_that_a_sparse_matrix_stores_are_observed(tmp_path):
    path = tmp_path / "x.npz"
    scipy.sparse.save_npz(path, scipy.sparse.coo_array(([0.0, 2.0], ([0, 1], [1, 0]))))
    assert sorted(read_entries(path).values.tolist()) == [0.0, 2.0]
