"""Damaged and foreign stores are refused, and stay as they are."""

from __future__ import annotations

import shutil

import pytest
import torch

from dln_geometry.dynamics.store import read_sealed, write_sealed
from tests.dynamics.store.runs import (
    F64,
    RUNS,
    files_of,
    run,
    stored,
    told,
)


@pytest.mark.parametrize("name", ["gradient_flow", "sample_gibbs"])
def test_damage_is_found(name, rng, tmp_path):
    """Of the state and of every chunk; what readers see besides is written anew."""
    path = stored(tmp_path, name)
    want = run(name, RUNS[name][0], path)
    whole = {file: file.read_bytes() for file in files_of(path)}
    chunks = [file for file in whole if file.name != "zarr.json"]
    assert len(chunks) > 3
    for file in chunks:
        damaged, content = [], whole[file]
        for at in rng.integers(0, len(content), 12).tolist():
            flipped = bytearray(content)
            flipped[at] ^= 1 << int(rng.integers(8))
            damaged.append(bytes(flipped))
        for at in range(0, len(content), max(len(content) // 4, 1)):
            zeros = content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]
            damaged += [content[:at], zeros]
        damaged += [whole[other] for other in chunks if other != file][:2]
        for bad in damaged:
            if bad == content:
                continue
            file.write_bytes(bad)
            try:
                again, said = run(name, RUNS[name][0], path), None
            except ValueError as error:
                again, said = None, str(error)
            if again is None:
                assert str(path) in said
                assert file.read_bytes() == bad
            else:
                # A bit of the compression that stands for nothing.
                assert all(map(torch.equal, told(want), told(again)))
            file.write_bytes(content)
        file.unlink()
        with pytest.raises(ValueError, match="missing"):
            run(name, RUNS[name][0], path)
        file.write_bytes(content)
    for file in whole.keys() - set(chunks):
        file.write_bytes(b"{")
    assert all(map(torch.equal, told(want), told(run(name, RUNS[name][0], path))))


def wrong(state):
    """Yield changes of the parts of a state that make it wrong."""
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    for key, part in parts:
        if part == {} or key == "times":
            continue  # rows take the place
        for bad in ("text", None, -1, [1, 2], {"a": 1}, torch.ones(2, 2, 2)):
            if type(bad) is type(part) and not isinstance(part, torch.Tensor | dict):
                continue
            if part is not None or bad is not None:
                yield key, bad
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.numel():
            yield key, torch.full_like(part, torch.nan)
            yield key, part.float() if part.dtype == F64 else part.double()


def changes(state):
    for key, bad in wrong(state):
        copy = dict(state) if isinstance(state, dict) else list(state)
        copy[key] = bad
        yield copy
    for key, part in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(part, dict | list) and part:
            for changed in changes(part):
                copy = dict(state) if isinstance(state, dict) else list(state)
                copy[key] = changed
                yield copy
    if isinstance(state, dict) and state:
        yield {**state, "more": 1}
        (key, part), *rest = state.items()
        if part != {}:
            yield dict(rest)


@pytest.mark.parametrize("name", RUNS)
def test_wrong_contents_are_refused_by_name(name, rng, tmp_path):
    options = RUNS[name][0]
    if name == "gradient_flow":
        options = {**options, "save_at": [0.0, 0.1, 0.2]}
    path = tmp_path / "state"
    run(name, options, path)
    file = path / "checkpoint" / "state"
    held = read_sealed(file, "")
    every = list(changes(held["state"]))
    for k in rng.choice(len(every), min(40, len(every)), replace=False):
        state = every[k]
        if isinstance(state.get("by_method"), dict) and state["by_method"].keys() != {"rk8"}:
            continue  # any names of methods may be counted
        if name == "balancing_flow" and "piece" in state and state["piece"] is not None:
            continue  # that of the integrator, tried with the other flows
        write_sealed(file, {**held, "state": state})
        with pytest.raises(ValueError, match=f"store must hold .*{path}"):
            run(name, options, path)


def test_formats_and_foreign_places(tmp_path):
    path = stored(tmp_path)
    file = path / "checkpoint" / "state"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"dln-geometry run 3 ", b"dln-geometry run 4 ", 1))
    with pytest.raises(ValueError, match="store must have the format 3, got 4"):
        stored(tmp_path)
    for content in (b"", b"nothing", b"dln-geometry run", b"dln-geometry run \n", whole[:30]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"store must be a folder written by a run, .*{path}"):
            stored(tmp_path)
        assert file.read_bytes() == content
    shutil.rmtree(path)
    torch.save({"identity": {}, "state": {}}, path)
    for content in (path.read_bytes(), b"dln-geometry run 2 abc\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="an earlier version wrote it"):
            stored(tmp_path)
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"got the file {path}"):
        stored(tmp_path)
    assert path.read_bytes() == b"mine"
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("mine")
    with pytest.raises(ValueError, match=f"got the folder {path}"):
        stored(tmp_path)
    assert [p.name for p in path.iterdir()] == ["mine"]
    (path / "mine").unlink()
    stored(tmp_path)


def test_a_store_without_its_state_is_no_new_one(tmp_path):
    path = stored(tmp_path)
    (path / "checkpoint" / "state").unlink()
    before = files_of(path)
    with pytest.raises(ValueError, match="its state is missing"):
        stored(tmp_path)
    assert files_of(path) == before
