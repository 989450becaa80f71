"""The benchmarks run, and write what they measured."""

from __future__ import annotations

import importlib
import json

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import timing


@pytest.mark.parametrize("name", benchmarks.SUITES)
def test_every_suite_exists(name):
    module, function = benchmarks.SUITES[name]
    assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))


def test_a_run_writes_its_tables_and_a_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "TABLES", [])

    def suite(quick):
        assert quick
        timing.table("A | B", ["who", "ms"], [["ours", "1"], ["peer", "3"]], {"peer": 3.0})

    monkeypatch.setattr("benchmarks.manifolds.entropies", suite)
    benchmarks.main(["--quick", "--only", "entropy", "--out", str(tmp_path)])
    (found,) = json.loads((tmp_path / "results.json").read_text())["tables"]
    assert found["ratios"] == {"peer": 3.0}
    assert "| peer | 3 |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.png").stat().st_size > 1000
    assert "entropy" in capsys.readouterr().out


def test_peers_that_are_missing_are_told(capsys):
    assert timing.peer("no_such_peer") is None
    assert "no_such_peer is not installed" in capsys.readouterr().out


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["--only", "nothing"])
    assert "invalid choice" in capsys.readouterr().err
