"""What the operators of a module propose: `rules` by the table, `recording` over one call."""

from __future__ import annotations

from dln_geometry.learning.architecture.probing.operators.recording import Proposals, recorded
from dln_geometry.learning.architecture.probing.operators.rules import register_operator

__all__ = ["Proposals", "recorded", "register_operator"]
