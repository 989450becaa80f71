r"""Tangent vectors and covectors in the frames of a point of rank r, and first variations of A.

In the frames of ``X = U Sigma V^T`` a matrix Z has the blocks ``core = U^T Z V`` (r x r),
``left = (1 - U U^T) Z V`` (m x r) and ``right = U^T Z (1 - V V^T)`` (r x n). A tangent vector is
the sum of these; a covector may have a further part, beyond range and corange.

With ``P = X X^T`` and ``Q = X^T X``, a move Y turns ``l(P)`` and ``l(Q)`` (see `Differences`) by

``b_ik = (Y_ik s_k + s_i Y_ki) / a_ik``,  ``b'_kj = (s_k Y_kj + Y_jk s_j) / a_kj``,

and ``dA(G)_ij = sum_k p[l_i, l_k, l_j] (b_ik G_kj + G_ik b'_kj)``, indices running over zeros too.
Where X loses rank, the derivative is the one along the matrices of its rank.

References
----------
Daleckii, Krein 1965; Bhatia, Matrix Analysis, theorem V.3.3 (divided differences).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import Differences, log_kernel_of_log, log_mixed_kernel
from dln_geometry.support import Depth, absolute_square, broadcast_shapes, real_product

Frames = tuple[Tensor, Tensor, Tensor]  # U, s, V^T
# Products of the part beyond range and corange with the right (m x r) and left (r x n) blocks.
Across = tuple[Tensor | None, Tensor | None]


class Blocks(NamedTuple):
    """The three blocks; the outer ones are None where they have no direction or no length."""

    core: Tensor
    left: Tensor | None
    right: Tensor | None


def blocks_of(u: Tensor, vh: Tensor, g: Tensor, frozen: bool = False) -> Blocks:
    """Return the blocks of a matrix, without the outer ones if range and corange are `frozen`."""
    gv = g @ vh.mH
    core = u.mH @ gv
    left = right = None
    if not frozen and u.shape[-2] > u.shape[-1]:
        left = gv - u @ core
    if not frozen and vh.shape[-1] > vh.shape[-2]:
        right = u.mH @ g - core @ vh
    return Blocks(core, left, right)


def tangent_matrix(u: Tensor, vh: Tensor, z: Blocks) -> Tensor:
    """Return the matrix of a tangent vector, ``U core V^T + left V^T + U right``."""
    inside = u @ z.core
    if z.left is not None:
        inside = inside + z.left
    moved = inside @ vh
    return moved if z.right is None else moved + u @ z.right


def weigh_blocks(z: Blocks, inside: Tensor, outside: Tensor) -> Blocks:
    """Multiply the core by `inside` (r x r), the columns and rows beyond it by `outside` (r)."""
    return Blocks(
        z.core * inside,
        None if z.left is None else z.left * outside.unsqueeze(-2),
        None if z.right is None else z.right * outside.unsqueeze(-1),
    )


def combine_blocks(*terms: tuple[float, Blocks]) -> Blocks:
    """Return a linear combination of vectors in the same frames."""

    def total(name: str) -> Any:
        held = [c * part for c, z in terms if (part := getattr(z, name)) is not None]
        return sum(held[1:], held[0]) if held else None

    return Blocks(total("core"), total("left"), total("right"))


def pair_blocks(g: Blocks, z: Blocks) -> Tensor:
    """Return ``<G, Z>``, shape (...)."""
    total = real_product(g.core, z.core).sum((-2, -1))
    for one, two in ((g.left, z.left), (g.right, z.right)):
        if one is not None and two is not None:
            total = total + real_product(one, two).sum((-2, -1))
    return total


def apply_kernel(
    frames: Frames, g: Tensor, depth: Depth, normalized: bool, power: float = 1.0
) -> Tensor:
    """Multiply the eigendirections of the cometric at ``X = U diag(s) V^T`` by ``a^power``."""
    u, s, vh = frames
    if depth == 1.0:
        return g.expand(broadcast_shapes(g.shape, u.shape[:-1] + vh.shape[-1:]))
    x, z = s.log(), blocks_of(u, vh, g, depth.infinite)
    inside = torch.exp(power * log_kernel_of_log(x, depth, normalized))
    if z.left is None and z.right is None:
        return u @ (inside * z.core) @ vh
    outside = torch.exp(power * log_mixed_kernel(x, depth, normalized))
    return tangent_matrix(u, vh, weigh_blocks(z, inside, outside))


def apply(k: Differences, g: Blocks, power: float = 1.0) -> Blocks:
    """Multiply by ``a^power``: the cometric at 1, the metric at -1."""
    return weigh_blocks(g, k.kernel**power, k.mixed**power)


def push(k: Differences, y: Blocks, g: Blocks, across: Across = (None, None)) -> Blocks:
    """Return the tangent blocks of ``dA(G)`` along the move Y.

    `across` holds ``G' Y_right^T`` (m x r) and ``Y_left^T G'`` (r x n), with G' the part of G
    beyond range and corange; None where it is zero.
    """
    core = k.push(y.core, g.core) + k.push(y.core.mH, g.core.mH).mH
    left = right = None
    if y.left is not None and g.left is not None:
        core = core + k.outer_slopes * (y.left.mH @ g.left)
        turn = k.mixed_slopes * y.core
        left = y.left @ (k.outer_slopes * g.core) + g.left @ (turn + turn.mH)
        if across[0] is not None:
            left = left + across[0] * k.turning.unsqueeze(-2)
    if y.right is not None and g.right is not None:
        core = core + k.outer_slopes.mH * (g.right @ y.right.mH)
        turn = k.mixed_slopes.mH * y.core
        right = (turn + turn.mH) @ g.right + (k.outer_slopes.mH * g.core) @ y.right
        if across[1] is not None:
            right = right + across[1] * k.turning.unsqueeze(-1)
    return Blocks(core, left, right)


def push_beyond(k: Differences, y: Blocks, g: Blocks) -> Tensor | None:
    """Return the part of ``dA(G)`` along Y beyond range and corange, (..., m, n), or None."""
    if y.left is None or y.right is None or g.left is None or g.right is None:
        return None
    weight = k.turning.unsqueeze(-2)
    return (y.left * weight) @ g.right + (g.left * weight) @ y.right


def pull(k: Differences, h: Blocks, g: Blocks, across: Across = (None, None)) -> Blocks:
    """Return the gradient in X of ``<H, A_X(G)>`` along the tangent space, G and H covectors.

    `across` holds ``G' H_right^T + H' G_right^T`` (m x r) and ``H_left^T G' + G_left^T H'``
    (r x n), with G' and H' the parts beyond range and corange; None where both are zero.
    """
    core = k.pull(g.core, h.core) + k.pull(g.core.mH, h.core.mH).mH
    left = right = None
    if h.left is not None and g.left is not None:
        both = h.left.mH @ g.left
        core = core + k.mixed_slopes * (both + both.mH)
        left = h.left @ (k.outer_slopes * g.core).mH + g.left @ (k.outer_slopes * h.core).mH
        if across[0] is not None:
            left = left + across[0] * k.turning.unsqueeze(-2)
    if h.right is not None and g.right is not None:
        both = h.right @ g.right.mH
        core = core + k.mixed_slopes.mH * (both + both.mH)
        right = (k.outer_slopes * h.core.mH) @ g.right + (k.outer_slopes * g.core.mH) @ h.right
        if across[1] is not None:
            right = right + across[1] * k.turning.unsqueeze(-1)
    return Blocks(core, left, right)


def squared_length(k: Differences, z: Blocks) -> Tensor:
    """Return ``g(Z, Z)``, shape (...)."""
    total = (absolute_square(z.core) / k.kernel).sum((-2, -1))
    if z.left is not None:
        total = total + (absolute_square(z.left) / k.mixed.unsqueeze(-2)).sum((-2, -1))
    if z.right is not None:
        total = total + (absolute_square(z.right) / k.mixed.unsqueeze(-1)).sum((-2, -1))
    return total
