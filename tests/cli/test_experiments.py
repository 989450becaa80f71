from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dln_geometry.cli import main
from tests.cli.routes import refusal

GOOD = '''"""
A matrix is what it is
======================

Prose.
"""
import sys
from pathlib import Path

import helper

if __name__ == "__main__":
    print("ran with", sys.argv[1:], helper.VALUE)
'''


@pytest.fixture
def gallery(monkeypatch):
    """A gallery of two experiments, one of which does not hold."""
    folder = Path("gallery/flows")
    folder.mkdir(parents=True)
    (folder / "good_one.py").write_text(GOOD)
    (folder / "_hidden.py").write_text("")
    (folder / "bad_one.py").write_text('"""It fails."""\nassert 1 == 2, "one is not two"\n')
    (folder / "needs.py").write_text('"""It needs."""\nimport no_such_module\n')
    (folder / "ends.py").write_text('"""It ends."""\nraise SystemExit(3)\n')
    monkeypatch.setattr(
        "dln_geometry.cli.experiments.gallery_folder", lambda: Path("gallery").resolve()
    )
    Path("gallery/flows/helper.py").write_text('"""A helper."""\nVALUE = 7\n')


def test_the_gallery_is_listed(capsys):
    assert main(["experiments", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experiments"]
    assert len(listed) >= 20
    assert all(e["theme"] and e["title"] and not re.match("[=-]", e["title"]) for e in listed)
    assert main(["experiments"]) == 0
    said = capsys.readouterr().out
    assert all(e["name"] in said and e["title"] in said for e in listed)


def test_an_experiment_runs_by_its_name_or_a_part(gallery, capsys):
    for name in ("good_one", "flows/good_one", "good_one.py", "good"):
        assert main(["experiments", name, "--quick", "--out", "here"]) == 0
        said = capsys.readouterr()
        assert said.out == "ran with ['--quick', '--out', 'here'] 7\n"
        assert "flows/good_one: A matrix is what it is" in said.err
    assert main(["experiments", "good", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "A matrix is what it is"


def test_what_fails_is_one_line(gallery, capsys):
    for name, code, said in (
        ("bad_one", 1, "what it claims does not hold: one is not two"),
        ("ends", 1, "ended with 3"),
        ("needs", 2, "must have no_such_module"),
        ("one", 2, "one experiment, got 'one': bad_one, good_one"),
        ("nothing", 2, "no such experiment"),
        ("nedds", 2, "no such experiment (did you mean needs"),
    ):
        assert main(["experiments", name]) == code
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert "name of an experiment" in refusal(["experiments", "--quick"], capsys)


@pytest.mark.slow
def test_an_experiment_of_the_gallery_leaves_its_figure(capsys):
    assert main(["experiments", "balanced_initialisations", "--quick", "--out", "figures"]) == 0
    assert any(Path("figures").iterdir()) or capsys.readouterr().out
