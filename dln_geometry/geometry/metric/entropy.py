"""The Boltzmann entropy of end-to-end matrices: the logarithm of the volume of the group orbit."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import langevin_function, log_kernel_slope, sum_of_log_kernels
from dln_geometry.geometry.metric.spectral import (
    gradient_of_pairs,
    over_field,
    sum_over_pairs,
)
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point
from dln_geometry.support import (
    FIELDS,
    Depth,
    as_choice,
    as_count,
    as_depth,
    as_matrix,
    as_real,
    as_widths,
    check_loss,
    is_differentiated,
    shown,
)

_Widths = Sequence[int] | int | None
# Number of singular values up to which a product sums pairs faster than filling a matrix does.
_FEW = 16


def log_stiefel_volume(d: int, r: int, field: str = "real") -> float:
    """Return log of the volume of the orthonormal frames St(d, r), metric of the Frobenius norm.

    ``2^{f r(r-1)/4} prod_{k=d-r+1}^d 2 pi^{fk/2} / Gamma(fk/2)``; for r = d that of the orthogonal
    (both components), unitary or symplectic group, f = 1, 2, 4 of the `field` ``"real"``,
    ``"complex"`` or ``"quaternion"``. The norm of a quaternion is the sum over its four parts.

    Examples
    --------
    >>> import math
    >>> round(math.exp(dln.log_stiefel_volume(2, 2)), 4)
    17.7715
    >>> round(math.exp(dln.log_stiefel_volume(1, 1, "complex")) / math.pi, 4)
    2.0
    """
    d, r = as_count(d, "d"), as_count(r, "r")
    f = FIELDS[as_choice(field, tuple(FIELDS), "field")]
    if r > d:
        raise ValueError(f"r must lie between 1 and d = {d}, got {r}")
    return _log_volume(d, r, f)


@lru_cache(maxsize=1024)
def _log_volume(d: int, r: int, f: int) -> float:
    ks = range(d - r + 1, d + 1)
    halves = [0.5 * f * k for k in ks]
    spheres = sum(math.log(2.0) + k * math.log(math.pi) - math.lgamma(k) for k in halves)
    return 0.25 * f * r * (r - 1) * math.log(2.0) + spheres


def entropy(
    point: EndToEnd | Collapsed | Any,
    *,
    depth: float | None = None,
    widths: _Widths = None,
    field: str | None = None,
) -> Tensor:
    r"""Return the entropy ``S(X) = log vol(O_X)`` of the balanced factorisations of X, shape (...).

    ``(N-1) log c_d + 1/2 sum_{i<j} log a_ij`` for square matrices of full rank and width d; in
    general ``sum_p [ log vol St(d_p, r) + (d_p - r)(r/2 log 2 + 1/N sum_i log s_i) ]
    + 1/2 sum_{i<j<=r} log a_ij`` over the hidden layers p. The kernel is the one without 1/N.
    At infinite depth the limit of ``S - (N-1) log c_d - r(r-1)/4 log N``.

    The orbits of complex matrices are those of unitary groups, those of quaternions of symplectic
    ones: with f = 2 and 4 the sums are f times those above, the volumes of frames and of c_d those
    of the field (`log_stiefel_volume`), and ``(f-1)/2 sum_i log a_ii`` is added; at infinite depth
    ``(f r(r-1)/4 + (f-1) r/2) log N`` is taken away.

    Parameters
    ----------
    point : EndToEnd, Collapsed or array_like of shape (..., m, n)
        A point of rank r, or a matrix, whose singular values alone are computed.
    depth : float, optional
        Depth, where `point` is a matrix.
    widths : sequence of int or int, optional
        ``(d_0, ..., d_N)`` (integer depth), or the width of every hidden layer (any finite
        depth); `None` is ``min(m, n)``, at infinite depth the rank: S diverges for wider layers.
        Widths of quaternions count quaternions.
    field : {"real", "complex", "quaternion"}, optional
        By default that of the tensors. A real matrix belongs to every field. A complex point with
        ``"quaternion"`` is a complex representation [[A, -B*], [B, A*]] (A*: conjugate entries).

    Returns
    -------
    Tensor, shape (...)
        ``-inf`` where two or more singular values vanish.

    References
    ----------
    Menon, Yu, arXiv 2509.09088v3 (entropy formula).

    Examples
    --------
    The orbit of a number at depth 3 has four points, (+-, +-):

    >>> dln.entropy(dln.EndToEnd.of([[2.0]], 3)).exp().round(decimals=3)
    tensor(4.)
    """
    if depth is not None and (field is not None or is_differentiated(point)):
        # With singular vectors, for derivatives at equal values.
        point = point if isinstance(point, EndToEnd | Collapsed) else EndToEnd.of(point, depth)
    if field is not None and isinstance(point, EndToEnd | Collapsed):
        seen, f = over_field(as_point(point, complex=True), field)
        point = seen if f == 4 and point.dtype.is_complex else point
    s, shape, depth, own = _spectrum(point, depth)
    f = own if field is None else f
    p = _followed_point(point)
    if p is not None and depth > 1.0:
        excess = hidden_excess(shape, p.rank, depth, widths, f)[1]
        value = entropy(point.detach(), widths=widths, field=field)
        singles = 0.5 * (f - 1) * depth.exponent + (excess / depth if excess else 0.0)
        return sum_over_pairs(p, value, 0.25 * f, singles)
    r = s.shape[-1]
    x = s.log()
    total = 0.5 * sum_of_log_kernels(x, depth)
    constant, excess = hidden_excess(shape, r, depth, widths, f)
    if f > 1:
        total = f * total + 0.5 * (f - 1) * (depth.exponent * x + depth.log).sum(-1)
    # At no excess, log 0 must not enter.
    return constant + (total + (excess / depth) * x.sum(-1) if excess > 0 else total)


def _followed_point(point: Any) -> EndToEnd | None:
    """Return a point with these singular values whose matrix is differentiated, or None."""
    if isinstance(point, Collapsed):
        if not is_differentiated(*point.tensors):
            return None
        power = 1.0 if point.depth.infinite else 0.5 * point.depth
        point = EndToEnd.of(point.power(power), point.depth)
    return point if isinstance(point, EndToEnd) and point.followed is not None else None


def _spectrum(point: Any, depth: float | None) -> tuple[Tensor, tuple[int, int], Depth, int]:
    """Return singular values, shape, depth and dimension of the field of a point or a matrix."""
    if isinstance(point, EndToEnd | Collapsed):
        if depth is not None and as_depth(depth) != point.depth:
            raise ValueError(f"depth must be that of the point, {point.depth:g}, got {depth}")
        return point.singular_values, point.shape, point.depth, 1 + point.dtype.is_complex
    if depth is None:
        wanted = "an EndToEnd or a Collapsed, or a matrix given with its depth"
        raise TypeError(f"point must be {wanted}, got {type(point).__name__}")
    x = as_matrix(point, "point", complex=True)
    shape = (x.shape[-2], x.shape[-1])
    return torch.linalg.svdvals(x), shape, as_depth(depth), 1 + x.is_complex()


def hidden_excess(
    shape: tuple[int, int], r: int, depth: Depth, widths: _Widths, f: int = 1
) -> tuple[float, float]:
    """Return the constant of the entropy and ``f sum_p (d_p - r)`` over the hidden layers.

    `f` is the dimension of the field over the real numbers.
    """
    field = next(name for name, dimension in FIELDS.items() if dimension == f)
    if depth.infinite:
        if widths is not None and widths != r:
            raise ValueError("widths must equal the rank at infinite depth, where S diverges")
        return 0.0, 0.0
    if widths is None or isinstance(widths, numbers.Integral):
        # N - 1 layers, at every real depth.
        hidden = {as_widths(widths, shape, 2, r)[1]: depth - 1.0}
    else:
        resolved = as_widths(widths, shape, depth.layers, r)[1:-1]
        hidden = {d: float(resolved.count(d)) for d in set(resolved)}
    constant = sum(
        layers * (log_stiefel_volume(d, r, field) + 0.5 * f * r * (d - r) * math.log(2.0))
        for d, layers in hidden.items()
    )
    return constant, sum(f * layers * (d - r) for d, layers in hidden.items())


def entropy_slope(s: Tensor, depth: Depth, *, excess: float = 0.0, f: int = 1) -> Tensor:
    """Return ``dS/ds_i``, shape (..., r), without checks; finite at equal singular values.

    ``sum_{j != i} [ s_i/(s_i^2 - s_j^2) - (1/N) s_i^{2/N-1}/(s_i^{2/N} - s_j^{2/N}) ]
    + excess / (N s_i)`` with ``excess = sum_p (d_p - r)``; over a field of dimension f the sum is f
    times that, and ``(f-1)(1-1/N)/s_i`` is added.
    """
    slope = 0.5 * log_kernel_slope(s, depth)
    # Masked, not subtracted: the diagonal is infinite at a zero, where the sum may be finite.
    diagonal = torch.eye(s.shape[-1], dtype=torch.bool, device=s.device)
    total = slope.masked_fill(diagonal, 0.0).sum(-1)
    if f > 1:
        total = f * total + 0.5 * (f - 1) * depth.exponent / s
    return total + excess / (depth * s) if excess else total


def entropy_pull(x: Tensor, depth: float, *, excess: float = 0.0, f: int = 1) -> Tensor:
    """Return ``s_i dS/ds_i`` of descending, finite ``x = log s``, shape (..., r), without checks.

    `entropy_slope` at less than half the cost, to absolute precision: with ``t = x_i - x_j >= 0``
    and ``L(t) = coth t - 1/t`` the pair (i, j) gives i the share ``(c + L(t) - L(t/N)/N)/2`` of
    ``c = 1 - 1/N``, and j the rest; over a field of dimension f the pairs count f times, and
    ``a_ii^{(f-1)/2}`` adds ``(f-1) c``.
    """
    r, inverse = x.shape[-1], 1.0 / depth
    i, j = torch.triu_indices(r, r, 1, device=x.device)
    t = (x[..., i] - x[..., j]).clamp_min(torch.finfo(x.dtype).tiny)
    odd = langevin_function(t)
    if inverse:
        odd = odd - inverse * langevin_function(inverse * t)
    if r <= _FEW:
        eye = 0.5 * torch.eye(r, dtype=x.dtype, device=x.device)
        total = odd @ (eye[i] - eye[j])
    else:
        pairs = x.new_zeros((*x.shape, r))
        pairs[..., i, j] = 0.5 * odd
        total = pairs.sum(-1) - pairs.sum(-2)
    total = total + 0.5 * (1.0 - inverse) * (r - 1)
    if f > 1:
        total = f * total + (f - 1.0) * (1.0 - inverse)
    return total + excess * inverse if excess else total


def entropy_gradient(
    point: EndToEnd | Collapsed, *, widths: _Widths = None, field: str | None = None
) -> Tensor:
    """Return the Euclidean gradient of the entropy, ``U diag(dS/ds) V^T``, shape (..., m, n).

    It is the gradient along the matrices of rank r; `cometric` makes it Riemannian. `field` as in
    `entropy`: of a complex representation of quaternions the gradient is one too.

    Raises
    ------
    ValueError
        If the gradient is infinite: a singular value is zero (depth above 2, or two of them).

    References
    ----------
    Menon, Yu, arXiv 2509.09088v3.

    Examples
    --------
    >>> p = dln.EndToEnd.of([[2.0, 0.0], [0.0, 1.0]], depth=2)
    >>> dln.entropy_gradient(p).diagonal()  # of 1/2 log(s_1 + s_2)
    tensor([0.1667, 0.1667])
    """
    p = as_point(point, complex=True)
    kept, f = over_field(p, field)
    excess = hidden_excess(kept.shape, kept.rank, p.depth, widths, f)[1]
    slope = entropy_slope(kept.s, p.depth, excess=excess, f=f)
    if not bool(torch.isfinite(slope.detach()).all()):
        required = "point must have positive singular values for the entropy gradient"
        raise ValueError(f"{required}, got a zero")
    if p.followed is not None and p.depth > 1.0:
        value = (p.u.detach() * slope.detach().unsqueeze(-2)) @ p.vh.detach()
        singles = 0.5 * (f - 1) * p.depth.exponent + (excess / p.depth if excess else 0.0)
        return gradient_of_pairs(p, value, 0.25 * f, singles)
    if kept.rank < p.rank:
        slope = slope.repeat_interleave(2, -1)
    return (p.u * slope.unsqueeze(-2)) @ p.vh


def free_energy(
    point: EndToEnd | Collapsed,
    loss: Any,
    beta: float,
    *,
    widths: _Widths = None,
    field: str | None = None,
) -> Tensor:
    """Return the free energy ``F_beta(X) = E(X) - S(X)/beta``, shape (...).

    `loss` is anything with ``value(x)``, `beta` a positive inverse temperature; at ``math.inf``
    the result is the loss. Other parameters and errors as in `entropy`.

    References
    ----------
    Menon, arXiv 2411.09004.

    Examples
    --------
    >>> p = dln.EndToEnd.of([[2.0, 0.0], [0.0, 1.0]], depth=2)
    >>> loss = dln.losses.Quadratic(torch.zeros(2, 2))
    >>> value = dln.free_energy(p, loss, beta=4.0)
    >>> value == loss.value(p.matrix) - dln.entropy(p) / 4.0
    tensor(True)
    """
    if not as_real(beta, "beta") > 0:
        raise ValueError(f"beta must be positive, got {shown(beta)}")
    beta = as_real(beta, "beta")
    x = point if isinstance(point, Collapsed) else as_point(point, complex=True).matrix
    check_loss(loss, point.shape, "value")
    value = loss.value(x)
    value = value if isinstance(value, Tensor) else torch.tensor(value, device=point.device)
    return value if math.isinf(beta) else value - entropy(point, widths=widths, field=field) / beta
