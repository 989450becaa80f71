r"""First variations of the cometric in the frames of a point, at any rank, in thin blocks.

In the frames of ``X = U Sigma V^T`` a tangent vector or a covector has the blocks
``core = U^T Z V`` (r x r), ``left = (1 - U U^T) Z V`` (m x r) and ``right = U^T Z (1 - V V^T)``
(r x n); what lies beyond both is no part of a tangent vector, and of a covector it enters by its
products with these.
With ``P = X X^T`` and ``Q = X^T X``, a move Y turns ``l(P)`` and ``l(Q)`` (see `differences`) by

``b_ik = (Y_ik s_k + s_i Y_ki) / a_ik``,  ``b'_kj = (s_k Y_kj + Y_jk s_j) / a_kj``,

and ``dA(G)_ij = sum_k p[l_i, l_k, l_j] (b_ik G_kj + G_ik b'_kj)``, indices running over zeros too.
Singular values that are zero may stand among the others: where X loses rank, the derivative is the
one along the matrices of its rank.

References
----------
Daleckii, Krein 1965; Bhatia, Matrix Analysis, theorem V.3.3 (divided differences).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dln_geometry.geometry.kernel import Differences

__all__ = [
    "Blocks",
    "apply",
    "blocks_of",
    "combine",
    "pull",
    "push",
    "push_beyond",
    "squared_length",
    "tangent_matrix",
]

# Products of what lies beyond range and corange with the left (r x n) and right (m x r) blocks.
_Across = tuple[Tensor | None, Tensor | None]


class Blocks(NamedTuple):
    """A tangent vector or covector in the frames (U, V) of a point of rank r.

    Attributes
    ----------
    core : Tensor, shape (..., r, r)
    left : Tensor, shape (..., m, r), or None
        Orthogonal to U; None where there is no such direction, or where it has no length.
    right : Tensor, shape (..., r, n), or None
        Orthogonal to V.
    """

    core: Tensor
    left: Tensor | None
    right: Tensor | None


def blocks_of(u: Tensor, vh: Tensor, g: Tensor, frozen: bool = False) -> Blocks:
    """Return the blocks of a matrix.

    Parameters
    ----------
    u : Tensor, shape (..., m, r)
    vh : Tensor, shape (..., r, n)
    g : Tensor, shape (..., m, n)
    frozen : bool
        Leave out the outer blocks: at infinite depth range and corange do not move.
    """
    gv = g @ vh.mT
    core = u.mT @ gv
    left = right = None
    if not frozen and u.shape[-2] > u.shape[-1]:
        left = gv - u @ core
    if not frozen and vh.shape[-1] > vh.shape[-2]:
        right = u.mT @ g - core @ vh
    return Blocks(core, left, right)


def tangent_matrix(u: Tensor, vh: Tensor, z: Blocks) -> Tensor:
    """Return the matrix of a tangent vector, ``U core V^T + left V^T + U right``."""
    inside = u @ z.core
    if z.left is not None:
        inside = inside + z.left
    moved = inside @ vh
    return moved if z.right is None else moved + u @ z.right


def apply(k: Differences, g: Blocks, power: float = 1.0) -> Blocks:
    """Multiply by ``a^power``: the cometric at 1, the metric at -1."""
    mixed = k.mixed**power
    return Blocks(
        g.core * k.kernel**power,
        None if g.left is None else g.left * mixed.unsqueeze(-2),
        None if g.right is None else g.right * mixed.unsqueeze(-1),
    )


def combine(*terms: tuple[float, Blocks]) -> Blocks:
    """Return a linear combination of vectors in the same frames."""
    parts = []
    for name in Blocks._fields:
        held = [(c, getattr(b, name)) for c, b in terms if getattr(b, name) is not None]
        parts.append(sum((c * b for c, b in held[1:]), held[0][0] * held[0][1]) if held else None)
    return Blocks(*parts)


def push(k: Differences, y: Blocks, g: Blocks, across: _Across = (None, None)) -> Blocks:
    """Return the tangent blocks of ``dA(G)`` along Y.

    Parameters
    ----------
    k : Differences
    y : Blocks
        The move.
    g : Blocks
        The covector.
    across : tuple of Tensor
        ``G'  Y_right^T`` (m x r) and ``Y_left^T G'`` (r x n), with G' what of G lies beyond range
        and corange; None where it is zero.
    """
    core = k.push(y.core, g.core) + k.push(y.core.mT, g.core.mT).mT
    left = right = None
    if y.left is not None and g.left is not None:
        core = core + k.outer_slopes * (y.left.mT @ g.left)
        turn = k.mixed_slopes * y.core
        left = y.left @ (k.outer_slopes * g.core) + g.left @ (turn + turn.mT)
        if across[0] is not None:
            left = left + across[0] * k.turning.unsqueeze(-2)
    if y.right is not None and g.right is not None:
        core = core + k.outer_slopes.mT * (g.right @ y.right.mT)
        turn = k.mixed_slopes.mT * y.core
        right = (turn + turn.mT) @ g.right + (k.outer_slopes.mT * g.core) @ y.right
        if across[1] is not None:
            right = right + across[1] * k.turning.unsqueeze(-1)
    return Blocks(core, left, right)


def push_beyond(k: Differences, y: Blocks, g: Blocks) -> Tensor | None:
    """Return what of ``dA(G)`` along Y lies beyond range and corange, (..., m, n), or None."""
    if y.left is None or y.right is None or g.left is None or g.right is None:
        return None
    weight = k.turning.unsqueeze(-2)
    return (y.left * weight) @ g.right + (g.left * weight) @ y.right


def pull(k: Differences, h: Blocks, g: Blocks, across: _Across = (None, None)) -> Blocks:
    """Return the gradient in X of ``<H, A_X(G)>`` along the tangent space.

    Parameters
    ----------
    k : Differences
    h, g : Blocks
        Covectors.
    across : tuple of Tensor
        ``G' H_right^T + H' G_right^T`` (m x r) and ``H_left^T G' + G_left^T H'`` (r x n), with G'
        and H' what lies beyond range and corange; None where both are zero.
    """
    core = k.pull(g.core, h.core) + k.pull(g.core.mT, h.core.mT).mT
    left = right = None
    if h.left is not None and g.left is not None:
        both = h.left.mT @ g.left
        core = core + k.mixed_slopes * (both + both.mT)
        left = h.left @ (k.outer_slopes * g.core).mT + g.left @ (k.outer_slopes * h.core).mT
        if across[0] is not None:
            left = left + across[0] * k.turning.unsqueeze(-2)
    if h.right is not None and g.right is not None:
        both = h.right @ g.right.mT
        core = core + k.mixed_slopes.mT * (both + both.mT)
        right = (k.outer_slopes * h.core.mT) @ g.right + (k.outer_slopes * g.core.mT) @ h.right
        if across[1] is not None:
            right = right + across[1] * k.turning.unsqueeze(-1)
    return Blocks(core, left, right)


def squared_length(k: Differences, z: Blocks) -> Tensor:
    """Return ``g(Z, Z)``, shape (...)."""
    total = (z.core.square() / k.kernel).sum((-2, -1))
    if z.left is not None:
        total = total + (z.left.square() / k.mixed.unsqueeze(-2)).sum((-2, -1))
    if z.right is not None:
        total = total + (z.right.square() / k.mixed.unsqueeze(-1)).sum((-2, -1))
    return total
