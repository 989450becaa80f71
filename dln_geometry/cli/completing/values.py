"""Values of options: numbers or auto, shares, bounds, tolerances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dln_geometry.cli.files import option
from dln_geometry.support import as_depth, as_positive

AUTO = "auto"
_Value = TypeVar("_Value")
_Number = TypeVar("_Number", int, float)


def as_decay(value: Any) -> float:
    """Return a weight decay without units."""
    return as_positive(value, "decay", zero=True)


def integrator_tolerance(rtol: float) -> float:
    """Return a relative tolerance, which the command line asks to be less than 1."""
    with option("rtol"):
        if as_positive(rtol, "rtol") >= 1:
            raise ValueError(f"rtol must be less than 1, got {rtol}")
    return rtol


def check_share(name: str, share: float | None) -> None:
    """Refuse a share of the entries outside [0, 1)."""
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"--{name} must lie in [0, 1), got {share}")


def bounds_option(text: str | None) -> Any:
    """Return bounds as the estimator takes them, from ``LOW,HIGH`` or ``observed``."""
    if text is None or text == "observed":
        return text
    try:
        low, high = (float(part) if part.strip() else None for part in text.split(","))
    except ValueError:
        raise ValueError(f"--bounds must be LOW,HIGH or observed, got {text}") from None
    if not (low is None or high is None or low < high):
        raise ValueError(f"--bounds must increase, got {text}")
    return low, high


def value_or(value: _Value | None, default: _Value) -> _Value:
    """Return the value of an option, or its default."""
    return default if value is None else value


def number_or_auto(
    text: str, name: str, kind: type[_Number], check: Callable[[Any], _Number]
) -> _Number | None:
    """Return the checked value of an option that is a number, or None for auto."""
    if text == AUTO:
        return None
    try:
        value = kind(text)
    except ValueError:
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"--{name} must be {what} or {AUTO}, got {text}") from None
    with option(name):
        return check(value)


def depths_option(text: str) -> Any:
    """Return a depth, several as a tuple, or auto, as the estimator takes them."""
    if "," in text:
        with option("depth"):
            return tuple(float(as_depth(_one_depth(part))) for part in text.split(","))
    return value_or(number_or_auto(text, "depth", float, as_depth), AUTO)


def _one_depth(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"depth must be numbers with commas between them, got {text!r}") from None
