"""The learning dynamics of deep linear networks in closed form.

Layers ``W = (W_1, ..., W_N)``, end-to-end matrix ``X = W_N ... W_1``, loss ``E(X)``. For any model
`learning` computes these by automatic differentiation; here they are formulas: how gradient descent
moves the moments (open `moments` first), which loss it follows, when weight decay takes rank away,
which orbits it takes past the edge of stability, what orthogonalised steps conserve.
"""

from __future__ import annotations

from dln_geometry.learning.closed_forms.equation_of_motion import (
    imbalance_rate,
    modified_end_to_end_loss,
    moment_motion,
    rotation_rate,
)
from dln_geometry.learning.closed_forms.moments import (
    MomentState,
    balance_step,
    momentum_balance_step,
    overdamped_moments,
    stationary_moments,
)
from dln_geometry.learning.closed_forms.orthogonalised import misalignment, root_moments
from dln_geometry.learning.closed_forms.period_two import PeriodTwoOrbit, period_two_orbit
from dln_geometry.learning.closed_forms.rank_collapse import (
    collapse_thresholds,
    conserved_functions,
    dead_directions,
)
from dln_geometry.learning.closed_forms.weight_decay import (
    branch_end,
    decayed_singular_values,
    global_switch,
)

__all__ = [
    "MomentState",
    "PeriodTwoOrbit",
    "balance_step",
    "branch_end",
    "collapse_thresholds",
    "conserved_functions",
    "dead_directions",
    "decayed_singular_values",
    "global_switch",
    "imbalance_rate",
    "misalignment",
    "modified_end_to_end_loss",
    "moment_motion",
    "momentum_balance_step",
    "overdamped_moments",
    "period_two_orbit",
    "root_moments",
    "rotation_rate",
    "stationary_moments",
]
