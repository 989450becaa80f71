"""The rooms behind `manifolds.geomstats_dln`."""

from __future__ import annotations
