"""The version of the library, which its files report."""

from __future__ import annotations

__version__ = "0.2.0"
