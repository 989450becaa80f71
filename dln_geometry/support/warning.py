"""Warnings that name the line of the user, however deep in the library they arise."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_HOUSE = tuple(str(_ROOT / name) for name in ("dln_geometry", "manifolds"))


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of a line outside the library: the first one on the way up the stack."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HOUSE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
