from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.slow
def test_the_code_of_the_readme_runs_as_it_stands(monkeypatch, tmp_path, capsys):
    """In one session, from the first block to the last."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) > 5
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["result"].cost < 1e-12
    moments = names["dln"].moments(names["weights"])
    for predicted, seen in zip(names["after"], moments, strict=True):
        assert (predicted - seen).abs().max() < 1e-6
