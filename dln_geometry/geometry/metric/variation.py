r"""First variations of the cometric in the frames of a point, at any rank, in thin blocks.

With ``P = X X^T`` and ``Q = X^T X``, a move Y turns ``l(P)`` and ``l(Q)`` (see `Differences`) by

``b_ik = (Y_ik s_k + s_i Y_ki) / a_ik``,  ``b'_kj = (s_k Y_kj + Y_jk s_j) / a_kj``,

and ``dA(G)_ij = sum_k p[l_i, l_k, l_j] (b_ik G_kj + G_ik b'_kj)``, indices running over zeros too.
Singular values that are zero may stand among the others: where X loses rank, the derivative is the
one along the matrices of its rank.

References
----------
Daleckii, Krein 1965; Bhatia, Matrix Analysis, theorem V.3.3 (divided differences).
"""

from __future__ import annotations

from torch import Tensor

from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.metric.blocks import Blocks, weigh_blocks

# Products of the part beyond range and corange with the left (r x n) and right (m x r) blocks.
_Across = tuple[Tensor | None, Tensor | None]


def apply(k: Differences, g: Blocks, power: float = 1.0) -> Blocks:
    """Multiply by ``a^power``: the cometric at 1, the metric at -1."""
    return weigh_blocks(g, k.kernel**power, k.mixed**power)


def push(k: Differences, y: Blocks, g: Blocks, across: _Across = (None, None)) -> Blocks:
    """Return the tangent blocks of ``dA(G)`` along the move Y.

    `across` holds ``G' Y_right^T`` (m x r) and ``Y_left^T G'`` (r x n), with G' the part of G
    beyond range and corange; None where it is zero.
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
    """Return the part of ``dA(G)`` along Y beyond range and corange, (..., m, n), or None."""
    if y.left is None or y.right is None or g.left is None or g.right is None:
        return None
    weight = k.turning.unsqueeze(-2)
    return (y.left * weight) @ g.right + (g.left * weight) @ y.right


def pull(k: Differences, h: Blocks, g: Blocks, across: _Across = (None, None)) -> Blocks:
    """Return the gradient in X of ``<H, A_X(G)>`` along the tangent space, G and H covectors.

    `across` holds ``G' H_right^T + H' G_right^T`` (m x r) and ``H_left^T G' + G_left^T H'``
    (r x n), with G' and H' the parts beyond range and corange; None where both are zero.
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
