"""The equilibrium of Langevin dynamics: densities of singular values, and exact moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.metric import entropy as entropy_of
from dln_geometry.geometry.points import point_of_values
from dln_geometry.support import (
    FIELDS,
    Depth,
    as_choice,
    as_count,
    as_depth,
    as_flag,
    as_float_tensor,
    as_positive,
    as_sides,
    shown,
)


def gibbs_log_density(
    s: Any,
    shape: tuple[int, int],
    depth: float,
    *,
    beta: float,
    energy: Callable[[Tensor], Tensor] | None = None,
    kappa: float = 1.0,
    entropy: bool = True,
    widths: Sequence[int] | int | None = None,
    field: str = "real",
) -> Tensor:
    r"""Return the log density of the singular values at equilibrium, up to a constant; (...).

    For an energy of the singular values alone, the law of s under
    ``exp(-(beta/kappa) F_beta) dvol_g`` on the m x n matrices of rank r is, in ``ds``,

        ``exp(-(beta/kappa) E(s) + S(s)/kappa)
        prod_{i<j} |s_i^{2/N} - s_j^{2/N}| prod_i s_i^{(m+n-2r)/N} s_i^{1/N - 1}``,

    the entropy S without its term if `entropy` is false; at infinite depth
    ``exp(...) prod_{i<j} |log s_i - log s_j| prod_i 1/s_i``. Over a field of dimension f the pairs
    have the power f, and ``s_i^{(f-1+f(m+n-2r))/N}`` takes the place of ``s_i^{(m+n-2r)/N}``.
    The constant depends on everything but s, and gradients go through s.

    Parameters
    ----------
    s : array_like, shape (..., r)
        Singular values, positive, in any order: the density is symmetric.
    shape : (int, int)
        Shape (m, n) of the matrices, in either order; r is their rank.
    depth : float
        Depth N.
    beta, kappa, entropy, widths
        As in `dln_geometry.langevin`.
    energy : callable, optional
        ``energy(s (..., r)) -> (...)``; by default the ridge ``(N/2) sum s_i^{2/N}``, which has no
        limit at infinite depth.
    field : {"real", "complex", "quaternion"}
        The field of the matrices.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088v3; Cohen, Menon, Veraszto, 2210.12497.

    Examples
    --------
    A number under the energy s^2/2 at depth 1 is Gaussian:

    >>> half_square = lambda s: s.square().sum(-1) / 2
    >>> dln.laws.gibbs_log_density([2.0], (1, 1), 1, beta=3.0, energy=half_square)
    tensor(-6.)
    """
    sides, depth = as_sides(shape), as_depth(depth)
    beta, kappa = as_positive(beta, "beta"), as_positive(kappa, "kappa")
    entropy, f = as_flag(entropy, "entropy"), FIELDS[as_choice(field, FIELDS, "field")]
    s = as_float_tensor(s, "s")
    r = s.shape[-1] if s.ndim else 0
    if not 1 <= r <= sides[1] or not bool((s > 0).all()):
        required = f"positive, of shape (..., r) with 1 <= r <= {sides[1]}"
        raise ValueError(f"s must be {required}, got {shown(s.tolist())}")
    if energy is None and depth.infinite:
        raise ValueError("energy must be given at infinite depth, where the ridge has no limit")
    if energy is not None and not callable(energy):
        raise TypeError(f"energy must be a function of the singular values, got {shown(energy)}")
    x = s.log()
    total = (-beta / kappa) * (ridge_energy(s, depth) if energy is None else energy(s))
    if total.shape != s.shape[:-1]:
        raise ValueError(
            f"energy must have one value for each row of s, {tuple(s.shape[:-1])}, got "
            f"{tuple(total.shape)}"
        )
    if entropy and depth > 1:
        # The entropy is that of a descending spectrum.
        ordered = s.sort(-1, descending=True).values
        point = point_of_values(ordered, sides, depth)
        total = total + entropy_of(point, widths=widths, field=field) / kappa
    i, j = torch.triu_indices(r, r, 1, device=s.device)
    high, low = torch.maximum(x[..., i], x[..., j]), torch.minimum(x[..., i], x[..., j])
    if depth.infinite:
        return total + f * (high - low).log().sum(-1) - x.sum(-1)
    # log(a^{2/N} - b^{2/N}) without cancellation.
    power = 2.0 * depth.inverse
    pairs = power * high + torch.log(-torch.expm1(power * (low - high)))
    single = f * (sum(sides) - 2 * r + 1) * depth.inverse - 1.0
    return total + f * pairs.sum(-1) + single * x.sum(-1)


def ridge_energy(s: Tensor, depth: Depth) -> Tensor:
    """Return ``(N/2) sum s_i^{2/N}``, the least half square of the layers, shape (...)."""
    return 0.5 * depth * (s ** (2.0 * depth.inverse)).sum(-1)


def gibbs_energy_moment(
    order: float,
    shape: tuple[int, int],
    rank: int,
    depth: float,
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    degree: float | None = None,
    field: str = "real",
) -> float:
    r"""Return ``E[energy^order]`` at equilibrium, exactly, for a homogeneous energy.

    If the energy grows like the power `degree` of X, the volume of ``{E <= e}`` grows like
    ``e^a``, so that E is Gamma distributed, with shape ``a = D / (degree N)`` and scale
    ``kappa/beta``; with ``D = f r(m+n-r) + (N-1)(f r min(m,n) - f r(r+1)/2 + (f-1) r)/kappa``, f
    the dimension of the field, the second term only with entropy (hidden widths ``min(m, n)``). Its
    mean is ``a kappa / beta``, its variance
    (the heat capacity over ``beta^2``, at kappa = 1) ``a (kappa / beta)^2``.

    Parameters
    ----------
    order : float
        Power of the energy, above -a.
    shape, rank, depth
        Shape (m, n) and rank r of the matrices, and the finite depth N.
    beta, kappa, entropy, field
        As in `gibbs_log_density`.
    degree : float, optional
        Degree of the energy: 2 for ``|X|^2/2``; by default that of the ridge, 2/N.

    Examples
    --------
    >>> dln.laws.gibbs_energy_moment(1, (2, 2), 2, 3, beta=1.0)
    3.0
    """
    size, depth = gibbs_dimension(shape, rank, depth, kappa, entropy, field), as_depth(depth)
    scale = as_positive(kappa, "kappa") / as_positive(beta, "beta")
    power = 2.0 * depth.inverse if degree is None else as_positive(degree, "degree")
    a = size / (power * depth)
    if isinstance(order, bool) or not isinstance(order, int | float):
        raise TypeError(f"order must be a real number, got {shown(order)}")
    if not -a < order < math.inf:
        raise ValueError(f"order must be finite and above {-a:g}, got {order}")
    if order == int(order) >= 0:
        return scale**order * math.prod(a + k for k in range(int(order)))
    return scale**order * math.exp(math.lgamma(a + order) - math.lgamma(a))


def gibbs_dimension(
    shape: tuple[int, int], rank: int, depth: float, kappa: float, entropy: bool, field: str
) -> float:
    """Return the power D with which the measure of a ball of radius R in rho grows, ``R^D``."""
    m, n = as_sides(shape)
    r, depth = as_count(rank, "rank"), as_depth(depth)
    if r > n or depth.infinite:
        raise ValueError(
            f"rank must be at most {n} and depth finite, got rank {r} and depth {depth:g}"
        )
    f = FIELDS[as_choice(field, FIELDS, "field")]
    turns = f * (r * n - 0.5 * r * (r + 1)) + (f - 1) * r
    along = (depth - 1) * turns if as_flag(entropy, "entropy") else 0.0
    return f * r * (m + n - r) + along / as_positive(kappa, "kappa")


def ridge_mean_square(
    shape: tuple[int, int],
    rank: int,
    depth: float,
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    field: str = "real",
) -> float:
    r"""Return ``E |rho|^2 = N E sum s_i^{2/N}`` at equilibrium in the loss ``(N/2) sum s^{2/N}``.

    ``[ kappa r(m+n-r) + (N-1)(r min(m,n) - r(r+1)/2) ]/beta``, the second term only with entropy
    (hidden widths ``min(m, n)``): at ``kappa = 1`` the dimension of the balanced manifold over
    beta, without entropy that of the matrices of rank r. Over other fields ``kappa D/beta`` with D
    as in `gibbs_energy_moment`, like the arguments.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088.

    Examples
    --------
    >>> dln.laws.ridge_mean_square((2, 2), 2, 3, beta=1.0)
    6.0
    """
    size = gibbs_dimension(shape, rank, depth, kappa, entropy, field)
    return kappa * size / as_positive(beta, "beta")


def fuss_catalan_moment(order: int, depth: int) -> float:
    r"""Return ``E x^k`` of the Fuss-Catalan law, k = `order`: ``binom((N+1)k, k) / (Nk + 1)``.

    In the limit of infinite width the law of ``x = b^N s^2`` for square matrices at equilibrium in
    the ridge at ``kappa = 1`` with entropy, ``beta = b r``; and of a product of N independent
    Gaussian layers. N = 1 is Marchenko-Pastur's law of a square matrix.

    Examples
    --------
    >>> [dln.laws.fuss_catalan_moment(k, 2) for k in (1, 2, 3)]
    [1.0, 3.0, 12.0]
    """
    k, n = as_count(order, "order", 0), as_depth(depth).layers
    return float(math.comb((n + 1) * k, k) // (n * k + 1))
