from __future__ import annotations

import pytest

from tests.learning.symmetry.routes import random


@pytest.fixture
def params(generator):
    shapes = {"w1": (4, 3), "b1": (4,), "w2": (5, 4), "k": (3, 4, 2), "z": (8, 3), "t": (6,)}
    return {name: random(shape, generator) for name, shape in shapes.items()}
