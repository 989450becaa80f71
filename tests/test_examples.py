from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))


def test_examples_are_numbered():
    assert [path.name[:2] for path in EXAMPLES] == [f"{k:02}" for k in range(1, len(EXAMPLES) + 1)]
    assert len(EXAMPLES) >= 5
    assert set(FOLDER.glob("*.py")) == set(EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_leaves_a_table_or_a_figure(path, tmp_path, monkeypatch, capsys):
    """The mathematics is asserted by the examples themselves."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert not list(tmp_path.iterdir()), "importing an example must do nothing"
    before = torch.get_rng_state()
    example.main(quick=True)
    assert torch.equal(torch.get_rng_state(), before), "the global generator must stay untouched"
    figures = list(tmp_path.iterdir())
    assert all(figure.suffix == ".png" and figure.stat().st_size > 10_000 for figure in figures)
    assert figures or capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_says_its_source_and_asserts(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 100
    assert "arXiv" in ast.get_docstring(tree)
    (main,) = (f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "main")
    assert any(isinstance(node, ast.Assert) for node in ast.walk(main))
    assert "pyplot" not in text, "figures are objects: nothing is shown, nothing stays open"
