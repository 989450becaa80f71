r"""Divided differences of ``p(l)`` of third order, zeros among the nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dln_geometry.geometry.kernel.second_differences import depth_growth, sorted_second_difference
from dln_geometry.support import Depth

# Spread of the ``log p`` below which the series is taken: above, the recursion loses a digit.
_NEAR = 0.5


def third_difference(nodes: Sequence[Tensor], depth: Depth, normalized: bool) -> Tensor:
    """Return ``p[l_1, l_2, l_3, l_4]`` at four broadcast tensors of ``log s``.

    By the recursion over the outer two nodes where they are apart; where all four are close, by
    the Taylor series about their middle, ``sum_k binom(N, k+3) c^{N-3} h_k`` with h the complete
    homogeneous polynomials of ``l/c - 1``. ``-inf`` stands for a zero; three zeros or more, which
    no curvature needs, give 0.
    """
    x = torch.stack(torch.broadcast_tensors(*nodes), -1).sort(-1, descending=True).values
    zeros = torch.isneginf(x).sum(-1)
    top, bottom = x[..., 0], x[..., 3]
    near = 2.0 * (top - bottom) < _NEAR
    apart = ~near & (zeros < 3)
    scale = 1.0 if normalized else float(depth)

    safe = torch.where(apart.unsqueeze(-1), x, torch.tensor([0.0, -1.0, -2.0, -3.0]).to(x))
    step = sorted_second_difference(safe[..., :3], depth, normalized)
    step = step - sorted_second_difference(safe[..., 1:], depth, normalized)
    first, last, power = safe[..., 0], safe[..., 3], 2.0 * depth.inverse
    # l_1 - l_4.
    length = torch.exp(power * first) * -depth_growth(2.0 * (last - first), depth) / scale
    close = scale**3 * _nearby(torch.where(near.unsqueeze(-1), x, 0.0), depth)
    value = torch.where(near, close, step / length)
    return torch.where(zeros < 3, value, 0.0)


def _nearby(x: Tensor, depth: Depth) -> Tensor:
    """Return the third difference of close nodes, the metric divided by N, by its series."""
    centre = 0.5 * (x[..., :1] + x[..., 3:])
    # N (l/c - 1).
    d = depth_growth(2.0 * (x - centre), depth)
    terms = 3 + math.ceil(math.log(torch.finfo(x.dtype).eps) / math.log(0.5 * _NEAR))
    inverse = depth.inverse
    # binom(N, 3) / N^3, and on to binom(N, j + 3) / N^{j+3}.
    coefficient = (1.0 - inverse) * (1.0 - 2.0 * inverse) / 6.0
    parts = [torch.ones_like(d[..., 0]) for _ in range(4)]
    total = coefficient * parts[3]
    for j in range(1, terms):
        coefficient *= (1.0 - (j + 2) * inverse) / (j + 3)
        # At integer depths p(l) is a polynomial.
        if coefficient == 0.0:
            break
        parts[0] = parts[0] * d[..., 0]
        for i in range(1, 4):
            parts[i] = parts[i - 1] + d[..., i] * parts[i]
        total = total + coefficient * parts[3]
    return torch.exp((2.0 - 6.0 * inverse) * centre[..., 0]) * total
