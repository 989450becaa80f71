"""Symmetries of a loss by their actions: one, or a family at a time."""

from __future__ import annotations
