"""The doors of the solvers: what an integration is asked for, checked once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.chebyshev import RKC, Chebyshev
from dln_geometry.ode.runge_kutta import DORMAND_PRINCE_5, DORMAND_PRINCE_8, METHODS, RungeKutta

Method = str | RungeKutta | Chebyshev

RESERVED = ("t_end", "steps", "evaluations", "seconds", "failed", "unfinished")
"""Status names that no stopping rule may take."""


MOST_EVALUATIONS = 200_000
"""Bound on a run without an end time: its rules may never be met."""


@dataclass(frozen=True)
class Options:
    """Hold the validated arguments of an integration that its loop needs."""

    t_end: float
    rtol: float
    atol: np.ndarray | None
    explicit: RungeKutta | None
    stabilised: Chebyshev | None
    rules: dict[str, tuple[int, float]]
    max_steps: float
    max_evaluations: float
    max_seconds: float
    correct: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None


def check_state(y0: Tensor) -> None:
    """Reject a start that is not a batch of floating vectors."""
    if not (isinstance(y0, Tensor) and y0.is_floating_point()):
        raise TypeError(
            f"y0 must be a floating tensor, got {getattr(y0, 'dtype', type(y0).__name__)}"
        )
    if y0.ndim != 2 or y0.numel() == 0:
        raise ValueError(f"y0 must have shape (B, n) with B, n >= 1, got {tuple(y0.shape)}")


def block_sizes(blocks: Sequence[int] | None, n: int) -> list[int]:
    """Return the sizes of the blocks that make up `n` numbers."""
    if blocks is None:
        return [n]
    sizes = [int(size) for size in blocks]
    if min(sizes, default=0) < 1 or sum(sizes) != n:
        raise ValueError(f"blocks must be positive and sum to {n}, got {sizes}")
    return sizes


def stopping_rules(stop: Mapping[str, tuple[int, float]] | None) -> dict[str, tuple[int, float]]:
    """Return the stopping rules, by name."""
    rules = {}
    for name, rule in (stop or {}).items():
        column, threshold = rule
        if name in RESERVED:
            raise ValueError(f"stop must not use the reserved name {name!r}")
        if not (isinstance(column, int) and column >= 0) or math.isnan(threshold):
            raise ValueError(f"stop[{name!r}] must be (column >= 0, threshold), got {rule!r}")
        rules[name] = (column, float(threshold))
    return rules


def end_of_time(t_end: float, limited: bool) -> float:
    """Return the end of time; it may be infinite if something else ends the run."""
    t_end = float(t_end)
    if not t_end >= 0:
        raise ValueError(f"t_end must be at least 0, got {t_end}")
    if math.isinf(t_end) and not limited:
        raise ValueError("t_end must be finite without a stopping rule or a limit, got inf")
    return t_end


def relative(rtol: float, dtype: torch.dtype) -> float:
    """Return the relative tolerance, at least 4 eps."""
    if not (math.isfinite(rtol) and rtol > 0):
        raise ValueError(f"rtol must be positive and finite, got {rtol!r}")
    return max(float(rtol), 4 * torch.finfo(dtype).eps)


def limit(name: str, value: float | None) -> float:
    """Return a limit, infinite if there is none."""
    if value is None:
        return math.inf
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return value


def absolute(atol: float | Tensor | None, batch: int) -> np.ndarray | None:
    """Return the absolute tolerances (B,), None for the default."""
    if atol is None:
        return None
    values = torch.as_tensor(atol, dtype=torch.float64).detach().cpu().numpy()
    if values.shape not in ((), (batch,)):
        raise ValueError(f"atol must be a number or have shape ({batch},), got {values.shape}")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"atol must be finite and at least 0, got {values.tolist()}")
    return np.broadcast_to(values, (batch,)).copy()


def methods_of(
    method: Method, rtol: float, dtype: torch.dtype
) -> tuple[RungeKutta | None, Chebyshev | None]:
    """Return the explicit and the stabilised method that are meant; either may be None."""
    if isinstance(method, RungeKutta):
        return method, None
    if isinstance(method, Chebyshev):
        return None, method
    if method == "auto":
        # In single precision round-off, not the order, would set the steps of the eighth order.
        fine = rtol <= 1e-6 and torch.finfo(dtype).eps < 1e-10
        return (DORMAND_PRINCE_8 if fine else DORMAND_PRINCE_5), RKC
    if method == "rkc":
        return None, RKC
    if method in METHODS:
        return METHODS[method], None
    names = ["auto", *METHODS, "rkc"]
    raise ValueError(f"method must be one of {names} or a method value, got {method!r}")


def save_times(save_at: Any, t_end: float, batch: int) -> np.ndarray | None:
    """Return the times of the rows, None for every step."""
    if save_at is None:
        return None if batch == 1 else np.array([0.0, t_end])
    if not isinstance(save_at, torch.Tensor):
        try:
            save_at = np.asarray(save_at, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"save_at must be a vector of times, got {save_at!r}") from None
    stops = torch.as_tensor(save_at).detach().cpu().to(torch.float64).numpy().copy()
    if stops.ndim != 1 or len(stops) == 0:
        raise ValueError(f"save_at must be a non-empty vector, got shape {stops.shape}")
    if not np.isfinite(stops).all() or (np.diff(stops) <= 0).any():
        raise ValueError(f"save_at must be finite and strictly increasing, got {stops.tolist()}")
    # Times of a lower precision may round past the end.
    if t_end < stops[-1] <= t_end * (1 + 1e-6):
        stops[-1] = t_end
    if stops[0] < 0 or stops[-1] > t_end:
        raise ValueError(f"save_at must lie in [0, {t_end}], got {stops[0]} to {stops[-1]}")
    return stops


def check_resume(resume: dict[str, Any], y0: Tensor) -> None:
    """Reject what is no stored state of such a batch."""
    if not (isinstance(resume, dict) and resume.get("version") == 1):
        raise ValueError("resume must be a state that checkpoint was given, of version 1")
    if resume["y"].shape != y0.shape or resume["y"].dtype != y0.dtype:
        raise ValueError(
            f"resume must match y0 of shape {tuple(y0.shape)}, {y0.dtype}; "
            f"got {tuple(resume['y'].shape)}, {resume['y'].dtype}"
        )


def until_rules(until: Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """Return the stopping rules that a user gave, among these names."""
    rules = dict(until or {})
    for name, value in rules.items():
        if name not in names:
            raise ValueError(f"until must hold rules among {', '.join(names)}, got {name!r}")
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not value >= 0:
            raise ValueError(f"until[{name!r}] must be a number >= 0, got {value!r}")
    return rules


def end_or_rules(t_end: float | None, rules: dict[str, float]) -> float:
    """Return the end of time, infinite where rules end the run; they get a bound then."""
    if t_end is None:
        if not rules:
            raise ValueError("t_end or until must be given, got neither")
        t_end = math.inf
    if isinstance(t_end, bool) or not isinstance(t_end, numbers.Real):
        raise TypeError(f"t_end must be a number, got {t_end!r}")
    if not t_end >= 0:
        raise ValueError(f"t_end must be >= 0, got {t_end}")
    if math.isinf(t_end) and not rules:
        raise ValueError("until must be given if t_end is infinite, got no rule")
    if math.isinf(t_end):
        rules.setdefault("evaluations", MOST_EVALUATIONS)
    return float(t_end)
