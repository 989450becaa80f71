"""The name under which version 0.1 showed `learning.closed_forms`; kept for its users."""

from __future__ import annotations

from dln_geometry.learning.closed_forms import *  # noqa: F403
