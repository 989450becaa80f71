"""The depth that a host's manifold passes to the library."""

from __future__ import annotations

from dln_geometry.support import Depth


def depth_at_rank(depth: Depth, rank: int, shape: tuple[int, int]) -> Depth:
    """Return `depth`, but the next number above 1 for depth 1 below full rank.

    At depth 1 the library takes all matrices, whose straight geodesics leave those of rank r. These
    with the Frobenius metric are the limit of depths above 1: nothing differs from it by more
    than eps there.

    Examples
    --------
    >>> from manifolds._depth import depth_at_rank
    >>> from dln_geometry.support import Depth
    >>> depth_at_rank(Depth(1), 2, (2, 3)), depth_at_rank(Depth(2.7), 1, (2, 3))
    (1.0, 2.7)
    >>> depth_at_rank(Depth(1), 1, (2, 3)) == 1.0 + 2.0**-52
    True
    """
    return Depth(1.0 + 2.0**-52) if depth == 1.0 and rank < min(shape) else depth
