from __future__ import annotations

import copy
import pickle

import numpy as np
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


@pytest.mark.parametrize("wrong", [[0.5], [None], [True], [float("nan")], [("a",)]])
def test_names_are_strings_or_integers(wrong):
    with pytest.raises(TypeError, match="strings or integers"):
        Ids(wrong)


def test_ids_are_saved_with_their_types(tmp_path):
    path = tmp_path / "ids.json"
    rows = Ids(["7", 7, "é\n", 104000100004])
    save_ids(path, rows, None)
    assert load_ids(path) == (rows, None)
    for text in ("", "[]", "{}", '{"rows": [0.5], "columns": null}', "{"):
        path.write_text(text)
        with pytest.raises(ValueError, match="ids.json must hold names"):
            load_ids(path)
