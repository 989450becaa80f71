"""Sparse regressions and their solutions by other routes, for the tests of constraints."""

from __future__ import annotations

import torch
from torch import nn

from dln_geometry.learning import dcs_penalty

F64 = torch.float64


def regression(shape, generator, noise=0.3, dtype=F64):
    """Return inputs (n, d) and outputs (n, m) of a sparse linear map of shape (m, d)."""
    m, d = shape
    x = torch.randn(3 * d, d, generator=generator, dtype=dtype)
    w = torch.randn(m, d, generator=generator, dtype=dtype)
    w = torch.where(torch.rand(m, d, generator=generator, dtype=dtype) < 0.4, w, 0.0)
    y = x @ w.mT + noise * torch.randn(3 * d, m, generator=generator, dtype=dtype)
    return x, y


def linear(m, d, generator, dtype=F64):
    layer = nn.Linear(d, m, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(m, d, generator=generator, dtype=dtype))
    return layer


def solve(module, loss, kappa):
    """Minimise a loss plus the decay of the factors, to rounding: LBFGS, then Newton's method."""
    params = list(module.parameters())
    optimiser = torch.optim.LBFGS(
        params, max_iter=3000, max_eval=6000, history_size=50, tolerance_grad=1e-9,
        tolerance_change=0.0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def gradient(**options):
        g = torch.autograd.grad(loss() + dcs_penalty(module, kappa), params, **options)
        return torch.cat([x.flatten() for x in g])

    def closure():
        optimiser.zero_grad()
        value = loss() + dcs_penalty(module, kappa)
        value.backward()
        return value

    optimiser.step(closure)
    for _ in range(3):
        g = gradient(create_graph=True)
        rows = [torch.autograd.grad(x, params, retain_graph=True) for x in g]
        h = torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])
        values, vectors = torch.linalg.eigh((h + h.mT) / 2)
        # Directions that change nothing (the gauge of U V) have no curvature.
        inverse = torch.where(values.abs() > 1e-8 * values.max(), 1 / values, 0.0)
        step = vectors @ (inverse * (vectors.mT @ g.detach()))
        pieces = step.split([p.numel() for p in params])
        with torch.no_grad():
            for p, piece in zip(params, pieces, strict=True):
                p.sub_(piece.reshape(p.shape))
    assert float(gradient().abs().max()) < 1e-12


def ista(x, y, prox, start, steps=20000):
    """Proximal gradient descent on ``1/(2n) |y - x w^T|^2``: the other route."""
    n = x.shape[0]
    h = float(n / torch.linalg.eigvalsh(x.mT @ x)[-1])
    w = start.clone()
    for _ in range(steps):
        before, w = w, prox(w - h * ((w @ x.mT - y.mT) @ x) / n, h)
        if float((w - before).abs().max()) < 1e-14:
            break
    return w


def mean_square(layer, x, y):
    return lambda: (layer(x) - y).square().sum() / (2 * x.shape[0])
