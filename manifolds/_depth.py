"""At which depth the library is asked for the geometry of the matrices of one rank."""

from __future__ import annotations

import math

__all__ = ["depth_at_rank"]


def depth_at_rank(depth: float, rank: int, shape: tuple[int, int]) -> float:
    """Return the depth to give to a point of rank r of m x n matrices.

    It is `depth` itself except at depth 1 below full rank. There the library's manifold is that of
    all matrices, whose geodesics are straight lines and leave those of rank r; these, as a
    submanifold with the Frobenius metric, are the limit of depths above 1. The next number above
    serves as well as the limit: all that depends on the depth there is within eps of it.

    Parameters
    ----------
    depth : float
        Real depth N >= 1, or ``math.inf``.
    rank : int
        Rank r of the manifold.
    shape : tuple of int
        Shape (m, n).

    Examples
    --------
    >>> depth_at_rank(1.0, 2, (2, 3)), depth_at_rank(2.7, 1, (2, 3))
    (1.0, 2.7)
    >>> depth_at_rank(1.0, 1, (2, 3)) == 1.0 + 2.0**-52
    True
    """
    if depth == 1.0 and rank < min(shape):
        return math.nextafter(1.0, 2.0)
    return depth
