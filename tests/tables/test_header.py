"""Matrices as pandas, R and MATLAB write them: recognised, or refused with the option named."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from dln_geometry.tables import Doubt, TextFormat, read_entries, read_matrix

GENERIC = np.array([[0.5, -1.25, 3.5], [2.5, 0.75, 7.25], [1.5, 2.25, -0.5], [8.5, 0.25, 1.75]])
INTEGERS = np.array([[3, 1, 5], [2, 7, 4], [5, 5, 1], [4, 2, 2]])
NAMES = {
    "counted": (range(4), range(3)),
    "words": (["ann", "bob", "cy", "di"], ["a", "b", "c"]),
    "years": ([70, 30, 20, 11], [2019, 2020, 2021]),
    "odd": ([310, 205, 108, 999], [60000, 77, 104000100004]),
}
# Written without them, nothing tells integers from an index or a header that counts.
DOUBTFUL = {
    *product([True], [False], ["fractions"], ["years", "odd"]),
    *product([False], [True], ["fractions"], ["years", "odd"]),
    *product([True], [False], ["integers"], ["counted", "years", "odd"]),
    *product([False], [True], ["integers"], ["counted", "years", "odd"]),
    *product([True], [True], ["fractions", "integers"], ["years", "odd"]),
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("kind", ["fractions", "integers"])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("header", [False, True])
def test_tables_of_pandas_are_recognised_or_refused(header, index, kind, names, tmp_path):
    x = GENERIC if kind == "fractions" else INTEGERS
    rows, columns = NAMES[names]
    path = tmp_path / "x.csv"
    pd.DataFrame(x, index=rows, columns=columns).to_csv(path, header=header, index=index)
    if (header, index, kind, names) in DOUBTFUL:
        with pytest.raises(Doubt, match="must tell whether") as doubt:
            read_matrix(path)
        assert doubt.value.option == ("header" if header else "index")
        table = read_matrix(path, form=TextFormat(header=header, index=index))
    else:
        table = read_matrix(path)
        assert bool(table.notes) == (header or index)
    assert np.array_equal(table.values, x)
    assert table.rows is None if not index else list(table.rows) == list(rows)
    assert table.columns is None if not header else list(table.columns) == list(columns)
    # Told wrongly, nothing is right: one row more, or one less.
    assert read_matrix(path, form=TextFormat(header=True, index=index)).shape[0] == 3 + header


@pytest.mark.parametrize("word", ["", "NA", "N/A", "null", "NaN", "nan", "None", "#N/A", "<NA>"])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("header", [False, True])
def test_holes_are_holes_on_every_line(header, index, word, rng, tmp_path):
    x = np.where(rng.random((6, 4)) < 0.7, rng.normal(size=(6, 4)), np.nan)
    x[0, 0] = np.nan  # the first cell is no corner
    x[0, 1] = 0.5
    path = tmp_path / "x.csv"
    pd.DataFrame(x).to_csv(path, header=header, index=index, na_rep=word)
    entries = read_entries(path)
    read = np.full(entries.shape, np.nan)
    read[entries.rows, entries.cols] = entries.values
    assert np.array_equal(read, x, equal_nan=True)


def test_a_first_line_with_a_hole_is_data(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("NA,2.0,3.0,4.0\n1.0,2.5,NA,3.0\n1.5,1.0,2.0,N/A\n")
    assert read_entries(path).shape == (3, 4)


R_TABLES = {
    "write.csv": '"","V1","V2"\n"1",0.5,1.25\n"2",2.5,3\n"3",1,2.25\n',
    "write.table": '"V1" "V2"\n"1" 0.5 1.25\n"2" 2.5 3\n"3" 1 2.25\n',
    "names": '"V1" "V2"\n"ann b" 0.5 1.25\n"cy" 2.5 3\n"d" 1 2.25\n',
    "no quotes": "V1 V2\n1 0.5 1.25\n2 2.5 3\n3 1 2.25\n",
    "no row names": '"V1","V2"\n0.5,1.25\n2.5,3\n1,2.25\n',
    "matlab": "0.5,1.25\n2.5,3\n1,2.25\n",
    "dates": "date,a,b\n2020-01-01,0.5,1.25\n2020-01-02,2.5,3\n2020-01-03,1,2.25\n",
}


@pytest.mark.parametrize("kind", R_TABLES)
def test_tables_of_other_programs(kind, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(R_TABLES[kind])
    assert read_matrix(path).values.tolist() == [[0.5, 1.25], [2.5, 3], [1, 2.25]]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("1,2\n3,4\n", "header"),
        ("0,1,2,3\n4,5,6,7\n8,9,10,11\n", "header"),
        (",10,3,77\n31,5,3,1\n5,2,4,4\n8,1,1,2\n", "header"),
        ("1,5\n2,7\n3,1\n", "index"),
        ("user,2019,2020\nann,3.5,4\nbob,2,1\n", "header"),
        ("2020,1.5,3.25\n2021,2.5,4.75\n", "index"),
        # Wavelengths above spectra.
        ("id,400,402.5,405,407.5,410,412.5\na,3,2,5,1,4,2\nb,2,3,1,5,1,3\n", "header"),
        ("0.1,0.2,0.3,0.4,0.5,0.6\n3,2.5,5,1,4,2\n", "header"),
    ],
)
def test_what_counts_beside_integers_is_doubtful(text, option, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(Doubt) as doubt:
        read_matrix(path)
    assert doubt.value.option == option


def test_a_pivot_keeps_the_names_of_its_sides(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("userId,31,7,104000100004\n5,3,,4\n2,,1,5\n9,2,2,\n")
    entries = read_entries(path)
    assert entries.row_ids is not None
    assert entries.col_ids is not None
    assert entries.row_ids.names == (5, 2, 9)
    assert entries.col_ids.names == (31, 7, 104000100004)
    assert entries.values.tolist() == [3, 4, 1, 5, 2, 2]
    # A name that stands twice names nothing.
    path.write_text("userId,7,7,8\n5,3,,4\n2,,1,5\n9,2,2,\n")
    entries = read_entries(path)
    assert entries.col_ids is None
    assert any("twice" in note for note in entries.notes)
