from __future__ import annotations

import pytest
import torch

import dln_geometry as dln

# A contract of the linter of imports, which comes with the extra "dev" and not with "test".
collect_ignore = ["tests/faces.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the examples of docstrings as a reader pastes them, not inside of their module."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.dtest.globs = {"torch": torch, "dln": dln}
