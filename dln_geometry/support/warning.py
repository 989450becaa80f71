"""Warnings that name the line of the user, however deep in the library they arise."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

_ROOT = Path(__file__).parents[2]
# torch wraps what it calls back, for instance the `step` of an optimiser.
_INSIDE = tuple(
    f"{folder}{os.sep}"
    for folder in (_ROOT / "dln_geometry", _ROOT / "manifolds", Path(torch.__file__).parent)
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of a line outside the library and torch: the first one on the way up the stack."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
