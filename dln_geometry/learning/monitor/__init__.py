"""Charges of real training loops, predicted exactly from the buffers and gradients of each step.

Open `charge_monitor` for the hooks, then `following`; `laws` moves charges by the law of
`learning.noether.momentum_law`, `step_follower` by the steps of any other optimiser. A new kind of
charge is a subclass of `Law` in `group_laws` that `following.laws_of` makes.
"""

from __future__ import annotations

from dln_geometry.learning.monitor.charge_monitor import ChargeMonitor
from dln_geometry.learning.monitor.record import ChargeRecord, ChargeReport
from dln_geometry.learning.monitor.variances import Variances

__all__ = ["ChargeMonitor", "ChargeRecord", "ChargeReport", "Variances"]
