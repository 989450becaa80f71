"""Exact solutions of the gradient flow."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.flows.two_layers import two_layers
from dln_geometry.support import as_depth, as_float_tensor, as_normalized, read_array

__all__ = ["quadratic", "quadratic_residual", "two_layers"]

# Terms of the series: each is at most (n + 1) 2^-n, so the terms left out are below eps.
TERMS = 64
# Values solved for at once (bounds the memory of the series), and bound on Newton's steps.
CHUNK, STEPS = 8192, 100
EPS = 4 * torch.finfo(torch.float64).eps
# A logarithm that stands for infinity, where infinity would give NaN.
FAR = 1e300


def quadratic(
    s0: Any, target: Any, depth: float, t: Any, *, normalized: bool | None = None
) -> Tensor:
    """Return singular values of the gradient flow of ``1/2 |X - Y|^2``, aligned with Y.

    The solution of ``ds/dt = -N s^{2-2/N} (s - m)``, ``s(0) = s0``, for X and Y with the same
    singular vectors, where m is the singular value of Y. Without the factor N if normalised; at
    infinite depth ``ds/dt = -s^2 (s - m)``. ``s = 0`` stays there, unless N = 1. A negative
    target drives s to zero (in finite time if 1 < N < 2), at N = 1 through it.

    Parameters
    ----------
    s0 : array_like, shape (...)
        Start, at least 0.
    target : array_like, shape (...)
        Target m, of any sign; broadcasts with `s0`.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    t : array_like, shape (T...)
        Times, at least 0.
    normalized : bool, optional
        Divide the velocity by N; `None` does so at infinite depth only.

    Returns
    -------
    Tensor, shape (T..., ...)
        Of the dtype of `s0` and `target`, computed in double precision, without gradients.

    Notes
    -----
    In ``z = s/m`` (below the target) the time is an incomplete beta integral,
    ``N m^{2-2/N} t = int dz z^{2/N-2} (1 - z)^{-1}``; above the target in ``m/s``, with other
    exponents, and for a negative target in ``|m|/(s + |m|)``. It is expanded at the nearer end of
    (0, 1), in differences whose terms do not cancel, and inverted by Newton's method in ``log z``.

    References
    ----------
    Menon, arXiv 2411.09004 (the flow); Arora, Cohen, Hu, Luo, arXiv 1905.13655.

    Examples
    --------
    At depth 2 it is a logistic curve, ``s = m e^{2mt}/(e^{2mt} - 1 + m/s0)``:

    >>> dln.exact.quadratic(0.5, 1.0, 2, [0.0, 1.0])
    tensor([0.5000, 0.8808])
    """
    return _quadratic(s0, target, depth, t, normalized)[0]


def quadratic_residual(
    s0: Any, target: Any, depth: float, t: Any, *, normalized: bool | None = None
) -> Tensor:
    """Return ``s(t) - m`` of `quadratic`, with a small relative error at every time.

    The loss of the mode is half its square. Parameters as in `quadratic`.

    Examples
    --------
    >>> t = torch.tensor(100.0, dtype=torch.float64)
    >>> residual = dln.exact.quadratic_residual(0.5, 1.0, 2, t)
    >>> float(dln.exact.quadratic(0.5, 1.0, 2, t)), f"{residual:.3e}"
    (1.0, '-1.384e-87')
    """
    return _quadratic(s0, target, depth, t, normalized)[1]


def _quadratic(
    s0: Any, target: Any, depth: float, t: Any, normalized: bool | None
) -> tuple[Tensor, Tensor]:
    """Return ``s(t)`` and ``s(t) - m``."""
    n = as_depth(depth)
    rate = 1.0 if as_normalized(normalized, n) else n
    dtype, (start, m, times) = _arguments(s0=s0, target=target, t=t)
    for name, value in (("s0", start), ("t", times)):
        if bool((value < 0).any()):
            raise ValueError(f"{name} must be at least 0, got {float(value.min())}")
    try:
        start, m = torch.broadcast_tensors(start, m)
    except RuntimeError:
        raise ValueError(
            f"s0 and target must have shapes that broadcast, got {tuple(start.shape)} and "
            f"{tuple(m.shape)}"
        ) from None
    shape = (*times.shape, *start.shape)
    tau = rate * times.reshape((*times.shape, *(1,) * start.ndim))
    s, m, tau = (x.expand(shape).flatten() for x in (start, m, tau))
    if n == 1:
        decay = torch.exp(-tau)
        value, residual = s * decay - m * torch.expm1(-tau), (s - m) * decay
    else:
        value, residual = _solved_modes(s, m, tau, n.exponent)
    return value.reshape(shape).to(dtype), residual.reshape(shape).to(dtype)


def _arguments(**named: Any) -> tuple[torch.dtype, list[Tensor]]:
    """Convert the arguments to double precision; return the dtype of the result."""
    arrays, dtypes, devices = [], [], []
    for name, x in named.items():
        read, own = read_array(x, name)
        # Plain numbers have no dtype: do not round them to one.
        tensor = as_float_tensor(read if own else read.double(), name).detach()
        # Use the dtype of `t` only if `s0` and `target` have none.
        if own and (name != "t" or not dtypes):
            dtypes.append(tensor.dtype)
            devices.append(tensor.device)
        arrays.append(tensor.to(torch.float64))
    dtype = functools.reduce(torch.promote_types, dtypes or [torch.get_default_dtype()])
    device = next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
    return dtype, [x.to(device) for x in arrays]


def _solved_modes(s: Tensor, m: Tensor, tau: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """Solve ``ds/dtau = -s^a (s - m)``, 0 < a <= 2, for vectors."""
    value, residual = s.clone(), s - m
    moving = (s > 0) & (tau > 0)
    at = (moving & (m == 0)).nonzero()[:, 0]
    value[at] = s[at] * torch.exp(-torch.log1p(a * tau[at] * s[at] ** a) / a)
    residual[at] = value[at]
    at = (moving & (m > s)).nonzero()[:, 0]
    x, y = s[at], m[at]
    z, w = _advance(x / y, (y - x) / y, tau[at] * y**a, 1.0 - a, 0.0)
    value[at], residual[at] = y * z, -y * w
    at = (moving & (m > 0) & (m < s)).nonzero()[:, 0]
    x, y = s[at], m[at]
    z, w = _advance(y / x, (x - y) / x, tau[at] * y**a, a, 0.0)
    value[at], residual[at] = y / z, y * (w / z)
    at = (moving & (m < 0)).nonzero()[:, 0]
    x, y = s[at], -m[at]
    z, w = _advance(y / (x + y), x / (x + y), tau[at] * y**a, a, 1.0 - a)
    value[at], residual[at] = y * (w / z), y / z
    return value, residual


def _advance(
    left: Tensor, right: Tensor, tau: Tensor, beta_left: float, beta_right: float
) -> tuple[Tensor, Tensor]:
    """Solve ``dz/dtau = z^{1-beta_left} (1-z)^{1-beta_right}`` from `left`; return z and 1 - z.

    `right` is ``1 - left``, to its own accuracy.
    """
    chunks = zip(left.split(CHUNK), right.split(CHUNK), tau.split(CHUNK), strict=True)
    pieces = [torch.stack(_advance_chunk(*chunk, beta_left, beta_right)) for chunk in chunks]
    z, w = torch.cat(pieces, 1)
    return z, w


def _advance_chunk(
    left: Tensor, right: Tensor, tau: Tensor, beta_left: float, beta_right: float
) -> tuple[Tensor, Tensor]:
    # Indexed, because torch.where would turn Python numbers into single precision.
    ends = left.new_tensor([beta_right, beta_left])
    grows = left <= right
    z = torch.where(grows, left, right)
    beta, alpha = ends[grows.long()], 1.0 - ends[1 - grows.long()]
    time = tau * z**-beta
    to_half = torch.where(grows, torch.log(0.5 / z), 0.0)
    excess = time - _beta_integral(z, to_half, beta, alpha)
    # Beyond 1/2, use the series at the other end, starting from 1/2.
    crosses = grows & (excess > 0)
    time = torch.where(crosses, excess * z**beta_left * 2.0**beta_right, time)
    grows, z = grows & ~crosses, torch.where(crosses, 0.5, z)
    beta, alpha = ends[grows.long()], 1.0 - ends[1 - grows.long()]
    z = z * _inverse(z, time, grows, beta, alpha).exp()
    return torch.where(grows, z, 1.0 - z), torch.where(grows, 1.0 - z, z)


def _inverse(z: Tensor, time: Tensor, grows: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """Return ``log(z1/z)`` where the `_beta_integral` is ``time`` or, falling, ``-time``."""
    goal = torch.where(grows, time, -time)
    upper = torch.where(grows, torch.log(0.5 / z), 0.0)
    # The time to reach zero; if it is finite, it sets the scale.
    whole = -_beta_integral(z, torch.full_like(z, -FAR), beta, alpha)
    scale = torch.where(grows | (beta <= 0), 1.0, 1.0 / (beta * whole))
    # Start at the inverse of the first term, which has a closed form.
    guess = torch.log1p((beta * goal * scale).clamp_min(-1.0)) / beta
    guess = torch.where(beta == 0, goal, guess).clamp(-FAR, FAR)
    x = torch.minimum(guess, upper)
    # The logarithm of the slope has a slope of at most 1/cap: from within cap of the root, and
    # after steps of that length from anywhere, Newton's method converges quadratically.
    cap = 1.0 / (beta.abs() + alpha.abs()).clamp_min(0.1)
    for _ in range(STEPS):
        slope = (beta * x).exp() * (1.0 - z * x.exp()) ** -alpha
        error = goal - _beta_integral(z, x, beta, alpha)
        step = (error / slope).nan_to_num().clamp(-cap, cap)
        step = torch.where(error.abs() <= EPS * goal.abs(), 0.0, step)
        moved = torch.minimum(x + step, upper)
        done = (moved - x).abs() <= EPS * (1.0 + x.abs())
        x = moved
        if bool(done.all()):
            break
    return torch.where(~grows & (time >= whole), -math.inf, x)


def _beta_integral(z: Tensor, log_ratio: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    r"""Return ``z^-beta`` times the integral of ``x^{beta-1} (1-x)^-alpha`` from z to ``z e^l``.

    ``sum_n (alpha)_n/n! z^n (e^{(n+beta) l} - 1)/(n + beta)`` without overflow; z and ``z e^l``
    are at most 1/2.
    """
    n = torch.arange(TERMS, dtype=z.dtype, device=z.device)
    z, length, beta, alpha = (x.unsqueeze(-1) for x in (z, log_ratio, beta, alpha))
    weight = torch.cumprod(torch.where(n == 0, 1.0, (alpha + n - 1.0) / n.clamp_min(1.0)), -1)
    c = n + beta
    # Factor the larger power out of the difference of the two.
    end = torch.where(n == 0, 1.0, (z * length.exp()) ** n) * (beta * length).exp()
    outer = torch.where(c * length > 0, end, z**n)
    inner = torch.where(c == 0, length.abs(), -torch.expm1(-(c * length).abs()) / c.abs())
    return length.sign().squeeze(-1) * (weight * outer * inner).sum(-1)
