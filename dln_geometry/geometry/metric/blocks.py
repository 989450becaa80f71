r"""Tangent vectors and covectors in the frames of a point of rank r, as thin blocks.

In the frames of ``X = U Sigma V^T`` a matrix Z has the blocks ``core = U^T Z V`` (r x r),
``left = (1 - U U^T) Z V`` (m x r) and ``right = U^T Z (1 - V V^T)`` (r x n). A tangent vector is
the sum of these; a covector may have a part beyond range and corange, which is none of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import log_kernel_of_log, log_mixed_kernel
from dln_geometry.support import Depth


class Blocks(NamedTuple):
    """The three blocks; the outer ones are None where they have no direction or no length."""

    core: Tensor
    left: Tensor | None
    right: Tensor | None


def blocks_of(u: Tensor, vh: Tensor, g: Tensor, frozen: bool = False) -> Blocks:
    """Return the blocks of a matrix, without the outer ones if range and corange are `frozen`."""
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
    total = (g.core * z.core).sum((-2, -1))
    for one, two in ((g.left, z.left), (g.right, z.right)):
        if one is not None and two is not None:
            total = total + (one * two).sum((-2, -1))
    return total


def apply_kernel(
    frames: tuple[Tensor, Tensor, Tensor],
    g: Tensor,
    depth: Depth,
    normalized: bool,
    power: float = 1.0,
) -> Tensor:
    """Multiply the eigendirections of the cometric at ``X = U diag(s) V^T`` by ``a^power``."""
    u, s, vh = frames
    if depth == 1.0:
        return g.expand(torch.broadcast_shapes(g.shape, u.shape[:-1] + vh.shape[-1:]))
    x, z = s.log(), blocks_of(u, vh, g, depth.infinite)
    inside = torch.exp(power * log_kernel_of_log(x, depth, normalized))
    if z.left is None and z.right is None:
        return u @ (inside * z.core) @ vh
    outside = torch.exp(power * log_mixed_kernel(x, depth, normalized))
    return tangent_matrix(u, vh, weigh_blocks(z, inside, outside))
