"""Files to complete, and ways to run commands, for the tests of the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from dln_geometry.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "command_line.md").read_text()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_triples(path, x, known, first=0, header=None, delimiter=","):
    i, j = np.nonzero(known)
    lines = [
        delimiter.join((str(a + first), str(b + first), repr(float(x[a, b]))))
        for a, b in zip(i, j, strict=True)
    ]
    Path(path).write_text("\n".join([*([header] if header else []), *lines]) + "\n")


def documented_keys(name):
    """Return the keys of JSON on the page for a command, and those of its lists by name."""
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \| (.*) \|$", PAGE, re.MULTILINE)
    lists = dict(re.findall(r"`(\w+)` \((.*?)\)", row))
    outer = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", row))
    return set(outer), {key: set(re.findall(r"`(\w+)`", text)) for key, text in lists.items()}


def refusal(arguments, capsys):
    """Run a command that must be refused; return the one line it says."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    return said.err


def run_code(code, arguments, folder):
    """Run lines of Python in a process of their own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def start_process(arguments, folder, *flags):
    return subprocess.Popen(
        [sys.executable, "-W", "error", *flags, "-m", "dln_geometry", *arguments],
        cwd=folder,
        # Without it, what is printed into a pipe waits for the end.
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
