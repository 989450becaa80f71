"""Archives of arrays are written whole, read back, and refused when they are something else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dln_geometry.support import read_archive, write_archive, written_whole

ARRAYS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "none": None}


def built(arrays, attributes):
    return arrays, attributes


def test_what_is_written_is_read(tmp_path):
    path = write_archive(tmp_path / "new" / "run", 2, ARRAYS, {"names": ["x", "y"], "n": 3})
    assert path == tmp_path / "new" / "run.npz"
    for name in (path, str(path.with_suffix(""))):
        arrays, attributes = read_archive(name, "thing", 2, built)
        assert arrays.keys() == {"a", "b"}
        assert all(torch.equal(arrays[k], ARRAYS[k]) for k in arrays)
        assert attributes == {"format": 2, "names": ["x", "y"], "n": 3}
    # Plain arrays: numpy reads them without pickles.
    with np.load(path, allow_pickle=False) as archive:
        assert json.loads(str(archive["meta"]))["n"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]


def test_what_gradients_hang_on_is_no_obstacle(tmp_path):
    x = torch.ones(2, requires_grad=True)
    path = write_archive(tmp_path / "run", 1, {"x": 2 * x}, {})
    assert read_archive(path, "thing", 1, built)[0]["x"].tolist() == [2.0, 2.0]


def test_other_archives_are_refused(tmp_path):
    path = write_archive(tmp_path / "run", 2, ARRAYS, {})
    with pytest.raises(ValueError, match="path must be a thing of format <= 1, got 2"):
        read_archive(path, "thing", 1, built)
    with pytest.raises(ValueError, match=r"saved thing, got .*run.npz: KeyError: 'missing'"):
        read_archive(path, "thing", 2, lambda arrays, _: arrays["missing"])
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        read_archive(path, "thing", 2, lambda *_: 1 / 0)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_archive(tmp_path / "nothing", "thing", 2, built)
    for damaged in (b"", b"PK nothing", path.read_bytes()[:-40]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="saved thing, got .* no archive of one, or a damaged"):
            read_archive(path, "thing", 2, built)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = write_archive(tmp_path / "run", 1, ARRAYS, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_archive(path, 1, ARRAYS, {"x": object()})

    def interrupted():
        with written_whole(path) as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_damage_is_refused_or_changes_nothing(tmp_path, rng):
    path = write_archive(tmp_path / "run", 2, ARRAYS, {"names": ["x", "y"]})
    whole = path.read_bytes()
    damaged = []
    for at in rng.integers(0, len(whole), 150).tolist():
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(flipped))
    for at in range(0, len(whole), 40):
        damaged += [whole[:at], whole[:at] + bytes(min(40, len(whole) - at)) + whole[at + 40 :]]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            arrays, attributes = read_archive(path, "thing", 2, built)
        except ValueError as error:
            refused += str(path) in str(error)
            continue
        assert attributes == {"format": 2, "names": ["x", "y"]}
        assert all(torch.equal(x, ARRAYS[k]) for k, x in arrays.items())
        assert arrays.keys() == {"a", "b"}
    assert refused > len(damaged) / 2


def test_other_contents_with_sound_members_are_refused(tmp_path):
    path = write_archive(tmp_path / "run", 2, ARRAYS, {})
    with np.load(path) as archive:
        parts = dict(archive)
    other = json.loads(str(parts["meta"]))
    for changed in (
        {**parts, "a": parts["a"] + 1},
        {**parts, "a": parts["a"].astype(np.float64)},
        {**parts, "a": parts["a"].reshape(3, 2)},
        {k: x for k, x in parts.items() if k != "b"},
        {**parts, "meta": np.array(json.dumps({**other, "more": 1}))},
        {**parts, "meta": np.array(json.dumps({**other, "sha256": None}))},
        {**parts, "meta": np.array(json.dumps({"format": 2}))},
    ):
        np.savez(path, **changed)
        with pytest.raises(ValueError, match="a damaged one"):
            read_archive(path, "thing", 2, built)
    # Format 1, of version 0.1.0, has no checksum.
    np.savez(path, **{**parts, "meta": np.array(json.dumps({"format": 1}))})
    assert read_archive(path, "thing", 2, built)[1] == {"format": 1}
