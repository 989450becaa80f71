"""Mirror symmetries: stability, collapse, constraints by weight decay, removal."""

from __future__ import annotations
