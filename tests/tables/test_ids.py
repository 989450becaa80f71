from __future__ import annotations

import copy
import pickle
import uuid
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from dln_geometry.tables import Ids, load_ids, save_ids


def test_ids_map_names_to_places_and_back():
    ids = Ids(["ann", 7, "007", np.int64(-3), np.str_("é")], "row")
    assert ids.places(["007", 7, -3]).tolist() == [2, 1, 3]
    assert [ids[k] for k in range(5)] == ["ann", 7, "007", -3, "é"]
    assert "7" not in ids
    assert 7 in ids
    for twin in (copy.deepcopy(ids), pickle.loads(pickle.dumps(ids))):
        assert twin == ids
    with pytest.raises(ValueError, match="among the 5 known, got 'bob', 8"):
        ids.places(["bob", "ann", 8])


def test_ids_of_labels_are_sorted():
    ids, places = Ids.of([30, 4, 30, 100])
    assert ids.names == (4, 30, 100)
    assert places.tolist() == [1, 0, 1, 2]
    assert Ids.of(["b", "a", 5])[0].names == (5, "a", "b")


@pytest.mark.parametrize("wrong", [[1, 1], ["a", "a"]])
def test_names_stand_once(wrong):
    with pytest.raises(ValueError, match="once each"):
        Ids(wrong)


NAMELESS = [None, True, float("nan"), float("inf"), [1], ("a", None), np.datetime64("NaT"), pd.NA]


@pytest.mark.parametrize("wrong", NAMELESS)
def test_what_equals_nothing_is_no_name(wrong):
    with pytest.raises(TypeError, match="must be strings, numbers or other names"):
        Ids([wrong])


def test_names_of_every_kind_are_ordered_and_found():
    known = uuid.UUID(int=5)
    names = [known, ("b", 2), ("a", date(2024, 2, 29)), "x", 2.5, 7.0, np.timedelta64(2, "s")]
    ids, places = Ids.of(names)
    assert ids.names[:5] == (2.5, 7, "x", ("a", "2024-02-29"), ("b", 2))
    assert [ids[k] for k in places[[0, 1, 4]]] == [known, ("b", 2), 2.5]
    assert ids.place(("a", np.datetime64("2024-02-29"))) == places[2]
    assert ids.place(timedelta(seconds=2)) == places[6]
    with pytest.raises(TypeError, match="to be saved, got"):
        ids.written()


def test_ids_are_saved_with_their_types(tmp_path):
    path = tmp_path / "ids.json"
    rows = Ids(["7", 7, "é\n", 104000100004, 0.1, ("a", (2, "b"))])
    save_ids(path, rows, None)
    assert load_ids(path) == (rows, None)
    for text in ("", "[]", "{}", '{"rows": [null], "columns": null}', "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match="ids.json must hold names"):
            load_ids(path)
