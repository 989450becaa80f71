from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = [
    "tests/manifolds/geomstats/suite",
    "tests/manifolds/geomstats/networks",
    "tests/manifolds/geomstats/matrices/test_fixed_spaces.py",
    "tests/manifolds/geomstats/matrices/test_metrics.py",
    "tests/manifolds/geomstats/matrices/test_spaces.py",
]


@pytest.mark.slow
def test_the_same_tests_pass_on_the_other_backend():
    """geomstats chooses its backend when it is imported: a process has one."""
    here = os.environ.get("GEOMSTATS_BACKEND", "numpy")
    other = "pytorch" if here == "numpy" else "numpy"
    environment = {**os.environ, "GEOMSTATS_BACKEND": other, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OURS]
    outcome = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    summary = outcome.stdout.strip().splitlines()[-1] if outcome.stdout.strip() else ""
    assert outcome.returncode == 0, outcome.stdout[-4000:] + outcome.stderr[-2000:]
    # "1234 passed, 99 deselected in 60.00s": nothing skipped, nothing expected to fail.
    assert re.fullmatch(r"=*\s*\d+ passed(, \d+ deselected)?( in .*)?", summary), summary
