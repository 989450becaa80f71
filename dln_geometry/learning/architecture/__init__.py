"""What architectures have: symmetric groups of parameters, read from the graph of a module."""

from __future__ import annotations
