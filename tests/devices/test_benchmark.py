"""A dry run of the benchmark of a device, at tiny sizes on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "device.py"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_row_of_the_table_runs(capsys):
    spec = importlib.util.spec_from_file_location("device_benchmark", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.main(["--device", "cpu", "--tiny", "--no-tests"])
    assert len(rows) == 10
    assert "failed" not in capsys.readouterr().out
