from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def low_rank(rng):
    """A 20 x 15 matrix of rank 2 with a mean, and where it is known."""
    x = 2.5 + rng.normal(size=(20, 2)) @ rng.normal(size=(2, 15))
    known = rng.random(x.shape) < 0.7
    # The largest places must be known for triples to have the whole shape.
    known[-1, -1] = True
    return x, known
