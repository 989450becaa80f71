"""Checkpoints: their weights, the moments of their layers, the charges of their symmetries.

`weights` reads files of tensors (nothing in them is run); `chains` finds layers whose shapes follow
each other; `moments` does ``dln moments``, `charges` ``dln charges`` with the groups of `groups`.
"""

from __future__ import annotations

from dln_geometry.cli.models.charges import print_charges
from dln_geometry.cli.models.moments import print_moments
from dln_geometry.cli.models.weights import WEIGHTS, read_weights

__all__ = ["WEIGHTS", "print_charges", "print_moments", "read_weights"]
