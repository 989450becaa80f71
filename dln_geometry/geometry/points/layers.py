"""Algebra of chains of layers, without checks: product, singular values, moments, frames.

Products and squares of layers may leave the range of their type where results do not, and make
NaN or zeros of them. `at_unit_size` and the functions `..._in_range` divide layers by powers of two
near their largest entries, which rounds nothing: results are infinite, or zero, only where they
leave the range themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points.smooth_functions import separated_frames
from dln_geometry.support import absolute_square, is_differentiated, phases


def product(
    factors: Sequence[Tensor], times: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> Tensor:
    """Multiply layers from the narrower end, without checks, by the function `times`."""
    if factors[0].shape[-1] <= factors[-1].shape[-2]:
        x = factors[0]
        for w in factors[1:]:
            x = times(w, x)
        return x
    x = factors[-1]
    for w in reversed(factors[:-1]):
        x = times(x, w)
    return x


def exponent_of(*x: Tensor) -> Tensor:
    """Return the exponent of a power of two near the largest entry of matrices, shape (...)."""
    top = torch.stack([part.detach().abs().amax((-2, -1)) for part in x]).amax(0)
    return torch.where(top > 0, top, 1.0).log2().floor()


def common_exponent(layers: Sequence[Tensor]) -> Tensor:
    """Return the exponent of the power of two nearest to the largest norm of layers, shape (...).

    Of the spectral norm, which is near 1 then: products of many such layers stay in range.
    """
    norms = [torch.linalg.matrix_norm(w.detach(), ord=2) for w in layers]
    top = torch.stack(norms).amax(0)
    return torch.where(top > 0, top, 1.0).log2().round()


def is_ordinary(layers: Sequence[Tensor]) -> bool:
    """Tell whether products of all layers, and the squares of these, are in the range."""
    if layers[0].numel() == 0:
        return True
    top = torch.stack([w.detach().abs().amax((-2, -1)) for w in layers])
    bound = torch.finfo(top.dtype).max ** (0.4 / len(layers))
    return bool(((top < bound) & (top > 1.0 / bound) | (top == 0)).all())


def by_power_of_two(x: Tensor, exponent: Tensor, axes: int = 2) -> Tensor:
    """Return ``x 2^exponent``, the exponent whole, of shape (...) with so many `axes` less than x.

    Four factors are multiplied: the whole power may leave the range where the result does not.
    """
    most = 1000.0 if torch.finfo(x.dtype).eps < 1e-10 else 120.0
    whole = exponent[(..., *(None,) * axes)]
    part = (whole / 4).floor()
    for power in (part, part, part, whole - 3 * part):
        x = x * torch.exp2(power.clamp(-most, most))
    return x


def at_unit_size(
    f: Callable[..., Sequence[Tensor]],
    degree: float,
    layers: Sequence[Tensor],
    *vectors: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Return ``f(layers, *vectors)``, matrices, in range.

    f is linear in each vector, and of this degree if all layers are multiplied by a number.
    """
    if all(map(is_ordinary, (layers, *vectors))):
        return tuple(f(layers, *vectors))
    sizes = [common_exponent(layers), *(exponent_of(*x) for x in vectors)]
    small = (
        [by_power_of_two(w, -size) for w in x]
        for x, size in zip((layers, *vectors), sizes, strict=True)
    )
    total: Any = sum(sizes[1:], degree * sizes[0])
    return tuple(by_power_of_two(x, total) for x in f(*small))


def product_in_range(layers: Sequence[Tensor]) -> Tensor:
    """Return `product`, whatever leaves the range on the way."""
    if is_ordinary(layers):
        return product(layers)
    small, exponents = over_units(layers)
    x = small[0]
    for w in small[1:]:
        x = w @ x
    return by_power_of_two(x, sum(exponents[1:], exponents[0]))


def over_units(layers: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return layers over a power of two each, and the exponents.

    They are chosen so that all products from the input side on are near 1.
    """
    small, exponents, x = [], [], None
    for w in layers:
        own = exponent_of(w)
        w = by_power_of_two(w, -own)
        x = w if x is None else w @ x.detach()
        more = exponent_of(x)
        x = by_power_of_two(x, -more)
        small.append(by_power_of_two(w, -more))
        exponents.append(own + more)
    return small, exponents


def moments_in_range(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return `layer_moments`, whatever leaves the range on the way."""
    if is_ordinary(layers):
        return layer_moments(layers)
    pairs = (at_unit_size(layer_moments, 2.0, pair) for pair in pairwise(layers))
    return tuple(g for (g,) in pairs)


def chain_svd(factors: Sequence[Tensor], *, keep: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD of ``W_N ... W_1``, of rank min(widths), without forming X if thin.

    Singular values at the level of the rounding errors of the product are set to zero, unless
    `keep`: the N-th root of a rounding error is not small.
    """
    chain, k = list(factors), min(factors[0].shape[-1], *(w.shape[-2] for w in factors))
    right = left = None
    if len(chain) > 1 and chain[0].shape[-2] < chain[0].shape[-1]:
        right, upper = torch.linalg.qr(chain[0].mH)
        chain[0] = upper.mH
    if len(chain) > 1 and chain[-1].shape[-1] < chain[-1].shape[-2]:
        left, chain[-1] = torch.linalg.qr(chain[-1])
    partial = list(accumulate(chain, lambda x, w: w @ x))
    u, s, vh = torch.linalg.svd(partial[-1], full_matrices=False)
    u, s, vh = u[..., :k], s[..., :k], vh[..., :k, :]
    if not keep:
        s = torch.where(s > _product_noise(chain, partial).unsqueeze(-1), s, 0.0)
    return u if left is None else left @ u, s, vh if right is None else vh @ right.mH


def _product_noise(chain: Sequence[Tensor], partial: Sequence[Tensor]) -> Tensor:
    """Estimate the rounding errors of a product, the partial products of which are given.

    The error of each product, ``eps |W_p| |W_{p-1} ... W_1|`` over the root of the width summed
    over, is multiplied by the layers behind it. A product of norms alone would outgrow X itself in
    a long chain; the norm of X alone would take the errors of a zero for singular values.
    """
    norm = torch.linalg.matrix_norm
    squared = norm(partial[-1]).square()
    behind = None
    for p in range(len(chain) - 1, 0, -1):
        error = norm(chain[p]) * norm(partial[p - 1]) / chain[p].shape[-1] ** 0.5
        if behind is not None:
            error = error * norm(behind) / behind.shape[-1] ** 0.5
        squared = squared + error.square()
        behind = chain[p] if behind is None else behind @ chain[p]
    return 4.0 * torch.finfo(chain[0].dtype).eps * squared.sqrt()


def layer_moments(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return ``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T``, without checks."""
    return tuple(after.mH @ after - before @ before.mH for before, after in pairwise(layers))


def moment_size(layers: Sequence[Tensor]) -> Tensor:
    """Return ``max_p |G_p|_F / (|W_{p+1}|_F^2 + |W_p|_F^2)``, shape (...); 0 at depth 1."""
    worst = layers[0].real.new_zeros(layers[0].shape[:-2])
    if layers[0].numel() == 0:
        return worst
    for before, after in pairwise(layers):
        # In units of the largest entry, the square of which may not be a number.
        unit = torch.maximum(before.abs().amax((-2, -1)), after.abs().amax((-2, -1)))
        unit = torch.where(unit > 0, unit, 1.0)[..., None, None]
        (g,) = layer_moments((before / unit, after / unit))
        size = absolute_square(before / unit).sum((-2, -1))
        size = size + absolute_square(after / unit).sum((-2, -1))
        relative = torch.linalg.matrix_norm(g) / torch.where(size > 0, size, 1.0)
        worst = torch.maximum(worst, relative)
    return worst


def balanced_frames(layers: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return the frames ``(Q_0, ..., Q_N)`` and ``lam`` of balanced layers ``Q_p Lam Q_{p-1}^T``.

    From the layers, since their product may lose ``lam^N`` to rounding. The rank is the largest
    numerical rank of a first layer; columns of zeros of `lam` are arbitrary.
    """
    eps = torch.finfo(layers[0].dtype).eps
    u, lam, vh = torch.linalg.svd(layers[0], full_matrices=False)
    if is_differentiated(layers[0]):
        lam, vh = separated_frames(u, lam, vh)[1:]
    widest = max(max(w.shape[-2:]) for w in layers)
    lam = torch.where(lam > 10 * eps * widest * lam[..., :1], lam, 0.0)
    r = max(1, int((lam > 0).sum(-1).max())) if lam.numel() else lam.shape[-1]
    # What a first layer of a narrower network has beyond its rank is rounding.
    r = min(r, *(w.shape[-2] for w in layers))
    lam, frames = lam[..., :r], [vh[..., :r, :].mH]
    scale = torch.where(lam > 0, lam, 1.0).unsqueeze(-2)
    for w in layers:
        # Descending columns: what a small lam amplifies is taken out by those before it.
        q, upper = torch.linalg.qr((w @ frames[-1]) / scale)
        frames.append(q * phases(upper.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2))
    return frames, lam
