"""What a loss is to the measure: a function of the singular values, a sum over them, a power."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import prepared
from dln_geometry.support import Depth, shown
from dln_geometry.thermodynamics.measure import gaussians

# Relative difference up to which two values of a loss count as equal.
_SAME = 1e-10


@dataclass(frozen=True)
class Energy:
    """A loss as a function of singular values; `loss` itself where it is none.

    `value` takes (..., r) to (...), None if the loss is no function of them; `single` is e in
    ``E = sum e(s_i)``, None if it is no sum; `degree` and `coefficient` make ``e = w s^q``; without
    a coefficient the degree is that of a homogeneous loss.
    """

    value: Callable[[Tensor], Tensor] | None
    single: Callable[[Tensor], Tensor] | None = None
    degree: float | None = None
    coefficient: float | None = None
    loss: Any = None


def energy_of(loss: Any, shape: tuple[int, int], r: int, depth: Depth, index: int = 1) -> Energy:
    """Return the energy of a loss, of a function of singular values, or of the ridge (None).

    A loss sees complex matrices at index 2, else real ones.
    """
    if loss is None:
        n = float(depth)

        def single(s: Tensor) -> Tensor:
            return 0.5 * n * s ** (2 / n)

        return Energy(lambda s: single(s).sum(-1), single, 2 / n, 0.5 * n)
    if hasattr(loss, "value") or isinstance(loss, type) or not callable(loss):
        kind = torch.complex128 if index == 2 else torch.float64
        return _of_loss(prepared(loss, shape, dtype=kind, device="cpu"), shape, r, index)
    return _of_values(_with_checked_values(loss), r, None)


def _with_checked_values(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """Return the function with its values checked: one for each row of s."""

    def value(s: Tensor) -> Tensor:
        found = f(s)
        if not isinstance(found, Tensor) or found.shape != s.shape[:-1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else shown(found)
            raise ValueError(
                "loss must have one value for each row of singular values, of shape "
                f"{tuple(s.shape[:-1])}, got {got}"
            )
        return found

    return value


def _of_loss(loss: Any, shape: tuple[int, int], r: int, index: int) -> Energy:
    """Look at a loss of matrices: is it invariant under rotations, and homogeneous."""
    (m, n), f = shape, 2 if index == 2 else 1
    source = torch.Generator("cpu").manual_seed(7)
    x = gaussians((3, m, r), f, source) @ gaussians((3, r, n), f, source)
    left = torch.linalg.qr(gaussians((3, m, m), f, source)).Q
    right = torch.linalg.qr(gaussians((3, n, n), f, source)).Q
    if not _are_same(loss.value(left @ x @ right), loss.value(x)):
        return Energy(None, None, _degree(loss.value, x), None, loss)

    def value(s: Tensor) -> Tensor:
        flat = s.reshape(-1, s.shape[-1])
        # In pieces: a matrix for each row.
        step = max(1, 2_000_000 // (m * n))
        parts = []
        for k in range(0, max(len(flat), 1), step):
            piece = flat[k : k + step]
            y = x.new_zeros(len(piece), m, n)
            y.diagonal(dim1=-2, dim2=-1)[:, : s.shape[-1]] = piece.to(y.dtype)
            parts.append(loss.value(y))
        return torch.cat(parts).reshape(s.shape[:-1])

    return _of_values(value, r, loss)


def _of_values(value: Callable[[Tensor], Tensor], r: int, loss: Any) -> Energy:
    """Look at a function of singular values: is it a sum, and of powers."""
    source = torch.Generator("cpu").manual_seed(8)
    s = torch.rand(5, r, generator=source, dtype=torch.float64, device="cpu") + 0.3
    zero = float(value(s.new_zeros(1, r))[0])
    degree = _degree(lambda x: value(x.squeeze(-1)), s.unsqueeze(-1))
    # One value moves, the others stay at 0, or at 1 where the energy is infinite at 0.
    rest = 0.0 if math.isfinite(zero) else 1.0
    share = (r - 1) / r * (zero if rest == 0 else float(value(s.new_ones(1, r))[0]))

    def single(t: Tensor) -> Tensor:
        rows = torch.cat((t.unsqueeze(-1), t.new_full((*t.shape, r - 1), rest)), -1)
        return value(rows) - share

    if not _are_same(single(s).sum(-1), value(s)):
        return Energy(value, None, degree, None, loss)
    coefficient = None if degree is None else float(single(torch.ones_like(s[:1, 0]))[0])
    return Energy(value, single, degree, coefficient, loss)


def _degree(value: Callable[[Tensor], Tensor], x: Tensor) -> float | None:
    """Return q where ``E(c x) = c^q E(x)``, None where it is no such power."""
    one, two, five = (value(c * x) for c in (1.0, 2.0, 5.0))
    if not bool((one > 0).all() and torch.isfinite(five).all() and (two > 0).all()):
        return None
    q = float(torch.log2(two / one).mean())
    # Most powers are simple fractions: undo the rounding of the logarithm.
    near = round(q * 5040) / 5040
    q = near if abs(q - near) < 1e-11 else q
    return q if q > 0 and _are_same(two, one * 2.0**q) and _are_same(five, one * 5.0**q) else None


def _are_same(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= _SAME * torch.maximum(a.abs(), b.abs())).all())
