"""The equation of motion of gradient descent: counter terms, iterates, errors."""

from __future__ import annotations
