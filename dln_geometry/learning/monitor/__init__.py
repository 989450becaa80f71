"""Charges of real training loops, predicted exactly from the gradients seen."""

from __future__ import annotations

from dln_geometry.learning.monitor.charge_monitor import ChargeMonitor
from dln_geometry.learning.monitor.record import ChargeRecord, ChargeReport

__all__ = [
    "ChargeMonitor",
    "ChargeRecord",
    "ChargeReport",
]
