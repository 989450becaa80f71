"""Functions of the layers of a network: product, moments, balanced factors, gauges, balancing.

Everywhere `factors` are the layers ``(W_1, ..., W_N)``, input side first, W_p of shape
(..., d_p, d_{p-1}): any sequence of matrices, or a `Network`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points.collapsed import Collapsed
from dln_geometry.geometry.points.end_to_end import EndToEnd, as_point
from dln_geometry.geometry.points.gauges import (
    as_spectrum,
    balanced_chain,
    chain_from_frames,
    haar_frames,
)
from dln_geometry.geometry.points.layers import (
    by_power_of_two,
    chain_svd,
    exponent_of,
    is_ordinary,
    moment_size,
    moments_in_range,
    over_units,
    product_in_range,
)
from dln_geometry.geometry.points.network import Network
from dln_geometry.support import (
    as_count,
    as_float_tensor,
    as_positive,
    as_rank,
    as_width_sequence,
    common_batch,
)


def end_to_end(factors: Sequence[Any]) -> Tensor:
    """Return the end-to-end matrix ``X = W_N ... W_1``, shape (..., d_N, d_0).

    `factors` are the layers, input side first, W_p of shape (..., d_p, d_{p-1}).

    Examples
    --------
    >>> dln.end_to_end(([[2.0]], [[3.0]]))
    tensor([[6.]])
    """
    return product_in_range(Network(factors))


def moments(factors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return the moments ``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T``, p = 1..N-1, (..., d_p, d_p).

    They are conserved by the gradient flow of every loss of the end-to-end matrix, and are all
    zero on the balanced manifold.

    References
    ----------
    Menon, arXiv 2411.09004 (sign); Arora, Cohen, Hazan 2018 (conservation).

    Examples
    --------
    >>> dln.moments(([[2.0]], [[3.0]]))
    (tensor([[5.]]),)
    """
    return moments_in_range(Network(factors))


def is_balanced(factors: Sequence[Any], rtol: float | None = None) -> Tensor:
    """Tell whether all moments vanish relative to the layers, boolean tensor of shape (...).

    ``|G_p|_F <= rtol (|W_{p+1}|_F^2 + |W_p|_F^2)`` for every p; by default `rtol` is 100 machine
    epsilons times the depth.

    Examples
    --------
    >>> dln.is_balanced(([[2.0]], [[2.0]])), dln.is_balanced(([[2.0]], [[3.0]]))
    (tensor(True), tensor(False))
    """
    layers = Network(factors)
    if rtol is None:
        rtol = 100.0 * torch.finfo(layers[0].dtype).eps * len(layers)
    return moment_size(layers) <= as_positive(rtol, "rtol", zero=True)


def balanced_factors(
    point: EndToEnd | Collapsed,
    *,
    widths: Sequence[int] | int | None = None,
    gauge: str | Sequence[Any] | None = None,
    generator: torch.Generator | int | None = None,
) -> Network:
    """Return balanced factors of an end-to-end matrix.

    Differentiable in the matrix of ``EndToEnd.of(x, depth)``: where singular values are equal,
    singular vectors have no derivatives, and those of the factors are right for all functions that
    do not depend on the choice of singular vectors, such as products and moments.

    ``W_p = Q_p Sigma^{1/N} Q_{p-1}^T`` with ``Q_N = U``, ``Q_0 = V`` and hidden gauges ``Q_p``
    with orthonormal columns.

    Parameters
    ----------
    point : EndToEnd or Collapsed
        Its depth must be an integer.
    widths : sequence of int or int, optional
        ``(d_0, ..., d_N)``, or the width of every hidden layer; `None` is ``min(m, n)``.
    gauge : "haar" or sequence of array_like, optional
        `None`: the canonical gauge (first columns of the identity). ``"haar"``: random. Or the
        N - 1 matrices themselves, of shape (..., d_p, r) or (..., d_p, d_p) (first r columns).
    generator : torch.Generator or int, optional
        Source of the random gauge, or its seed; a fresh one if not given.

    References
    ----------
    Menon, arXiv 2411.09004.

    Examples
    --------
    >>> w1, w2, w3 = dln.balanced_factors(dln.EndToEnd.of([[8.0]], 3))
    >>> w1, w2, w3
    (tensor([[2.]]), tensor([[2.]]), tensor([[2.]]))
    """
    p = as_point(point, complex=True)
    return Network.from_layers(balanced_chain(p, widths, gauge, generator))


def gauge_action(factors: Sequence[Any], gauges: Sequence[Any]) -> Network:
    """Act on the hidden layers: ``W_p -> g_p W_p g_{p-1}^{-1}`` with ``g_0 = g_N = 1``.

    The end-to-end matrix is unchanged; orthogonal gauges keep balanced factors balanced. `gauges`
    are N - 1 invertible matrices, g_p of shape (..., d_p, d_p).

    Examples
    --------
    >>> moved = dln.gauge_action(([[2.0]], [[3.0]]), [[[0.5]]])
    >>> tuple(moved), moved.matrix
    ((tensor([[1.]]), tensor([[6.]])), tensor([[6.]]))
    """
    layers = list(Network(factors))
    if isinstance(gauges, Tensor | str | bytes) or not isinstance(gauges, Sequence):
        raise TypeError(f"gauges must be a sequence of matrices, got {type(gauges).__name__}")
    if len(gauges) != len(layers) - 1:
        required = f"one matrix per hidden layer, {len(layers) - 1}"
        raise ValueError(f"gauges must hold {required}, got {len(gauges)}")
    for p, g in enumerate(gauges):
        d = layers[p].shape[-2]
        kind: Any = {"dtype": layers[p].dtype, "device": layers[p].device}
        g = as_float_tensor(g, f"gauges[{p}]", **kind, complex=layers[p].is_complex())
        if g.ndim < 2 or tuple(g.shape[-2:]) != (d, d):
            raise ValueError(f"gauges[{p}] must have shape (..., {d}, {d}), got {tuple(g.shape)}")
        common_batch(**{"factors": layers[p + 1].shape[:-2], "gauges": g.shape[:-2]})
        right, info = torch.linalg.solve_ex(g, layers[p + 1], left=False)
        if bool((info != 0).any()):
            raise ValueError(f"gauges[{p}] must be invertible, got a singular matrix")
        layers[p], layers[p + 1] = g @ layers[p], right
    return Network.from_layers(layers)


def random_balanced(
    widths: Sequence[int],
    *,
    rank: int | None = None,
    scale: float = 1.0,
    spectrum: Any = None,
    batch: Sequence[int] = (),
    generator: torch.Generator | int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Network:
    """Draw a balanced network whose singular vectors of X and hidden gauges are Haar.

    Parameters
    ----------
    widths : sequence of int
        ``(d_0, ..., d_N)``.
    rank : int, optional
        Rank r of X; `None` is the smallest width.
    scale : float
        Every singular value of X, unless `spectrum` is given.
    spectrum : array_like, shape (..., r), optional
        The singular values of X.
    batch : sequence of int
        Leading dimensions.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; a fresh one if not given.
    dtype, device : optional
        Of the result; by default those of `spectrum` if it is an array, else torch's. A complex
        dtype draws the frames from the unitary groups.

    Examples
    --------
    >>> network = dln.random_balanced((3, 5, 4, 2), rank=2, scale=0.5, generator=0)
    >>> [tuple(w.shape) for w in network], dln.is_balanced(network)
    ([(5, 3), (4, 5), (2, 4)], tensor(True))
    >>> network.singular_values
    tensor([0.5000, 0.5000])
    """
    resolved = as_width_sequence(widths)
    r = min(resolved) if rank is None else as_rank(rank, min(resolved), "the smallest width")
    s = as_spectrum(scale, spectrum, r, dtype, device)
    frames = haar_frames(s, resolved, batch, generator, dtype)
    return Network.from_layers(chain_from_frames(frames, s))


def balanced_dimension(widths: Sequence[int], rank: int) -> int:
    """Return the dimension of the balanced manifold: ``r + sum_p (d_p r - r (r+1)/2)``.

    References
    ----------
    Menon, arXiv 2411.09004 (full rank, equal widths: ``d^2 + (N-1) d (d-1)/2``).

    Examples
    --------
    >>> dln.balanced_dimension((3, 3, 3), 3)
    12
    """
    resolved = as_width_sequence(widths)
    r = as_rank(rank, min(resolved), "the smallest width")
    return r + sum(d * r - r * (r + 1) // 2 for d in resolved)


def balance(factors: Sequence[Any], *, sweeps: int = 100) -> Network:
    """Return the point of smallest norm on the fibre of the factors, in the nearest gauge.

    The minimisers of ``sum_p |W_p|_F^2`` with the product X held fixed are the balanced factors
    of X, minimum ``N sum_i s_i^{2/N}``. Among them the gauge nearest to the given factors is
    taken: one orthogonal Procrustes problem at depth 2; above, each hidden gauge solves its own
    against its neighbours, in at most `sweeps` sweeps that never increase the distance. Factors
    that are balanced (`is_balanced`) are returned as they are.

    References
    ----------
    Lindsey, Menon, arXiv 2511.01137.

    Examples
    --------
    >>> factors = [[2.0]], [[0.5]]
    >>> balanced = dln.balance(factors)
    >>> balanced[0], balanced.matrix
    (tensor([[1.]]), tensor([[1.]]))
    """
    layers, sweeps = Network(factors), as_count(sweeps, "sweeps", 0)
    depth = len(layers)
    # Balanced layers hold singular values of X that the product would lose to rounding.
    balanced = is_balanced(layers)[..., None, None]
    if bool(balanced.all()):
        return layers
    turned, own, rise = tuple(layers), tuple(layers), None
    if not is_ordinary(layers):
        # The largest layers decide on the gauge; X is made of layers of unit size each.
        turned = tuple(by_power_of_two(w, -exponent_of(*layers)) for w in layers)
        own, exponents = over_units(layers)
        total = sum(exponents[1:], exponents[0])
        rise = (total / depth).floor()
    u, s, vh = chain_svd(own)
    if rise is not None:
        s = by_power_of_two(s, total - depth * rise, 1)
    root = s ** (1.0 / depth)
    frames = [vh.mH, u]
    for w in own[:-1]:
        # Exact where the factors are balanced, at every rank.
        frames.insert(-1, polar(w @ (frames[-2] * root.unsqueeze(-2))))
    eps = torch.finfo(s.dtype).eps
    for _ in range(sweeps if depth > 2 else 1):
        moved = torch.zeros_like(s[..., :1])
        for p in range(1, depth):
            target = turned[p - 1] @ frames[p - 1] + turned[p].mH @ frames[p + 1]
            frame = polar(target * root.unsqueeze(-2))
            # Columns of zero modes are arbitrary: do not count how they move.
            change = ((frame - frames[p]) * root.unsqueeze(-2)).abs().amax((-2, -1))
            moved = torch.maximum(moved, change.unsqueeze(-1))
            frames[p] = frame
        if bool((moved <= 10 * eps * root.amax(-1, keepdim=True)).all()):
            break
    made = chain_from_frames(frames, s)
    if rise is not None:
        made = tuple(by_power_of_two(w, rise) for w in made)
    return Network.from_layers(
        torch.where(balanced, w, new) for w, new in zip(layers, made, strict=True)
    )


def orthonormalized(frame: Tensor, steps: int = 1) -> Tensor:
    """Return a nearly orthonormal frame after Newton-Schulz steps: each squares its defect."""
    for _ in range(steps):
        frame = 1.5 * frame - 0.5 * frame @ (frame.mH @ frame)
    return frame


def polar(a: Tensor) -> Tensor:
    """Return the orthonormal frame nearest to `a`, shape (..., d, r) with d >= r."""
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    return u @ vh
