from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dln_geometry.tables import Doubt, TextFormat, read_entries

ITEMS = (31, 104000100004, 7, 60000)


@pytest.fixture
def ratings(rng):
    """Ratings of 8 users, 10 to 80, of 4 items whose numbers are no sizes."""
    pairs = [(10 * u, i) for u in range(1, 9) for i in ITEMS]
    rng.shuffle(pairs)
    users, items = zip(*pairs, strict=True)
    values = rng.integers(1, 11, size=len(pairs)) / 2
    stamps = 964982703 + rng.integers(1000, size=len(pairs))
    return pd.DataFrame(
        {"userId": map(int, users), "movieId": map(int, items), "rating": values, "time": stamps}
    )


def check(entries, frame):
    assert entries.shape == (frame.userId.nunique(), 4)
    wanted = {(u, i): v for u, i, v in zip(*(frame[c] for c in frame.columns[:3]), strict=True)}
    read = {
        (entries.row_ids[a], entries.col_ids[b]): v
        for a, b, v in zip(entries.rows, entries.cols, entries.values, strict=True)
    }
    assert read == wanted


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("time", ["none", "seconds", "dates"])
@pytest.mark.parametrize("users", ["numbers", "words", "zeros"])
def test_ids_are_names(ratings, users, time, header, tmp_path):
    if users != "numbers":
        ratings["userId"] = [f"u{u}" if users == "words" else f"{u:04d}" for u in ratings.userId]
    if time == "none":
        ratings = ratings.drop(columns="time")
    elif time == "dates":
        ratings["time"] = pd.to_datetime(ratings.time, unit="s")
    path = tmp_path / "x.csv"
    ratings.to_csv(path, header=header, index=False)
    entries = read_entries(path)
    check(entries, ratings)
    assert entries.layout == "triples (row, column, value) by names"
    assert any("left out" in note for note in entries.notes) == (time != "none")
    # An index beside the triples is seen by its header, and doubted without one.
    ratings.to_csv(path, header=header)
    if header:
        check(read_entries(path), ratings)
    else:
        with pytest.raises(Doubt, match="index"):
            read_entries(path)
        check(read_entries(path, form=TextFormat(index=True)), ratings)


@pytest.mark.parametrize("mark", ["\t", "::"])
def test_layouts_of_movielens(ratings, mark, tmp_path):
    path = tmp_path / ("u.data" if mark == "\t" else "ratings.dat")
    ratings["rating"] = (2 * ratings.rating).astype(int)
    lines = [mark.join(map(str, row)) for row in ratings.itertuples(index=False)]
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    check(read_entries(path), ratings)


def test_places_keep_their_meaning(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,2,5.5\n3,1,4.5\n")
    assert read_entries(path).shape == (2, 2)
    assert read_entries(path, one_based=True).shape == (3, 2)
    assert read_entries(path, one_based=True).row_ids is None
    assert read_entries(path, shape=(5, 6)).shape == (5, 6)
    with pytest.raises(ValueError, match="at most 2 for the shape"):
        read_entries(path, shape=(3, 3))
    # Where ids are just 0, 1, ... both are the same.
    path.write_text("0,1,5.5\n1,0,4.5\n")
    assert read_entries(path).row_ids is None
    assert read_entries(path).layout == "triples (row, column, value) counted from 0"


TEXTS = {
    "(1, 2) repeatedly, at lines 2 and 6": "user,item,rating\n1,2,3\n# c\n1,3,4\n\n1,2,5\n",
    "('ann', 'x') repeatedly, at lines 2 and 4": "user,item,rating\nann,x,3\nbob,x,4\nann,x,5\n",
    "got '' at line 3, column 1": "user,item,rating\nann,x,3\n,x,4\nann,y,5\n",
    "got 'NA' at line 2, column 2": "user,item,rating\nann,NA,3\nbob,x,4\nann,y,5\n",
    "NaN at line 3, column 3": "user,item,rating\nann,x,3\nbob,x,\nann,y,5\n",
    "infinite one at line 3, column 3": "user,item,rating\nann,x,3\nbob,x,inf\nann,y,5\n",
    "got '3,5' at line 2, column 3": "user;item;rating\n1;10;3,5\n2;10;4,0\n",
    "got 0.5 at line 1, column 1": "0.5,1,2\n1,0,3\n",
    "row, column, value in this order": "rating,user,item\n3,1,5\n4,2,5\n",
}


@pytest.mark.parametrize("said", TEXTS)
def test_refusals_of_triples_name_the_line(said, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(TEXTS[said])
    with pytest.raises(ValueError, match="x.csv") as error:
        read_entries(path, layout="triples")
    assert said in str(error.value)
    with pytest.raises(ValueError, match="x.csv"):
        read_entries(path)


def test_what_may_be_a_header_or_a_word_is_doubted(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("0,1,2\n7,3,4.5\n8,5,2\n")  # the columns of a frame without names
    with pytest.raises(Doubt, match="header"):
        read_entries(path)
    assert len(read_entries(path, form=TextFormat(header=True)).values) == 2
    path.write_text("user,item,rating\nann,5,3\n7,5,2.5\n7,6,1\n")
    with pytest.raises(Doubt, match="'ann' at line 2, column 1"):
        read_entries(path)
    assert list(read_entries(path, layout="triples").row_ids) == ["7", "ann"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("benutzer;film;note\nann;f1;3,5\nbob;f2;4,25\n", "'3,5' at line 2, column 3: tell that"),
        ("rating,user,item\n3.5,ann,f1\n4,bob,f2\n", "row, column, value in this order, got"),
        ("user,item,rating\nann,f1,3.5\nbob,f2,nan\n", "an empty cell or NaN at line 3, column 3"),
        ("user,item,rating,votes\nann,f1,3.5,4\nbob,f2,4,5\n", "perhaps a time, got further"),
    ],
)
def test_words_in_two_columns_can_be_no_matrix(text, said, tmp_path):
    """So the message is that of triples."""
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="x.csv") as error:
        read_entries(path)
    assert said in str(error.value)


def test_quoted_names_keep_their_marks(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('1,"Toy Story, 1995",3\n2,"A ""b"" c",4\n')
    assert list(read_entries(path).col_ids) == ['A "b" c', "Toy Story, 1995"]


def test_arrays_of_triples_have_ids(tmp_path):
    path = tmp_path / "x.npz"
    rows, cols = np.array([1, 104000100004, 1]), np.array([5, 5, 60000])
    np.savez(path, rows=rows, cols=cols, values=[1.0, 2.0, 3.0], more=np.zeros(3))
    entries = read_entries(path)
    assert entries.shape == (2, 2)
    assert list(entries.row_ids) == [1, 104000100004]
    assert entries.notes == ("arrays left out: more",)
    np.savez(path, rows=["b", "a", "b"], cols=cols, values=[1.0, 2.0, 3.0])
    assert list(read_entries(path).row_ids) == ["a", "b"]
    np.savez(path, rows=rows[[0, 0]], cols=cols[[0, 0]], values=[1.0, 2.0])
    with pytest.raises(ValueError, match="repeatedly"):
        read_entries(Path(path))


@pytest.mark.parametrize("years", ["1990,1991", "1990,2000", "0,1"])
def test_years_above_two_columns_are_no_entry(years, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f"country,{years}\nA,1,2\nB,3,5\n")
    with pytest.raises(Doubt, match="line 1 .* is a header"):
        read_entries(path)
    assert read_entries(path, form=TextFormat(header=False)).shape == (3, 3)
    path.write_text("ann,1,2\nann,2,3\nbob,1,5\n")  # a name that stands twice is no name of a line
    assert len(read_entries(path).values) == 3
