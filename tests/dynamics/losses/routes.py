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
KINDS += ["weighted", "logistic", "poisson", "huber", "quartic", "power_data"]
# Every kind that knows the mean, divided by the number of its terms.
MEANS = [kind for kind in KINDS if kind != "callable"]
KINDS += [f"mean_{kind}" for kind in MEANS]


def randn(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def case(kind, generator, dtype=torch.float64, batch=()):
    """Return a loss and the plain formula of one matrix and the data's own batch index."""
    if kind.startswith("mean_"):
        return mean_case(kind.removeprefix("mean_"), generator, dtype, batch)
    if kind in ("huber", "quartic", "power_data"):
        return element_case(kind, generator, dtype, batch)
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


def element_case(kind, generator, dtype, batch):
    """Losses entry by entry of a dense residual, with a power that is no whole number."""
    k = 9 if kind == "power_data" else M
    y = randn(generator, *batch, k, M if kind == "power_data" else N, dtype=dtype)
    if kind == "huber":
        one = lambda r: torch.where(r.abs() < 0.7, r**2 / 2, 0.7 * r.abs() - 0.7**2 / 2)  # noqa: E731
        return losses.Huber(y, 0.7), lambda x, b: one(x - y[b]).sum()
    if kind == "quartic":
        return losses.LpNorm(y, 4), lambda x, b: ((x - y[b]) ** 4).sum() / 4
    z = randn(generator, *batch, k, N, dtype=dtype)
    return (
        losses.LpNorm(y, 2.6, inputs=z),
        lambda x, b: sum((x @ z[b][i] - y[b][i]).abs().pow(2.6).sum() for i in range(k)) / 2.6,
    )


def terms_of(loss):
    """Return the number of summands of a loss, weighted by their weights."""
    if isinstance(loss, losses.Completion):
        return len(loss.rows) if loss.weights is None else float(loss.weights.sum())
    if isinstance(loss, losses.Sensing):
        return len(loss.operators)
    data = loss.outputs if type(loss) is losses.Regression else loss.target
    return data.shape[-2] * data.shape[-1]


def mean_case(kind, generator, dtype, batch):
    """The same loss, divided by the number of its terms."""
    loss, formula = case(kind, generator, dtype, batch)
    copies = {
        "Quadratic": lambda: losses.Quadratic(loss.target, reduction="mean"),
        "Sensing": lambda: losses.Sensing(loss.operators, loss.values, reduction="mean"),
        "Regression": lambda: losses.Regression(loss.inputs, loss.outputs, reduction="mean"),
        "Huber": lambda: losses.Huber(loss.target, loss.delta, reduction="mean"),
        "LpNorm": lambda: losses.LpNorm(loss.target, loss.p, inputs=loss.inputs, reduction="mean"),
    }

    def entries():
        offsets = {} if kind in ("completion", "weighted") else {"offsets": loss.offsets}
        places = loss.rows, loss.cols, loss.values, (M, N)
        return type(loss)(*places, weights=loss.weights, **offsets, reduction="mean")

    mean = copies.get(type(loss).__name__, entries)()
    return mean, lambda x, b: formula(x, b) / terms_of(loss)


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
