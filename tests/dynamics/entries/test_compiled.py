"""How the pass is compiled, and what happens where it cannot be."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest
import torch

from dln_geometry import losses
from dln_geometry.dynamics.entries import find_compiler, library

COMPILED = "dln_geometry.dynamics.entries.compiled"
needs_compiler = pytest.mark.skipif(find_compiler(None) is None, reason="needs a C compiler")

CODE = """
import torch
from dln_geometry.dynamics.entries import library
assert library(torch.float32, 5) is not None
"""


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Forget all libraries, and keep new ones in a folder of the test."""
    compiled = sys.modules[COMPILED]
    caches = [compiled._library, compiled._folder, compiled._key]

    def forget():
        for cache in caches:
            cache.cache_clear()

    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    yield forget
    forget()


def right_value():
    loss = losses.Completion(torch.arange(999), torch.arange(999), torch.ones(999), (999, 999))
    left = torch.ones(999, 5)
    value, gr, gl = losses.contract(loss, left, left)
    return float(value) == 999 * 8 and bool((gr == 4).all() and (gl == 4).all())


@pytest.mark.parametrize("compiler", ["none", "false", "no-such-compiler", "silent", "nonsense"])
def test_without_a_compiler_torch_computes(compiler, fresh, tmp_path, monkeypatch):
    # A compiler that answers but writes nothing, and one that writes what cannot be loaded.
    scripts = {"silent": "exit 0", "nonsense": 'for last; do :; done; echo nonsense > "$last"'}
    if compiler in scripts:
        file = tmp_path / compiler
        file.write_text(f"#!/bin/sh\n{scripts[compiler]}\n")
        file.chmod(stat.S_IRWXU)
        compiler = str(file)
    monkeypatch.setenv("DLN_GEOMETRY_COMPILER", compiler)
    assert library(torch.float32, 5) is None
    assert right_value()


@needs_compiler
def test_libraries_are_kept_for_the_next_process(fresh, tmp_path):
    assert right_value()
    (kept,) = (tmp_path / "dln_geometry").iterdir()
    before = kept.stat().st_mtime_ns
    subprocess.run([sys.executable, "-W", "error", "-c", CODE], check=True)
    assert kept.stat().st_mtime_ns == before
    assert list((tmp_path / "dln_geometry").iterdir()) == [kept]
    # Another compiler, another library.
    fresh()
    assert library(torch.float64, 5) is not None
    assert len(list((tmp_path / "dln_geometry").iterdir())) == 2


@needs_compiler
def test_a_home_that_cannot_be_written_is_no_obstacle(fresh, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library(torch.float32, 5) is not None
    assert right_value()


def test_a_package_brings_a_compiler_where_there_is_none(monkeypatch):
    monkeypatch.setattr(f"{COMPILED}.shutil.which", lambda _: None)
    monkeypatch.setattr(f"{COMPILED}.importlib.util.find_spec", lambda _: object())
    assert find_compiler(None) == [sys.executable, "-m", "ziglang", "cc"]
    monkeypatch.setattr(f"{COMPILED}.importlib.util.find_spec", lambda _: None)
    assert find_compiler(None) is None


def test_other_types_have_no_pass():
    assert library(torch.float16, 3) is None
