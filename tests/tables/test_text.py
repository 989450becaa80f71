from __future__ import annotations

import gzip

import pytest

from dln_geometry.tables import Doubt, TextFormat, as_delimiter, read_entries, read_matrix

WANTED = [[0.5, 1.25], [2.5, 3.75], [1.5, 2.25]]
TEXT = "0.5,1.25\n2.5,3.75\n1.5,2.25\n"

SAME = {
    "utf-8 with a mark": TEXT.encode("utf-8-sig"),
    "utf-16": TEXT.encode("utf-16"),
    "utf-32": TEXT.encode("utf-32"),
    "latin-1": ("é,ü\n" + TEXT).encode("latin-1"),
    "windows": TEXT.replace("\n", "\r\n").encode(),
    "old mac": TEXT.replace("\n", "\r").encode(),
    "no last line end": TEXT.strip().encode(),
    "tabs": TEXT.replace(",", "\t").encode(),
    "semicolons": TEXT.replace(",", ";").encode(),
    "bars": TEXT.replace(",", "|").encode(),
    "colons": TEXT.replace(",", "::").encode(),
    "blanks": TEXT.replace(",", "   ").replace("\n", " \n  ").encode(),
    "quoted": b'"0.5","1.25"\n"2.5","3.75"\n"1.5","2.25"\n',
    "excel": ("sep=;\n" + TEXT.replace(",", ";")).encode(),
    "trailing": TEXT.replace("\n", ",\n").encode(),
    "comments": ("# a matrix, 3 by 2\n" + TEXT + "% the end\n").encode(),
    "empty lines": ("\n" + TEXT.replace("\n", "\n\n")).encode(),
    "padded": TEXT.replace(",", " , ").encode(),
}


@pytest.mark.parametrize("kind", SAME)
def test_one_matrix_in_many_texts(kind, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(SAME[kind])
    table = read_matrix(path)
    assert table.values.tolist() == WANTED
    packed = tmp_path / "x.txt.gz"
    packed.write_bytes(gzip.compress(SAME[kind]))
    assert read_matrix(packed).values.tolist() == WANTED
    told = kind in ("latin-1", "trailing", "comments")
    assert bool(table.notes) == told


REFUSED = {
    "UTF-16 without its mark": "0.5,1.25\n2.5,3.75\n".encode("utf-16-le"),
    "zero bytes": b"1,2\n\0\n3,4\n",
    "control characters": b"1.5,2\n\x01,4\n",
    "other bytes": bytes(range(128, 256)),
    "got 2 and 1 at line 2": b"0.5,1.25\n2.5\n1.5,3.5\n",
    "got 2 and 3 at line 4": b"0.5,1.25\n# c\n\n2.5,1.5,1\n",
    "an infinite one at line 2, column 1": b"0.5,1.25\n1e400,2.5\n",
    "an infinite one at line 1, column 2": b"0.5,-Infinity\n1.5,2.5\n",
    "'1_000' at line 2, column 2": b"0.5,1.25\n2.5,1_000\n",
    "'1,000.5' at line 2, column 1": b'0.5,1.25\n"1,000.5",2.5\n',
    "'x' at line 4, column 2": b"a,b\n# c\n0.5,1.25\n2.5,x\n",
    "an empty cell or NaN at line 2, column 2": b"0.5,1.25\n2.5,\n1.5,2.5\n",
    "'0x10' at line 2, column 1": b"0.5,1.25\n0x10,2.5\n",
    "'True' at line 2, column 1": b"0.5,1.25\nTrue,2.5\n",
    "got at line 2": b'0.5,1.25\n"2.5,1.5\n',
    "before as many cells as elsewhere at line 2": b"0.5,1.25\n#2.5,1.5\n3.5,2\n",
    "no empty line in a single column, got one at line 2": b"0.5\n\n1.5\n",
    "a header alone": b"a,b\n",
    "no line of data": b"# nothing\n\n",
    "empty file": b"",
}


@pytest.mark.parametrize("said", REFUSED)
def test_refusals_name_file_line_and_column(said, tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(REFUSED[said])
    with pytest.raises(ValueError, match="x.csv") as error:
        read_matrix(path)
    assert said in str(error.value)


def test_a_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "x.csv.gz"
    for data in (b"0.5,1.5\n", gzip.compress(TEXT.encode())[:-9]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="gzip"):
            read_matrix(path)


def test_a_comma_before_decimals_must_be_told(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(TEXT.replace(",", ";").replace(".", ","))
    with pytest.raises(Doubt, match="'3,75' at line 2") as doubt:
        read_matrix(path)
    assert doubt.value.option == "decimal"
    assert read_matrix(path, form=TextFormat(decimal=",")).values.tolist() == WANTED
    path.write_text("1.234,5;2\n3;4,5\n")
    with pytest.raises(ValueError, match=r"1\.234,5"):
        read_matrix(path, form=TextFormat(decimal=",", header=False))
    path.write_text("1,5;2\n1.234;4,5\n")
    with pytest.raises(
        ValueError, match=r"comma before decimals, got '1\.234' at line 2, column 1"
    ):
        read_matrix(path, form=TextFormat(decimal=","))


def test_delimiter_decides(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("0.5!1.25\n2.5!3.75\n1.5!2.25\n")
    assert read_matrix(path, form=TextFormat(delimiter="!")).values.tolist() == WANTED
    with pytest.raises(ValueError, match="must hold numbers"):
        read_matrix(path)
    assert [as_delimiter(x) for x in ("tab", "space", "\\t", None)] == ["\t", " ", "\t", None]
    for wrong in ("", "a", "1", ".", '"', "-", "\n"):
        with pytest.raises(ValueError, match="delimiter must be"):
            as_delimiter(wrong)


def test_lines_are_counted_past_cells_that_span_lines(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('ann,"one\ntwo",3\n\nbob,"three\nfour\nfive",4\ncy,six,five\n')
    with pytest.raises(ValueError, match="'five' at line 7, column 3"):
        read_entries(path, layout="triples", form=TextFormat(header=False))
