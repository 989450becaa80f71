"""How many functions of the layers the gradient flow of every loss conserves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dln_geometry.support import as_width_sequence

__all__ = ["conserved_functions"]


def conserved_functions(widths: Sequence[int]) -> int:
    """Return the number of independent functions that the flow of every loss of X conserves.

    ``sum_p q_p (2 d_p + 1 - q_p) / 2``, ``q_p = min(d_p, d_{p-1} + d_{p+1})``, over the hidden
    layers, at generic points: that many of the moments, symmetric matrices of size ``d_p`` and
    rank at most ``d_{p-1} + d_{p+1}``, are independent. Nothing else is conserved (a theorem for
    two layers; deeper, the tests hold it against the Lie algebra of the gradient fields), but where
    X is a number: then all losses have the same curves, and all functions but one are conserved.

    Parameters
    ----------
    widths : sequence of int
        ``(d_0, ..., d_N)``.

    Raises
    ------
    TypeError, ValueError
        If the widths are no sequence of at least two positive integers.

    References
    ----------
    Marcotte, Gribonval, Peyré, arXiv 2307.00144 (two layers).

    Examples
    --------
    >>> conserved_functions((3, 2, 4)), conserved_functions((1, 4, 1)), conserved_functions((2, 3))
    (3, 7, 0)
    >>> conserved_functions((1, 2, 2, 1))  # 6 moments and one more
    7
    """
    d = as_width_sequence(widths)
    if d[0] == d[-1] == 1:
        return sum(after * before for before, after in pairwise(d)) - 1
    total = 0
    for p in range(1, len(d) - 1):
        q = min(d[p], d[p - 1] + d[p + 1])
        total += q * (2 * d[p] + 1 - q) // 2
    return total
