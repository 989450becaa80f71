"""Leaves: the layers with given moments, their metric over X, and the volume of gauge orbits.

The gradient flow of every loss of X stays on the leaf of its moments, and moves X by ``-D(G)``,
``D(G) = sum_p A_p A_p^T G B_p^T B_p`` with ``A_p = W_N..W_{p+1}`` and ``B_p = W_{p-1}..W_1``.
Balanced layers are one leaf, on which D is the cometric of X alone; on the others it depends on the
layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import (
    Network,
    at_unit_size,
    by_power_of_two,
    common_exponent,
    is_ordinary,
)
from dln_geometry.support import as_covector


def leaf_metric(factors: Sequence[Any], z: Any) -> Tensor:
    """Return the covector G with ``D(G) = z``, the metric of the leaf over X.

    ``<z, G>`` is the smallest ``sum_p |v_p|^2`` of all moves of the layers that move X by z. At
    depth 2, ``D(G) = W_2 W_2^T G + G W_1^T W_1`` is inverted by two eigendecompositions, else by
    solving ``m n`` equations. On balanced layers it is `metric`.

    Parameters
    ----------
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``, balanced or not, real or complex.
    z : array_like, shape (..., m, n)
        A move of X.

    Raises
    ------
    ValueError
        If some moves of X are out of reach: the layers lose rank.

    References
    ----------
    Menon, arXiv 2411.09004 (the leaves).

    Examples
    --------
    >>> dln.leaf_metric(([[1.0]], [[3.0]]), [[20.0]])  # D = 3^2 + 1^2
    tensor([[2.]])
    """
    network = Network(factors)
    z = as_covector(z, network[0], network.shape, "z", network.batch_shape)
    return at_unit_size(_inverted, 2.0 - 2.0 * len(network), network, (z,))[0]


def _inverted(layers: Sequence[Tensor], vectors: Sequence[Tensor]) -> tuple[Tensor]:
    """Return `leaf_metric` of layers, without checks of z."""
    network, z = Network(layers), vectors[0]
    u, e, v = _eigenvectors(network)
    largest = e.detach().amax(-1 if v is None else (-2, -1), keepdim=True)
    if not bool((e.detach() > 1e3 * torch.finfo(e.dtype).eps * largest).all()):
        raise ValueError(
            "factors must reach all moves of X, got layers that lose rank, with a smallest "
            f"eigenvalue {float(e.detach().min()):.1e}"
        )
    if v is not None:
        return (u @ ((u.mH @ z @ v) / e) @ v.mH,)
    flat = (u.mH @ z.flatten(-2).unsqueeze(-1)).squeeze(-1) / e
    return ((u @ flat.unsqueeze(-1)).squeeze(-1).unflatten(-1, network.shape),)


def _of_unit_size(network: Network) -> tuple[Network, Tensor | float]:
    """Return layers over a power of two, and its logarithm; 0 where squares are in range."""
    if is_ordinary(network):
        return network, 0.0
    size = common_exponent(network)
    return Network([by_power_of_two(w, -size) for w in network]), math.log(2.0) * size


def leaf_log_volume_density(factors: Sequence[Any]) -> Tensor:
    """Return ``-1/2 log det D``, the density of the leaf's metric over X, shape (...).

    ``-inf`` becomes ``inf`` where the layers lose rank, or their sizes differ so much that the
    smallest eigenvalue of D vanishes beside the others. On balanced square layers of full rank it
    is `log_volume_density`. Complex layers have twice the sum. Layers as in `leaf_metric`.

    Examples
    --------
    >>> dln.leaf_log_volume_density(([[1.0]], [[3.0]])).exp().pow(-2).round()
    tensor(10.)
    """
    network, unit = _of_unit_size(Network(factors))
    _, e, v = _eigenvectors(network)
    total = e.log().sum(-1 if v is None else (-2, -1))
    total = total + (2.0 * len(network) - 2.0) * math.prod(network.shape) * unit
    return -0.5 * (1 + network.dtype.is_complex) * total


def _eigenvectors(layers: Network) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return U, the eigenvalues of D, and V: of sides of X at depth 2, else of moves, and None."""
    if len(layers) == 2:
        a, u = torch.linalg.eigh(layers[1] @ layers[1].mH)
        b, v = torch.linalg.eigh(layers[0].mH @ layers[0])
        return u, a.clamp_min(0.0).unsqueeze(-1) + b.clamp_min(0.0).unsqueeze(-2), v
    kind: Any = {"dtype": layers.dtype, "device": layers.device}
    below = [torch.eye(layers.shape[1], **kind)]
    for w in layers[:-1]:
        below.append(w @ below[-1])
    above = torch.eye(layers.shape[0], **kind)
    total: Any = 0.0
    for w, b in zip(reversed(layers), reversed(below), strict=True):
        left, right = above @ above.mH, b.mH @ b
        total = total + torch.einsum("...ij,...lk->...ikjl", left, right)
        above = above @ w
    size = math.prod(layers.shape)
    e, u = torch.linalg.eigh(total.reshape(*total.shape[:-4], size, size))
    return u, e.clamp_min(0.0), None


def orbit_log_volume(factors: Sequence[Any]) -> Tensor:
    r"""Return the logarithm of the Gram determinant's root of hidden rotations, shape (...).

    With the volume of the groups, ``sum_p log vol O(d_p)``, it is the logarithm of the volume of
    ``{(.., Q_p W_p Q_{p-1}^T, ..)}``, and of balanced square layers the `entropy`. At depth 2 it
    is ``1/2 sum_{i<j} log((p_i + p_j)/2)`` with the eigenvalues p of
    ``W_2^T W_2 + W_1 W_1^T``; complex layers, turned by unitary groups, have twice the sum and
    ``1/2 sum_i log p_i``. ``-inf`` where rotations leave the layers as they are.

    Parameters
    ----------
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``, balanced or not, real or complex.

    References
    ----------
    Menon, Yu, arXiv 2509.09088v3 (balanced layers).

    Examples
    --------
    >>> factors = ([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 4.0]])
    >>> dln.orbit_log_volume(factors).exp() ** 2  # ((1 + 9) + (4 + 16)) / 2
    tensor(15.0000)
    """
    network, unit = _of_unit_size(Network(factors))
    f = 1 + network.dtype.is_complex
    turns = sum(f * d * (d - 1) // 2 + (f - 1) * d for d in network.widths[1:-1]) * unit
    if len(network) == 2:
        p = _hidden_squares(*network)
        total = torch.linalg.eigvalsh(p).clamp_min(0.0)
        i, j = torch.triu_indices(p.shape[-1], p.shape[-1], 1, device=p.device)
        pairs = (0.5 * (total[..., i] + total[..., j])).log().sum(-1)
        return 0.5 * f * pairs + (0.5 * total.log().sum(-1) if f == 2 else 0.0) + turns
    moves = []
    for p, (before, after) in enumerate(pairwise(network)):
        for g in _rotations(before.shape[-2], network[0]):
            v = [torch.zeros_like(w) for w in network]
            v[p], v[p + 1] = g @ before, -(after @ g)
            flat = torch.cat([w.flatten(-2) for w in v], -1)
            moves.append(torch.view_as_real(flat.resolve_conj()).flatten(-2) if f == 2 else flat)
    if not moves:
        return network[0].real.new_zeros(network.batch_shape)
    rows = torch.stack(moves, -2)
    return torch.linalg.svdvals(rows).log().sum(-1) + turns


def _hidden_squares(before: Tensor, after: Tensor) -> Tensor:
    """Return ``W_{p+1}^T W_{p+1} + W_p W_p^T``."""
    return after.mH @ after + before @ before.mH


def _rotations(d: int, like: Tensor) -> Tensor:
    """Return an orthonormal basis of the antisymmetric, or anti-Hermitian, matrices, (k, d, d)."""
    i, j = torch.triu_indices(d, d, 1, device=like.device)
    basis = like.new_zeros(len(i), d, d)
    k = torch.arange(len(i), device=like.device)
    basis[k, i, j], basis[k, j, i] = 0.5**0.5, -(0.5**0.5)
    if not like.is_complex():
        return basis
    own = torch.diag_embed(torch.eye(d, dtype=like.dtype, device=like.device))
    return torch.cat((basis, 1j * basis.abs(), 1j * own))


def gauge_eigenvalues(factors: Sequence[Any]) -> Tensor:
    r"""Return the generalised eigenvalues of the moment of two layers, in [-1, 1], ascending.

    Of ``G = W_2^T W_2 - W_1 W_1^T`` against ``P = W_2^T W_2 + W_1 W_1^T``: they are all zero for
    balanced layers. Hidden changes of basis by 1 + A, A antisymmetric and small or not, act on G
    and P by one congruence if ``W_1 -> (1 + A) W_1`` and ``W_2 -> W_2 (1 - A)``: noise along the
    orbits, each step on a straight line, keeps these eigenvalues, and ``|det G|`` grows by
    ``det(1 + A)^2 >= 1``. Such noise does not balance.

    Parameters
    ----------
    factors : sequence of two array_like
        Layers ``(W_1, W_2)``, real or complex, with P invertible.

    Returns
    -------
    Tensor, shape (..., d_1)

    Examples
    --------
    >>> dln.gauge_eigenvalues(([[1.0]], [[3.0]]))  # (9 - 1) / (9 + 1)
    tensor([0.8000])
    """
    network = Network(factors)
    if len(network) != 2:
        raise ValueError(f"factors must be two layers, got {len(network)}")
    before, after = _of_unit_size(network)[0]
    e, q = torch.linalg.eigh(_hidden_squares(before, after))
    if not bool((e.detach() > 10 * torch.finfo(e.dtype).eps * e.detach()[..., -1:]).all()):
        raise ValueError(
            "factors must use every hidden direction, got a smallest eigenvalue "
            f"{float(e.detach().min()):.1e} of W_2^T W_2 + W_1 W_1^T"
        )
    root = q / e.sqrt().unsqueeze(-2)
    one, two = after @ root, root.mH @ before
    return torch.linalg.eigvalsh(one.mH @ one - two @ two.mH)
