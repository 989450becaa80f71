"""Losses with their plain formulas, one entry at a time, and points to take them at."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from dln_geometry import losses

M, N = 7, 5
DTYPES = [torch.float32, torch.float64]
SQUARE = [[1.0, 2.0], [3.0, 4.0]]
BATCHES = [(), (3,), (2, 3)]
KINDS = ["quadratic", "completion", "sensing", "few_data", "many_data", "callable"]
KINDS += ["weighted", "logistic", "poisson"]


def randn(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def case(kind, generator, dtype=torch.float64, batch=()):
    """Return a loss and the plain formula of one matrix and the data's own batch index."""
    rand = lambda *shape: randn(generator, *shape, dtype=dtype)  # noqa: E731
    if kind == "quadratic":
        y = rand(*batch, M, N)
        return losses.Quadratic(
            y
        ), lambda x, b: sum((x[i, j] - y[b][i, j]) ** 2 for i in range(M) for j in range(N)) / 2
    if kind == "completion":
        places = torch.randperm(M * N, generator=generator)[:13].tolist()
        rows, cols = [p // N for p in places], [p % N for p in places]
        v = rand(*batch, 13)
        return (
            losses.Completion(rows, cols, v, (M, N)),
            lambda x, b: (
                sum(
                    (x[i, j] - v[b][e]) ** 2
                    for e, (i, j) in enumerate(zip(rows, cols, strict=True))
                )
                / 2
            ),
        )
    if kind in ("weighted", "logistic", "poisson"):
        return entry_case(kind, rand, generator, batch)
    if kind == "sensing":
        a, v = rand(6, M, N), rand(*batch, 6)
        return losses.Sensing(
            a, v
        ), lambda x, b: sum((torch.trace(a[k].T @ x) - v[b][k]) ** 2 for k in range(6)) / 2
    if kind == "callable":
        return losses.from_callable(
            lambda x: (x.sin() @ x.T).square().sum()
        ), lambda x, b: (x.sin() @ x.T).square().sum()
    k = 3 if kind == "few_data" else 20
    z, y = rand(*batch, k, N), rand(*batch, k, M)
    return losses.Regression(
        z, y
    ), lambda x, b: sum((x @ z[b][i] - y[b][i]).square().sum() for i in range(k)) / 2


def entry_case(kind, rand, generator, batch):
    """Losses of single entries, with weights of which one is 0."""
    places = torch.randperm(M * N, generator=generator)[:13].tolist()
    rows, cols = [p // N for p in places], [p % N for p in places]
    weights, offsets, v = rand(13).abs(), rand(*batch, 13), rand(*batch, 13)
    weights[4] = 0.0
    if kind == "weighted":
        loss = losses.Completion(rows, cols, v, (M, N), weights=weights)
        one = lambda z, y: (z - y) ** 2 / 2  # noqa: E731
        offsets = torch.zeros_like(offsets)
    elif kind == "logistic":
        v = v.sigmoid()
        loss = losses.Logistic(rows, cols, v, (M, N), weights=weights, offsets=offsets)
        one = lambda z, y: (1 + z.exp()).log() - y * z  # noqa: E731
    else:
        v = v.abs().round()
        loss = losses.Poisson(rows, cols, v, (M, N), weights=weights, offsets=offsets)
        one = lambda z, y: z.exp() - y * z  # noqa: E731
    entries = list(enumerate(zip(rows, cols, strict=True)))
    return loss, lambda x, b: sum(
        weights[e] * one(x[i, j] + offsets[b][e], v[b][e]) for e, (i, j) in entries
    )


def plain(formula, x):
    """Return values and gradients of the plain formula, one matrix after the other."""
    values, gradients = x.new_empty(x.shape[:-2]), torch.empty_like(x)
    for b in np.ndindex(*x.shape[:-2]):
        leaf = x[b].detach().clone().requires_grad_()
        value = formula(leaf, b)
        values[b] = value.detach()
        (gradients[b],) = torch.autograd.grad(value, leaf)
    return values, gradients


def thin(generator, rank, dtype=torch.float64, batch=()):
    """Return two thin matrices that are no balanced pair."""
    draw = {"left": (M, rank), "right": (N, rank)}
    return SimpleNamespace(
        **{name: randn(generator, *batch, *s, dtype=dtype) for name, s in draw.items()}
    )


def as_strided(g):
    """Return a dense or sparse gradient as a dense matrix."""
    return g if g.layout == torch.strided else g.to_dense()


class Quartic:
    """A user's own loss."""

    shape = (M, N)

    def __init__(self, target):
        self.target = target

    def value(self, x):
        return (losses.as_dense(x) - self.target).pow(4).sum((-2, -1)) / 4

    def gradient(self, x):
        return (losses.as_dense(x) - self.target).pow(3)
