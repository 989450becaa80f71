"""The depth with which a host's manifold asks the library for the geometry of its matrices."""

from __future__ import annotations

import math

from dln_geometry.support import Depth


def depth_at_rank(depth: Depth, rank: int, shape: tuple[int, int]) -> Depth:
    """Return the depth for points of rank r of m x n matrices: `depth`, but for 1 below full rank.

    At depth 1 the library's manifold is that of all matrices, whose geodesics are straight lines
    and leave those of rank r; these, as a submanifold with the Frobenius metric, are the limit of
    depths above 1. The next number above serves as well as the limit: everything that depends on
    the depth is within eps of it there.

    Examples
    --------
    >>> depth_at_rank(Depth(1), 2, (2, 3)), depth_at_rank(Depth(2.7), 1, (2, 3))
    (1.0, 2.7)
    >>> depth_at_rank(Depth(1), 1, (2, 3)) == 1.0 + 2.0**-52
    True
    """
    if depth == 1.0 and rank < min(shape):
        return Depth(math.nextafter(1.0, 2.0))
    return depth
