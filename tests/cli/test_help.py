from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dln_geometry.cli import main
from dln_geometry.cli.program import WORKERS
from tests.cli.routes import ENVIRONMENT, ROOT

COMMANDS = {
    "balance", "charges", "complete", "dyson", "entropy", "experiments", "flow", "geodesic",
    "langevin", "moments", "photograph", "sweep",
}  # fmt: skip


def help_of(arguments, capsys):
    assert main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


def test_every_command_is_listed_and_has_an_example(capsys):
    listed = help_of([], capsys)
    assert set(WORKERS) == COMMANDS
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", listed, re.MULTILINE)
        said = help_of([name], capsys)
        assert "Example:" in said
        assert max(map(len, said.splitlines())) <= 100
        assert main([name, "-h"]) == 0
        assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", sorted(COMMANDS - {"experiments", "photograph"}))
def test_the_example_of_the_help_runs_as_pasted(name, capsys):
    """The photograph and an experiment run in tests of their own."""
    example = help_of([name], capsys).partition("Example:\n")[2].partition("\n\n")[0]
    lines = [line.strip() for line in example.splitlines()]
    assert any(line.startswith(f"dln {name} ") for line in lines)
    for line in lines:
        if line.startswith("dln "):
            assert main(shlex.split(line)[1:]) == 0, line
        else:
            subprocess.run(["bash", "-c", line], check=True, timeout=20)
    assert capsys.readouterr().err == ""
    assert all(path.stat().st_size for path in Path().iterdir())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_worker_takes_what_its_command_declares(name):
    from importlib import import_module

    (place, _, function), declared = WORKERS[name][0].partition(":"), WORKERS[name][1]
    worker = getattr(import_module(f"dln_geometry.cli.{place}"), function)
    taken = inspect.signature(worker).parameters
    given = set(inspect.signature(declared).parameters)
    rest = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    named = {p.name for p in taken.values() if p.kind is not p.VAR_KEYWORD}
    assert named <= given
    assert given - named <= (
        {"key", "header", "index", "delimiter", "decimal", "max_memory"} if rest else set()
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dln ge", "geodesic"),
        ("dln flow --dev", "--device"),
        ("dln flow --dtype fl", "float32"),
        ("dln experiments sa", "saxe_curves"),
    ],
)
def test_a_shell_completes_what_is_typed(words, expected):
    """The script that `--install-completion` writes asks the program in this way."""
    asked = {"_DLN_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split()) - 1)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['dln']\n"
    done = subprocess.run(
        ["python", "-c", program + "from dln_geometry.cli import main; main()"],
        env={**ENVIRONMENT, "PATH": os.environ["PATH"], **asked},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert expected in done.stdout.split(), done.stderr


def test_options_before_a_command_are_refused(capsys):
    assert main(["--seed", "3", "entropy", "x.csv"]) == 2
    assert "--seed must stand after the command" in capsys.readouterr().err
