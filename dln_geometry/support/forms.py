"""The parts of a stored state: rows that a run adds to, and forms, checked before any is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Numbers:
    """The form of a tensor: its dtype and shape, None for any length; NaN is never allowed."""

    dtype: torch.dtype
    shape: Sequence[int | None]
    finite: bool = False

    @classmethod
    def like(cls, x: Tensor, *, rows: bool = False, finite: bool = False) -> Numbers:
        """Return the form of `x`, or of any number of rows like `x`."""
        return cls(x.dtype, (None, *x.shape) if rows else tuple(x.shape), finite)


@dataclass(frozen=True)
class Growing:
    """Rows that a run adds to: the first `count` of them do not change any more.

    Rows are numbers, arrays or tensors in a list, or a tensor (T, ...). An array of counts (B,)
    stands for rows (T, B, ...), of which each sample has its own number.
    """

    rows: Any
    count: int | np.ndarray

    def part(self, first: int, last: int) -> Tensor:
        """Return the rows from `first` on, before `last`, as one tensor."""
        rows = self.rows[first:last]
        if isinstance(rows, Tensor):
            return rows.detach()
        if rows and isinstance(rows[0], Tensor):
            return torch.stack(list(rows))
        return torch.from_numpy(np.array(rows, dtype=np.float64))


def merged(state: dict[str, Any], rows: Mapping[tuple[str, ...], Tensor]) -> dict[str, Any]:
    """Put rows into their places in a state, whose other parts are not copied."""
    whole = dict(state)
    for first in dict.fromkeys(path[0] for path in rows):
        inner = {path[1:]: x for path, x in rows.items() if path[0] == first}
        whole[first] = inner[()] if () in inner else merged(whole.get(first) or {}, inner)
    return whole


def check_form(value: Any, form: Any, name: str) -> None:
    """Raise ValueError unless a value has a form.

    A form is None, a type (a float is not NaN, an int is a count, at least 0), `Numbers`, a dict
    of forms by key (the key `str` stands for any names), a list of a form for each element, or of
    one for any number of them (``[form, ...]``), or a tuple of alternatives.
    """
    if isinstance(form, tuple):
        if not any(_fits(value, option, name) for option in form):
            raise ValueError(f"{name} must have one of {len(form)} forms, got {_shown(value)}")
    elif isinstance(form, Numbers):
        _check_tensor(value, form, name)
    elif isinstance(form, dict):
        names = value.keys() if isinstance(value, dict) else None
        if names is None or (names != form.keys() and str not in form):
            raise ValueError(f"{name} must hold {[*map(str, form)]}, got {_shown(value)}")
        for key, part in value.items():
            check_form(key, str, f"a name in {name}")
            check_form(part, form.get(key, form.get(str)), f"{name}.{key}")
    elif isinstance(form, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, got {_shown(value)}")
        forms = form[:1] * len(value) if form[1:] == [...] else form
        if len(value) != len(forms):
            raise ValueError(f"{name} must hold {len(forms)} parts, got {len(value)}")
        for k, part in enumerate(value):
            check_form(part, forms[k], f"{name}[{k}]")
    elif form not in (int, float):
        if not (value is None if form is None else isinstance(value, form)):
            raise ValueError(f"{name} must be {_shown(form)}, got {_shown(value)}")
    elif isinstance(value, bool) or not isinstance(value, form) or math.isnan(value):
        raise ValueError(f"{name} must be {_shown(form)}, got {_shown(value)}")
    elif form is int and value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def _check_tensor(x: Any, form: Numbers, name: str) -> None:
    fits = isinstance(x, Tensor) and x.layout == torch.strided and x.ndim == len(form.shape)
    pairs = zip(x.shape, form.shape, strict=True) if fits else ()
    if not fits or x.dtype != form.dtype or any(want not in (None, got) for got, want in pairs):
        shape = tuple("any" if d is None else d for d in form.shape)
        raise ValueError(f"{name} must be a tensor {form.dtype} {shape}, got {_shown(x)}")
    numbers = x.is_floating_point() or x.is_complex()
    if numbers and bool(torch.isnan(x).any()):
        raise ValueError(f"{name} must not hold NaN, got {int(torch.isnan(x).sum())}")
    if form.finite and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, got infinity")


def _fits(value: Any, form: Any, name: str) -> bool:
    try:
        check_form(value, form, name)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    """Return a value or a form in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"names {sorted(map(str, value))}"
    return value.__name__ if isinstance(value, type) else repr(value)[:60]
