"""Charges of real training loops, predicted exactly from the gradients seen."""

from __future__ import annotations
