"""Learning coefficients against integrals of exact volumes, and a sampler."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dln_geometry import landscape

F64 = torch.float64


def known(widths, rank):
    return landscape.learning_coefficient(widths, rank)


def test_known_values():
    assert known((4, 3), 2) == (6.0, 1)
    for depth in (2, 3, 5):
        # A product of N numbers.
        assert known((1,) * (depth + 1), 0) == (0.5, depth)
        assert known((1,) * (depth + 1), 1) == (0.5, 1)
    # Wide hidden layers: the product is a submersion almost everywhere.
    assert known((2, 7, 2), 0).value == known((2, 50, 2), 0).value == 2.0


def two_values(d0, d1, d2, log_beta):
    """Return ``E exp(-beta K)`` up to a constant, of Gaussian layers, min(d0, d1) = 2.

    The last layer is integrated exactly, ``det(1 + beta W W^T)^{-d2/2}``; the eigenvalues x of
    ``W W^T`` have the Wishart law. In ``x_2 = x_1 e^{-t}``, by the trapezoidal rule.
    """
    k = abs(d0 - d1)
    x = torch.arange(-90.0, 6.0, 0.2, dtype=F64)
    # Of t the logarithm near 0, t itself far away.
    u = torch.arange(-40.0, 130.0, 0.2, dtype=F64)
    t = torch.nn.functional.softplus(u)
    y = x[:, None] - t
    weight = 0.5 * (k - 1) * (x[:, None] + y) - 0.5 * (x.exp()[:, None] + y.exp())
    weight = weight + x[:, None] + torch.log(-torch.expm1(-t)) + x[:, None] + y
    weight = weight + torch.nn.functional.logsigmoid(u)
    beta = math.exp(log_beta)
    loss = 0.5 * d2 * (torch.log1p(beta * x.exp())[:, None] + torch.log1p(beta * y.exp()))
    return float((weight - loss).exp().sum())


def one_value(d0, d2, log_beta):
    """Return the same with one hidden unit: ``x = |W_1|^2``."""
    x = torch.arange(-120.0, 6.0, 0.02, dtype=F64)
    weight = 0.5 * d0 * x - 0.5 * x.exp()
    return float((weight - 0.5 * d2 * torch.log1p(math.exp(log_beta) * x.exp())).exp().sum())


def three_layers(d1, d2, d3, log_beta):
    """Return the same for widths (1, d1, d2, d3): ``|W_2 W_1|^2`` is a product of two norms."""
    x = torch.arange(-100.0, 6.0, 0.2, dtype=F64)
    weight = [0.5 * d * x - 0.5 * x.exp() for d in (d1, d2)]
    total = weight[0][:, None] + weight[1]
    both = torch.log1p(math.exp(log_beta) * (x[:, None] + x).exp())
    return float((total - 0.5 * d3 * both).exp().sum())


VOLUMES = [
    *(((a, 1, c), lambda b, a=a, c=c: one_value(a, c, b)) for a, c in ((1, 1), (2, 2), (3, 2))),
    *(
        ((d0, d1, d2), lambda b, w=(d0, d1, d2): two_values(*w, b))
        for d0, d1, d2 in ((2, 2, 2), (3, 2, 2), (2, 3, 2), (5, 2, 2), (2, 2, 1))
    ),
    *(
        ((1, *w), lambda b, w=w: three_layers(*w, b))
        for w in ((1, 1, 1), (2, 2, 1), (1, 2, 1), (2, 1, 3))
    ),
]  # fmt: skip


@pytest.mark.parametrize(("widths", "volume"), VOLUMES, ids=[str(w) for w, _ in VOLUMES])
def test_volumes_scale_with_value_and_multiplicity(widths, volume):
    """``beta^lambda E exp(-beta K)`` tends to a polynomial of degree theta - 1 in log beta."""
    value, multiplicity = known(widths, 0)
    logs = [30.0, 32.0, 34.0, 36.0, 38.0]
    terms = [volume(b) * math.exp(value * b) for b in logs]
    scale = terms[-1]
    for _ in range(multiplicity):
        assert abs(terms[-1]) > 1e-5 * scale
        terms = [b - a for a, b in itertools.pairwise(terms)]
    assert all(abs(term) < 1e-4 * scale for term in terms)


@pytest.mark.parametrize(
    ("widths", "rank"), [((3, 2), 1), ((2, 2, 2), 0), ((2, 2, 2), 1), ((1, 2, 2, 1), 0)]
)
def test_the_sampler_finds_the_coefficient(widths, rank, generator):
    layers = []
    for a, b in itertools.pairwise(widths):
        w = torch.zeros(b, a, dtype=F64)
        w[:rank, :rank] = torch.eye(rank)
        layers.append(w)
    beta = 1e4
    found, error = landscape.estimate_learning_coefficient(
        layers, beta=beta, steps=1500, chains=100, generator=generator
    )
    value, multiplicity = known(widths, rank)
    # The first correction is that of the logarithm.
    assert (
        abs(found - value + (multiplicity - 1) / math.log(beta)) < 4 * error + 0.05 * multiplicity
    )


def test_refusals():
    with pytest.raises(ValueError, match="rank must lie between"):
        landscape.learning_coefficient((2, 1, 2), 2)
    with pytest.raises(ValueError, match="beta must be positive"):
        landscape.estimate_learning_coefficient([torch.eye(2)], beta=-1.0)
