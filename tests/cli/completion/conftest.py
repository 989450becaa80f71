from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def ratings(rng):
    """A table of rank 2 with side means and a little noise, by names; and where it is known."""
    x = 3.0 + rng.normal(size=(40, 1)) + rng.normal(size=30)
    x = x + rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30)) + 0.1 * rng.normal(size=(40, 30))
    known = rng.random(x.shape) < 0.6
    lines = [f"u{i},{100 + j},{x[i, j]:.17g}" for i, j in np.argwhere(known)]
    Path("ratings.csv").write_text("user,item,rating\n" + "\n".join(lines) + "\n")
    return x, known
