r"""Divided differences of ``p(l)`` of second and third order, zeros among the nodes.

As in `differences`, ``p = s^2`` as a function of ``l = N s^{2/N}``. Here all nodes are explicit
and may be zero; nodes that are all or all but one zero, which no curvature needs, give 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.geometry.kernel.depth_kernel import log_kernel_of_pairs
from dln_geometry.geometry.kernel.differences import Differences
from dln_geometry.geometry.kernel.second_difference import log_second_difference

__all__ = ["second_difference", "third_difference"]

# Spread of the ``log p`` below which the series is taken: above, the recursion loses a digit.
_NEAR = 0.5


def second_difference(k: Differences, x: Tensor) -> Tensor:
    """Return ``p[l_1, l_2, l_3]`` at ``x = log s`` of shape (..., 3), descending, shape (...).

    ``-inf`` stands for zero values.
    """
    x1, x2, x3 = x.unbind(-1)
    zeros = torch.isneginf(x).sum(-1)
    y1 = torch.where(zeros > 2, 0.0, x1)
    y2 = torch.where(zeros > 1, 0.0, x2)
    y3 = torch.where(zeros > 0, 0.0, x3)
    log_second = log_second_difference(2.0 * y1, 2.0 * y2, 2.0 * y3, k.depth)
    for one, two in ((y1, y2), (y2, y3), (y1, y3)):
        log_second = log_second + log_kernel_of_pairs(one, two, k.depth, True)
    scale = 1.0 if k.normalized else k.depth**2
    value = scale * torch.exp(log_second)
    if not bool((zeros > 0).any()):
        return value
    if math.isinf(k.depth):
        return torch.where(zeros > 0, 0.0, value)
    power = 2.0 / k.depth
    gap = power * (y1 - y2)
    apart = gap > 0
    gap = torch.where(apart, gap, 1.0)
    exponent = k.depth - 1.0
    slope = torch.where(apart, torch.expm1(-exponent * gap) / torch.expm1(-gap), exponent)
    one_zero = k.unit**2 * torch.exp((exponent - 1.0) * power * y1) * slope
    two_zeros = k.unit**2 * torch.exp((exponent - 1.0) * power * y1)
    value = torch.where(zeros == 1, one_zero, value)
    value = torch.where(zeros == 2, two_zeros, value)
    return torch.where(zeros > 2, 0.0, value)


def third_difference(k: Differences, *nodes: Tensor) -> Tensor:
    """Return ``p[l_1, l_2, l_3, l_4]`` at four broadcast tensors of ``log s``.

    By the recursion over the outer two nodes where they are apart; where all four are close, by
    the Taylor series about their middle, ``sum_k binom(N, k+3) c^{N-3} h_k`` with h the complete
    homogeneous polynomials of ``l/c - 1``.
    """
    x = torch.stack(torch.broadcast_tensors(*nodes), -1).sort(-1, descending=True).values
    zeros = torch.isneginf(x).sum(-1)
    top, bottom = x[..., 0], x[..., 3]
    near = 2.0 * (top - bottom) < _NEAR
    apart = ~near & (zeros < 3)

    safe = torch.where(apart.unsqueeze(-1), x, torch.tensor([0.0, -1.0, -2.0, -3.0]).to(x))
    step = second_difference(k, safe[..., :3]) - second_difference(k, safe[..., 1:])
    first, last = safe[..., 0], safe[..., 3]
    if math.isinf(k.depth):
        far = step / (2.0 * (first - last))
    else:
        power = 2.0 / k.depth
        length = torch.exp(power * first) * -torch.expm1(-power * (first - last)) / k.unit
        far = step / length

    close = _series(k, torch.where(near.unsqueeze(-1), x, 0.0))
    value = torch.where(near, close, far)
    return torch.where(zeros < 3, value, 0.0)


def _series(k: Differences, x: Tensor) -> Tensor:
    centre = 0.5 * (x[..., :1] + x[..., 3:])
    shift = 2.0 * (x - centre)
    inverse = 1.0 / k.depth
    # N (l/c - 1), which has a limit at infinite depth.
    d = shift if math.isinf(k.depth) else torch.expm1(inverse * shift) * k.depth
    terms = 3 + math.ceil(math.log(torch.finfo(x.dtype).eps) / math.log(0.5 * _NEAR))
    # binom(N, 3) / N^3, and on to binom(N, j + 3) / N^{j+3}.
    coefficient = (1.0 - inverse) * (1.0 - 2.0 * inverse) / 6.0
    parts = [torch.ones_like(d[..., 0]) for _ in range(4)]
    total = coefficient * parts[3]
    for j in range(1, terms):
        coefficient *= (1.0 - (j + 2) * inverse) / (j + 3)
        parts[0] = parts[0] * d[..., 0]
        for i in range(1, 4):
            parts[i] = parts[i - 1] + d[..., i] * parts[i]
        total = total + coefficient * parts[3]
    scale = 1.0 if math.isinf(k.depth) else (k.unit * k.depth) ** 3
    return scale * torch.exp((2.0 - 6.0 * inverse) * centre[..., 0]) * total
