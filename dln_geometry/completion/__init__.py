"""Completion of tables with holes."""

from __future__ import annotations

from dln_geometry.completion.problem import Problem
from dln_geometry.completion.search import Search
