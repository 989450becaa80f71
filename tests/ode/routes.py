"""Equations for the tests of the integrators, and a run of equal steps."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp

from dln_geometry.ode import (
    METHODS,
    BlockNorms,
    ChebyshevStepper,
    ExplicitStepper,
    Rosenbrock,
    RosenbrockStepper,
)

# A pendulum with friction and a drive, in three unknowns: nonlinear, non-autonomous, generic.
DRIVE = 0.7


def pendulum(t, y, out):
    q, p, z = y.unbind(-1)
    out[:, 0] = p
    out[:, 1] = -torch.sin(q) - 0.1 * p + DRIVE * torch.cos(1.3 * t)
    out[:, 2] = q * p - 0.5 * z
    return torch.stack([q * q + p * p, z], dim=-1)


def pendulum_numpy(t, y):
    q, p, z = y
    return [p, -np.sin(q) - 0.1 * p + DRIVE * np.cos(1.3 * t), q * p - 0.5 * z]


START = torch.tensor([[1.2, -0.4, 0.3]], dtype=torch.float64)


def pendulum_exact(t, start=START):
    run = solve_ivp(
        pendulum_numpy, (0, t), start[0].numpy(), method="DOP853", rtol=3e-14, atol=1e-15
    )
    return run.y[:, -1]


def rotation(t, y, out):
    out[:, 0], out[:, 1] = -y[:, 1], y[:, 0]
    return (y.norm(dim=1, keepdim=True) - 1).abs()


class Decay:
    """y' = -rates (y - target), counting the calls."""

    def __init__(self, rates, target=0.0):
        self.rates, self.target, self.calls = rates, target, 0

    def __call__(self, t, y, out):
        self.calls += 1
        torch.mul(y - self.target, -self.rates, out=out)
        return out.norm(dim=-1, keepdim=True)


class Chain:
    """The gradient flow of 1/2 c |Dy|^2 + |y|^4/4 - |y|^2/2: a reaction and diffusion chain."""

    def __init__(self, n, diffusion, reaction=1.0):
        self.c, self.reaction, self.calls = diffusion * (n + 1) ** 2, reaction, 0

    def __call__(self, t, y, out):
        self.calls += 1
        torch.mul(y, 1 - y * y, out=out)
        out.mul_(self.reaction).add_(y, alpha=-2 * self.c)
        out[:, 1:].add_(y[:, :-1], alpha=self.c)
        out[:, :-1].add_(y[:, 1:], alpha=self.c)

    def jacobian_at_zero(self, n):
        laplace = torch.diag(torch.full((n,), -2.0, dtype=torch.float64))
        off = torch.ones(n - 1, dtype=torch.float64)
        laplace += torch.diag(off, 1) + torch.diag(off, -1)
        return self.reaction * torch.eye(n, dtype=torch.float64) + self.c * laplace


def rough_start(n, batch=1):
    x = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]
    waves = [0.3 * torch.sin(math.pi * k * x) / k for k in (1, 3, 25)]
    return torch.stack([sum(waves) * (1 + 0.3 * i) for i in range(batch)])


def relative_error(y, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return float((y.double() - expected).norm() / expected.norm())


def chain_numpy(field, y):
    out = field.reaction * (y - y**3) - 2 * field.c * y
    out[1:] += field.c * y[:-1]
    out[:-1] += field.c * y[1:]
    return out


def fixed_steps(field, y0, t_end, n, method):
    """Integrate in `n` equal steps: no error control, and the number of stages as declared."""
    y, norms = y0.clone(), BlockNorms([y0.shape[1]])
    if isinstance(method, str):
        stepper = ExplicitStepper(METHODS[method], field, y, norms)
    elif isinstance(method, Rosenbrock):
        stepper = RosenbrockStepper(method, field, y, norms)
    else:
        stepper = ChebyshevStepper(method, field, y, norms)
    field(y.new_zeros(len(y)), y, stepper.f)
    h = np.full(len(y), t_end / n)
    for step in range(n):
        stepper.step(np.full(len(y), step * t_end / n), h, y)
        y.copy_(stepper.y_new)
        stepper.f.copy_(stepper.f_new)
        if isinstance(stepper, RosenbrockStepper):
            stepper.commit(True)
    return y


def interrupted(field, after):
    """Return the field with a keyboard interrupt at its call number `after`."""
    calls = 0

    def write(t, y, out):
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        return field(t, y, out)

    return write
