"""Losses, starts and independent integrations for the tests of flows and engines."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry import losses

F64 = torch.float64
SPECTRUM = [1.3, 1.3, 0.7, 0.4, 0.2]


def quadratic(generator, shape=(6, 5)):
    return losses.Quadratic(torch.randn(shape, generator=generator, dtype=F64))


def start(generator, depth, rank=5, shape=(6, 5)):
    return dln.Collapsed.random(
        shape, rank, depth, spectrum=SPECTRUM[:rank], generator=generator, dtype=F64
    )


def scipy_flow(velocity, y0, t, rtol=1e-12):
    """Integrate tensors by scipy's DOP853."""
    shapes = [y.shape for y in y0]

    def unpack(flat):
        parts = torch.from_numpy(np.asarray(flat)).split([s.numel() for s in shapes])
        return [part.view(s) for part, s in zip(parts, shapes, strict=True)]

    def rhs(_, flat):
        return torch.cat([v.reshape(-1) for v in velocity(unpack(flat))]).numpy()

    flat = torch.cat([y.reshape(-1) for y in y0]).numpy()
    solution = solve_ivp(rhs, (0, t), flat, method="DOP853", rtol=rtol, atol=1e-14)
    return unpack(solution.y[:, -1])


def layer_velocity(loss):
    """Return the upstairs field by autograd of the product: no formula of ours."""

    def velocity(factors):
        with torch.enable_grad():
            leaves = [w.clone().requires_grad_() for w in factors]
            x = leaves[0]
            for w in leaves[1:]:
                x = w @ x
            grads = torch.autograd.grad(loss.value(x), leaves)
        return [-g for g in grads]

    return velocity


def relative(x, y):
    return float(torch.linalg.matrix_norm(x - y) / torch.linalg.matrix_norm(y))


def layers_of(widths, generator, batch=(), dtype=torch.float64):
    return tuple(
        torch.randn(*batch, after, before, generator=generator, dtype=torch.float64).to(dtype)
        / math.sqrt(before)
        for before, after in pairwise(widths)
    )
