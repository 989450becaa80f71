"""Products of single precision in fewer digits, where the user allows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dln_geometry.support import as_choice

PRECISIONS = {"float32": "highest", "tf32": "high", "bf16": "medium"}
"""Torch's names of the precisions of products of float32 matrices."""


@contextmanager
def products_in(precision: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let products of float32 matrices be rounded; None leaves torch's own setting."""
    if precision is None:
        yield
        return
    as_choice(precision, tuple(PRECISIONS), "precision")
    if dtype != torch.float32:
        raise ValueError(f"precision must be None for a start in {dtype}, got {precision!r}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
