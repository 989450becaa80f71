from __future__ import annotations

import pytest
import torch

import dln_geometry as dln


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the examples of docstrings as a reader pastes them, not inside of their module."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.dtest.globs = {"torch": torch, "dln": dln}
