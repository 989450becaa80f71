from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt

from dln_geometry import gallery

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.rglob("*.py"))
# The public rooms; everything else comes from `dln_geometry` itself.
ROOMS = (
    "completion",
    "gallery",
    "landscape",
    "laws",
    "learning",
    "losses",
    "ode",
    "plot",
    "tables",
    "testing",
)
ROOMS += ("thermodynamics",)
PUBLIC = {
    "dln_geometry",
    *(f"dln_geometry.{room}" for room in ROOMS),
    "dln_geometry.learning.closed_forms",
    "manifolds.pymanopt_dln",
    "manifolds.geomstats_dln",
}


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def run(path, *options, monkeypatch):
    """Run a script as Python and sphinx-gallery do, and leave matplotlib as it was."""
    monkeypatch.setattr(sys, "argv", [str(path), *options])
    try:
        with mpl.rc_context():
            return runpy.run_path(str(path), run_name="__main__")
    finally:
        plt.close("all")


def test_scripts_are_grouped_by_theme():
    assert len(SCRIPTS) >= 20
    assert len({path.stem for path in SCRIPTS}) == len(SCRIPTS)
    for folder in {path.parent for path in SCRIPTS}:
        assert folder.parent == FOLDER
        title, line, *_ = (folder / "GALLERY_HEADER.rst").read_text().splitlines()
        assert line == "-" * len(title)
        assert len(list(folder.glob("*.py"))) <= 12


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_runs_and_says_where_its_figure_went(path, tmp_path, monkeypatch, capsys):
    """The mathematics is asserted by the scripts themselves."""
    monkeypatch.chdir(tmp_path)
    before, out = torch.get_rng_state(), tmp_path / "figures"
    run(path, "--quick", "--out", str(out), monkeypatch=monkeypatch)
    assert torch.equal(torch.get_rng_state(), before), "the global generator must stay untouched"
    assert list(tmp_path.iterdir()) == [out]
    figures, said = sorted(out.iterdir()), capsys.readouterr().out
    assert {figure.suffix for figure in figures} == {".pdf", ".png"}
    for figure in figures:
        assert figure.stem.startswith(path.stem)
        assert figure.stat().st_size > 5000
        assert figure.name in said


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_help_does_not_run_the_script(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(path, "--help", monkeypatch=monkeypatch)
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "--quick" in said
    assert "figure:" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_is_short_says_its_source_and_asserts(path):
    text = path.read_text()
    tree = ast.parse(text)
    title, line, empty, *_ = ast.get_docstring(tree).splitlines()
    assert line == "=" * len(title)
    assert not empty
    assert "arXiv" in ast.get_docstring(tree)
    assert len(text.splitlines()) <= 150
    assert "\n# %%\n" in text, "sphinx-gallery shows cells"
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert checks or any(getattr(call, "id", "").startswith("assert_") for call in calls)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_script_uses_public_names_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module]
            assert not any(alias.name.startswith("_") for alias in node.names)
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            assert node.attr.startswith("__"), f"{node.attr} is private"
        for module in modules:
            assert not module.startswith(("dln_geometry", "manifolds")) or module in PUBLIC


def test_options_of_a_script_and_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["somewhere/waves.py", "--out", str(tmp_path / "new")])
    found = gallery.begin("Waves\n=====")
    assert (found.name, found.quick) == ("waves", False)
    figure, _ = plt.subplots()
    paths = found.save(figure, "late")
    plt.close(figure)
    assert [path.name for path in paths] == ["waves_late.pdf", "waves_late.png"]
    assert all(path.is_file() for path in paths)
    assert str(tmp_path / "new" / "waves_late.pdf") in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["waves.py", "--quik"])
    with pytest.raises(SystemExit):
        gallery.begin("Waves")
    # In a notebook the arguments are those of the kernel.
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    assert not gallery.begin("Waves").quick
