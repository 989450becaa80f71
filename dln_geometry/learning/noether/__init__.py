"""Noether's learning dynamics: charges, their motion, and their exact laws in every step."""

from __future__ import annotations
