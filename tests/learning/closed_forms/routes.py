"""Networks, losses and their general routes, which the tests of closed forms share."""

from __future__ import annotations

from itertools import pairwise

import torch

from dln_geometry.learning import DeepLinear, functionalize

F64 = torch.float64


WIDTHS = [(3, 2), (4, 3, 2), (2, 5, 3), (3, 4, 2, 5), (2, 3, 3, 1, 4)]


def draw(widths, generator, scale=0.7, dtype=F64):
    """Layers that are not balanced."""
    return tuple(
        scale * torch.randn(b, a, generator=generator, dtype=F64).to(dtype)
        for a, b in pairwise(widths)
    )


def end_to_end_loss(widths, generator):
    a, b = (torch.randn(widths[-1], widths[0], generator=generator, dtype=F64) for _ in range(2))
    return lambda x: (a.to(x) * (x + b.to(x)).sin()).sum()


def as_params(layers):
    return {f"weights.{p}": w for p, w in enumerate(layers)}


def upstairs(loss, widths, weight_decay=0.0):
    """The same loss as a function of the parameters of a `DeepLinear`, decay included."""
    module = DeepLinear(widths, bias=False, dtype=F64)
    whole, _ = functionalize(module, lambda x: loss(x.mT), torch.eye(widths[0], dtype=F64))

    def total(params):
        size = sum(w.square().sum() for w in params.values())
        return whole(params) + weight_decay / 2 * size

    return total


def raw_moments(layers):
    return tuple(
        layers[p + 1].mT @ layers[p + 1] - layers[p] @ layers[p].mT for p in range(len(layers) - 1)
    )
