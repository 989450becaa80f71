r"""Layers made of scalar modes: chains of numbers ``a_p`` with ``a_{p+1}^2 - a_p^2 = g_p``.

If each moment is diagonal in a basis of its hidden space, a network may be a direct sum of chains
over intervals of the spaces 0, ..., N: a chain over ``[first, last]`` is one direction in each of
these spaces, which W_p maps on one another times a_p, and zero beside. Ends at 0 and at N are free;
at hidden ends the square met is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

_STEPS = 200


@dataclass(frozen=True)
class Chain:
    """A mode over the spaces `first` to ``first + len(squares)``: its directions, its a_p^2."""

    first: int
    places: tuple[int, ...]
    squares: tuple[float, ...]


def through_squares(s: Tensor, sums: Tensor) -> Tensor:
    """Return the squares of modes through all layers, shape (N, r), ``prod_p a_p = s_i``.

    ``a_p^2 = t + sums_p``, `sums` of shape (N, r) the partial sums of the moments from 0 on: t is
    the one root of ``prod_p (t + sums_p) = s^2`` where all squares are at least 0.
    """
    shifts = sums - sums.amin(0)
    # In x = log(t + min sums) the logarithm of the product is convex and increases: Newton's method
    # descends to the root from the right, where no shift is taken into account.
    target = 2.0 * s.log()
    x = target / len(shifts)
    for _ in range(_STEPS):
        root = x.exp()
        terms = root + shifts
        step = (terms.log().sum(0) - target) / (root / terms).sum(0)
        step = torch.where(target.isfinite(), step, 0.0)
        x = x - step
        if bool((step.abs() <= 4 * torch.finfo(x.dtype).eps * (1.0 + x.abs())).all()):
            break
    return x.exp() + shifts


def layers_of_chains(
    chains: Sequence[Chain], frames: Sequence[Tensor], like: Tensor
) -> tuple[Tensor, ...]:
    """Return the layers, in the bases `frames` of the spaces 0, ..., N (square matrices)."""
    layers = []
    for before, after in pairwise(frames):
        layers.append(like.new_zeros(after.shape[-1], before.shape[-1]))
    for chain in chains:
        for k, square in enumerate(chain.squares):
            layers[chain.first + k][chain.places[k + 1], chain.places[k]] = square**0.5
    return tuple(frames[p + 1] @ w @ frames[p].mH for p, w in enumerate(layers))


def scalar_squares(first: int, last: int, lam: Sequence[float]) -> tuple[float, ...] | None:
    """Return the squares of a chain over ``[first, last]`` where the moments are ``lam_p``.

    `None` if there is no such chain: squares must be positive, and 0 at hidden ends. Chains from 0
    to N are left to `through_squares`.
    """
    depth = len(lam) + 1
    rounding = 8 * torch.finfo(torch.float64).eps * sum(abs(x) for x in lam)
    square, squares = 0.0, []
    if first > 0:
        for p in range(first, last):
            square += lam[p - 1]
            squares.append(square)
        closed = last == depth or abs(square + lam[last - 1]) <= rounding
    else:
        for p in range(last, 0, -1):
            square -= lam[p - 1]
            squares.insert(0, square)
        closed = True
    return tuple(squares) if closed and all(x > rounding for x in squares) else None
