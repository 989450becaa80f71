"""Learning rules: `rule` holds `Rule`, `legendre` the inverse gradients for mirror descent."""

from __future__ import annotations

from dln_geometry.learning.rules.legendre import hessian_inverse
from dln_geometry.learning.rules.rule import Rule, as_rule

__all__ = ["Rule", "as_rule", "hessian_inverse"]
