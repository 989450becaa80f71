"""Networks, draws and frames for the tests of projections."""

from __future__ import annotations

import itertools

import pytest
import torch

import dln_geometry as dln

# Widths (d_0, ..., d_N), rank and spectrum of X: rectangular, wide and narrow hidden layers,
# rank-deficient, equal and nearly equal spectra, one to eight layers.
NETWORKS = [
    ((4, 3), 3, (1.7, 0.8, 0.3)),
    ((4, 5), 2, (1.1, 1.1)),
    ((3, 3, 3), 3, (1.9, 1.0, 0.4)),
    ((3, 5, 4), 2, (1.3, 1.3 - 1e-9)),
    ((4, 3, 5, 2), 2, (2.1, 0.6)),
    ((4, 3, 5, 4), 2, (0.7, 0.7)),
    ((3, 3, 3, 3), 3, (1.4, 1.4, 0.2)),
    ((3, 4, 2, 2, 5, 3), 1, (1.6,)),
    ((3, 3, 4, 3, 3, 4), 3, (1.2, 0.5, 1e-3)),
    ((3, 2, 2, 3, 2, 2, 2, 2, 3), 2, (1.5, 0.01)),
]

IDS = ["x".join(map(str, widths)) + f"-r{r}" for widths, r, _ in NETWORKS]

network = pytest.mark.parametrize(("widths", "rank", "spectrum"), NETWORKS, ids=IDS)


def draw(widths, rank, spectrum, generator, dtype=torch.float64, batch=()):
    return dln.random_balanced(
        widths, rank=rank, spectrum=spectrum, batch=batch, generator=generator, dtype=dtype
    )


def ambient(factors, generator):
    return tuple(
        torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.dtype) for w in factors
    )


def flat(v, dims=2):
    return torch.cat([a.flatten(-dims) for a in v], -1)


def condition(spectrum, depth):
    """Return the condition number of a layer: frames are found by dividing by lam."""
    return (max(spectrum) / min(spectrum)) ** (1 / depth)


def numerical_tangent(widths, rank, factors):
    """Return an orthonormal basis, in rows, of the tangent space, by a Jacobian.

    The chart is ``W_p = Q_p S Q_{p-1}^T`` with S symmetric, which is regular at equal spectra.
    """
    frames, lam = [], None
    for w in factors:
        u, lam, vh = torch.linalg.svd(w)
        frames = frames or [vh[:rank].mT]
        frames.append(w @ frames[-1] / lam[:rank])

    def chart(theta):
        turned, start = [], 0
        for q, d in zip(frames, widths, strict=True):
            a = theta[start : start + d * d].reshape(d, d)
            turned.append(torch.linalg.matrix_exp(a - a.mT) @ q)
            start += d * d
        b = theta[start:].reshape(rank, rank)
        middle = torch.diag(lam[:rank]) + b + b.mT
        layers = [b @ middle @ a.mT for a, b in itertools.pairwise(turned)]
        return flat(layers)

    size = sum(d * d for d in widths) + rank**2
    jacobian = torch.autograd.functional.jacobian(chart, torch.zeros(size, dtype=torch.float64))
    u, s, _ = torch.linalg.svd(jacobian, full_matrices=False)
    return u[:, s > 1e-10 * s[0]].mT
