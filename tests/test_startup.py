"""What the package and the command line import when they start."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import dln_geometry as dln

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "scipy", "matplotlib", "xarray", "pandas", "rich", "dln_geometry"}


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh process has after these lines, of the heavy packages."""
    report = "import sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name for name in done.stderr.split() if name.partition(".")[0] in HEAVY}


def test_the_package_imports_its_names_when_they_are_asked_for():
    start = loaded_by("import dln_geometry")
    assert start <= {f"dln_geometry{x}" for x in ("", "._startup", "._lazy", ".version")}
    flow = loaded_by("import dln_geometry as dln; dln.gradient_flow")
    assert "dln_geometry.dynamics.flows" in flow
    assert not {name for name in flow if name.startswith(("dln_geometry.learning", "scipy"))}
    assert not {name for name in flow if name.startswith(("matplotlib", "xarray", "rich"))}
    assert "scipy.optimize" not in loaded_by("from dln_geometry import *")


def test_every_public_name_is_where_the_list_says():
    assert set(dln.__all__) <= set(dir(dln))
    code = "import dln_geometry as dln\nfor name in {}: getattr(dln, name)"
    # In the opposite order: no name relies on the modules that others have imported.
    loaded_by(code.format(dln.__all__[::-1]))
    for name in dln.__all__:
        value = getattr(dln, name)
        assert value is getattr(dln, name) is vars(dln)[name]
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            assert pickle.loads(pickle.dumps(value)) is copy.copy(value) is value


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dln_geometry' has no attribute 'entropi'"):
        _ = dln.entropi  # pyright: ignore
    with pytest.raises(ImportError, match="cannot import name 'entropi'"):
        from dln_geometry import entropi  # noqa: F401 # pyright: ignore
    assert not hasattr(dln, "__wrapped__")
    assert dln.completion.MatrixCompleter.__name__ == "MatrixCompleter"


def test_help_of_the_command_line_needs_neither_torch_nor_numpy():
    for arguments in (["--help"], ["flow", "--help"], ["complete", "--depth"], ["--version"]):
        code = f"from dln_geometry.cli import main; main({arguments})"
        loaded = loaded_by(code.replace("main(", "main(", 1))
        assert not {name.partition(".")[0] for name in loaded} - {"dln_geometry", "rich"}
        assert not any(name.startswith("dln_geometry.support") for name in loaded)
