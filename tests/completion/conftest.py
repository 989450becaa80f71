from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def holes(rng):
    x = rng.normal(size=(15, 1)) @ rng.normal(size=(1, 8)) + 0.1 * rng.normal(size=(15, 8))
    return np.where(rng.random(x.shape) < 0.8, x, np.nan)


@pytest.fixture
def pairs(holes):
    rows, cols = np.nonzero(~np.isnan(holes))
    return rows, cols, holes[rows, cols]
