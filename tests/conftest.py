from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# Before anything imports matplotlib: tests draw into memory, with or without a display.
os.environ["MPLBACKEND"] = "Agg"

# The matrices under test are small, and several test processes may share the cores.
torch.set_num_threads(1)


# `--hypothesis-profile=night`, or the variable HYPOTHESIS_PROFILE, tries a hundred times as many.
_PROFILE: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    # Explanations cost as much as the search for the smallest case.
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
}
settings.register_profile("ci", max_examples=12, derandomize=True, **_PROFILE)
settings.register_profile("night", max_examples=1200, print_blob=True, **_PROFILE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _seed(request: pytest.FixtureRequest) -> int:
    """Return a seed that depends on the test's name (with its parameters) and nothing else."""
    return zlib.crc32(request.node.name.encode())


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(request))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(_seed(request))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
