"""Numerical checks whose tolerances have a reason: round-off, order of accuracy, Monte Carlo.

Each check raises ``AssertionError`` with the figures when it fails. They need no test framework.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor

__all__ = ["assert_close", "assert_mean", "assert_order"]


def assert_close(
    actual: Any,
    expected: Any,
    *,
    ops: float = 300,
    scale: SupportsFloat | None = None,
    condition: SupportsFloat = 1.0,
) -> None:
    """Assert that two arrays agree up to round-off.

    Passes if shapes are equal and
    ``max |actual - expected| <= ops * eps * scale * condition``, the difference taken in double
    precision. ``eps`` belongs to the coarser floating dtype of the two; numbers, integers and
    plain sequences count as float64. Infinite entries must be equal; NaN and empty arrays fail.

    Parameters
    ----------
    actual, expected : Tensor, ndarray, number or (nested) sequence of these, the same shape
        Sparse tensors are made dense.
    ops : float
        Number of roundings allowed; 100, 300 and 1000 are customary.
    scale : float, optional
        Magnitude that roundings are relative to. The default is the largest finite
        ``|expected|``; pass one if the expected value is zero or the result of cancellation.
    condition : float
        Condition number of a matrix that was inverted on the way.

    Examples
    --------
    >>> dln.testing.assert_close(0.1 + 0.2, 0.3, ops=2)
    >>> dln.testing.assert_close(torch.tensor([1.0, 2.0]), [1.0, 2.5])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: not close at index (1,): actual 2.0, expected 2.5; error 5.000e-01, ...
    """
    a, a_eps = _wide(actual, "actual")
    b, b_eps = _wide(expected, "expected")
    if a.shape != b.shape:
        raise AssertionError(f"shape must be {tuple(b.shape)}, got {tuple(a.shape)}")
    if a.numel() == 0:
        raise AssertionError(f"nothing to compare: both have the empty shape {tuple(a.shape)}")
    if scale is None:
        # Subnormal scales would make the bound zero by underflow, not by intent.
        tiny = torch.finfo(torch.float64).tiny
        finite = b.abs()[torch.isfinite(b)]
        scale = max(float(finite.max()), tiny) if finite.numel() else 1.0
    given = {"ops": ops, "scale": scale, "condition": condition}
    factors = {name: _above_zero(value, name) for name, value in given.items()}
    eps = max(a_eps, b_eps)
    bound = eps * math.prod(factors.values())
    # inf - inf is NaN, though equal infinities agree.
    error = torch.where(a == b, 0.0, (a - b).abs())
    error = torch.where(torch.isnan(error), math.inf, error)
    index = _worst(error)
    worst = float(error[index])
    if not worst <= bound or math.isinf(worst):
        raise AssertionError(
            f"not close at index {index}: actual {a[index].item()}, expected {b[index].item()}; "
            f"error {worst:.3e}, bound {bound:.3e} = {factors['ops']:g} ops * eps {eps:.3e} "
            f"* scale {factors['scale']:.3e} * condition {factors['condition']:.3e}"
        )


def assert_order(
    steps: Any, errors: Any, order: float, tol: float = 0.15, *, at_least: bool = False
) -> None:
    """Assert that errors shrink like a power of the step size.

    The slope of the least-squares line through ``(log step, log error)`` must lie within `tol`
    of `order`, or with ``at_least=True`` must not be less than ``order - tol``. Errors that are
    zero or not finite, and so have no logarithm, fail.

    Parameters
    ----------
    steps, errors : Tensor, ndarray or sequence, shape (k,), k >= 4
        Distinct positive step sizes, in any order, and the error at each.

    Examples
    --------
    >>> steps = [0.1, 0.05, 0.025, 0.0125]
    >>> dln.testing.assert_order(steps, [3 * h**2 for h in steps], 2)
    >>> dln.testing.assert_order(steps, [3 * h**2 for h in steps], 3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: order must be 3 within 0.15, got 2.000 from errors 3.00e-02, ...
    """
    (h, _), (e, _) = _wide(steps, "steps"), _wide(errors, "errors")
    if h.ndim != 1 or h.shape != e.shape:
        shapes = f"{tuple(h.shape)} and {tuple(e.shape)}"
        raise ValueError(f"steps and errors must be vectors of one length, got {shapes}")
    if h.numel() < 4:
        raise ValueError(f"an order must be fitted to at least 4 points, got {h.numel()}")
    if not (bool(((h > 0) & torch.isfinite(h)).all()) and h.unique().numel() == h.numel()):
        raise ValueError(f"steps must be positive, finite and distinct, got {h.tolist()}")
    order, tol = _real(order, "order"), _above_zero(tol, "tol")
    if not math.isfinite(order):
        raise ValueError(f"order must be finite, got {order}")
    if not isinstance(at_least, bool | np.bool_):
        raise TypeError(f"at_least must be True or False, got {type(at_least).__name__}")
    shown = ", ".join(f"{value:.2e}" for value in e.tolist())
    if not bool(((e > 0) & torch.isfinite(e)).all()):
        raise AssertionError(f"errors must be positive and finite to have an order, got {shown}")
    x, y = h.log() - h.log().mean(), e.log()
    slope = float((x * (y - y.mean())).sum() / (x * x).sum())
    if slope < order - tol or (slope > order + tol and not at_least):
        wanted = f"at least {order:g} - {tol:g}" if at_least else f"{order:g} within {tol:g}"
        raise AssertionError(f"order must be {wanted}, got {slope:.3f} from errors {shown}")


def assert_mean(samples: Any, expected: Any, sigmas: float = 4) -> None:
    """Assert that a sample mean agrees with its expectation up to Monte Carlo error.

    Every entry must satisfy ``|mean - expected| <= sigmas * std / sqrt(k) + eps * max |samples|``;
    the last term is one rounding, for entries that do not vary.

    Parameters
    ----------
    samples : Tensor, ndarray or sequence, shape (k, ...), k >= 2
        Independent samples along the first axis.
    expected : Tensor, ndarray, number or sequence, shape (...)
        The expectation.
    sigmas : float
        Standard errors allowed. An entry fails at 4 by chance about once in 16,000.

    Examples
    --------
    >>> dln.testing.assert_mean([0.0, 1.0, 2.0, 3.0], 1.0)
    >>> dln.testing.assert_mean([0.0, 1.0, 2.0, 3.0], 9.0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: mean off at index (): got 1.5, expected 9.0; off by 11.619 standard ...
    """
    (x, eps), (mu, _) = _wide(samples, "samples"), _wide(expected, "expected")
    count = x.shape[0] if x.ndim else 0
    if count < 2:
        raise ValueError(f"samples must number at least 2, got shape {tuple(x.shape)}")
    sigmas = _above_zero(sigmas, "sigmas")
    if x.shape[1:] != mu.shape:
        shape = tuple(x.shape[1:])
        raise AssertionError(f"expected must have shape {shape}, got {tuple(mu.shape)}")
    if x.numel() == 0:
        raise AssertionError(f"nothing to compare: samples have the empty shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all() and torch.isfinite(mu).all()):
        raise AssertionError("samples and expected must be finite, got NaN or infinite entries")
    mean, standard_error = x.mean(0), x.std(0) / math.sqrt(count)
    bound = sigmas * standard_error + eps * x.abs().amax(0)
    off = (mean - mu).abs()
    # A ratio picks the worst entry whatever its units; 0 / 0 is an exact hit.
    index = _worst(torch.where(off <= bound, 0.0, off / bound))
    if not bool(off[index] <= bound[index]):
        error = float(standard_error[index])
        ratio = float(off[index]) / error if error else math.inf
        raise AssertionError(
            f"mean off at index {index}: got {mean[index].item()}, expected {mu[index].item()}; "
            f"off by {ratio:.3f} standard errors of {error:.3e} ({count} samples), "
            f"allowed {sigmas:g}"
        )


def _above_zero(value: Any, name: str) -> float:
    """Return a positive finite number; an array of one serves, for scales that are computed."""
    number = _real(value, name)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return number


def _real(value: Any, name: str) -> float:
    try:
        if isinstance(value, bool | str | bytes | np.ma.core.MaskedConstant):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
    except OverflowError:
        raise ValueError(f"{name} must be finite, got a number beyond double precision") from None


def _wide(x: Any, name: str) -> tuple[Tensor, float]:
    """Return `x` in double precision on the CPU, and the eps of the dtype that it came in."""
    t = _plain(x, name)
    eps = torch.finfo(t.dtype).eps if t.is_floating_point() or t.is_complex() else 0.0
    wide = torch.complex128 if t.is_complex() else torch.float64
    return t.to(wide), max(eps, torch.finfo(torch.float64).eps)


def _plain(x: Any, name: str) -> Tensor:
    if isinstance(x, Tensor):
        x = x.detach()
        return (x if x.layout == torch.strided else x.to_dense()).cpu().resolve_conj()
    if isinstance(x, Sequence) and any(_holds_tensor(item) for item in x):
        return torch.stack([_plain(item, name) for item in x])
    if np.ma.is_masked(x) or isinstance(x, type):
        raise TypeError(f"{name} must be numeric, got masked entries or a class")
    # np.array refuses ragged sequences; multiprecision numbers come as objects and are rounded.
    try:
        array = np.array(x)
        if array.dtype == object or array.dtype == np.longdouble:
            # Not astype, which turns None into NaN.
            array = np.array([float(v) for v in array.flat]).reshape(array.shape)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} must be numeric, got {type(x).__name__}: {error}") from None


def _holds_tensor(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(_holds_tensor(item) for item in x)
    return isinstance(x, Tensor)


def _worst(error: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(error.argmax()), tuple(error.shape)))
