"""Checkpoints: the moments of their layers, the charges of their symmetries.

`chains` finds layers whose shapes follow each other; `moments` does ``dln moments``, `charges`
``dln charges`` with the groups of `groups`.
"""

from __future__ import annotations

from dln_geometry.cli.models.charges import print_charges
from dln_geometry.cli.models.moments import print_moments

__all__ = ["print_charges", "print_moments"]
