"""Quantiles of a density of charges, and the velocity of each in the field of all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.kernel import langevin_function
from dln_geometry.support import Depth


class QuantileGrid:
    """Quantiles ``q(tau)`` at midpoints of [0, 1], closer where the density has an edge.

    Near an edge like a square root ``1 - q ~ (R - x)^{3/2}``, so that with ``1 - q ~ (1 - tau)^3``
    x is smooth in tau. At the wall q is odd in tau.
    """

    def __init__(self, points: int, mirrored: bool) -> None:
        self.mirrored, self.step = mirrored, 1.0 / points
        tau = (np.arange(points) + 0.5) / points
        edges = np.arange(points + 1) / points
        if mirrored:
            self.slope = 1.875 * (1 - tau**2) ** 2
        else:
            self.slope = 30 * (tau * (1 - tau)) ** 2
        self.tau, self.q, self.weights = tau, self._share(tau), np.diff(self._share(edges))
        self.bend = np.gradient(self.slope, self.step, edge_order=2)

    def _share(self, t: np.ndarray) -> np.ndarray:
        """Return q of tau."""
        if self.mirrored:
            return 1.875 * (t - 2 * t**3 / 3 + t**5 / 5)
        return t**3 * (10 - 15 * t + 6 * t**2)

    def left_edge(self, x: np.ndarray) -> float:
        """Return the left end of a density with an edge like a square root there."""
        return x[0] - (x[1] - x[0]) / 8

    def seen_by(self, other: QuantileGrid, x: np.ndarray) -> np.ndarray:
        """Return the quantiles of another grid, by a spline in tau."""
        from scipy.interpolate import CubicSpline

        low, high = np.zeros_like(other.q), np.ones_like(other.q)
        for _ in range(60):
            middle = 0.5 * (low + high)
            left = self._share(middle) < other.q
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        ends = self.left_edge(x), x[-1] + (x[-1] - x[-2]) / 8
        tau = np.concatenate([[0.0], self.tau, [1.0]])
        values = np.concatenate([ends[:1], x, ends[1:]])
        found = CubicSpline(tau, values)(high)
        # At jumps the spline may overshoot.
        return found if (np.diff(found) > 0).all() else np.interp(high, tau, values)

    def derivatives(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ``dx/dtau`` and its derivative, by differences of second order."""
        h = self.step
        left = -x[0] if self.mirrored else 4 * x[0] - 6 * x[1] + 4 * x[2] - x[3]
        right = 4 * x[-1] - 6 * x[-2] + 4 * x[-3] - x[-4]
        y = np.concatenate([[left], x, [right]])
        return (y[2:] - y[:-2]) / (2 * h), (y[2:] - 2 * x + y[:-2]) / h**2


class _Wall:
    """An event: the left edge is nearer to zero than the first quantiles are to it."""

    terminal = True

    def __init__(self, grid: QuantileGrid) -> None:
        self.grid = grid

    def __call__(self, t: float, x: np.ndarray) -> float:
        return 2 * self.grid.left_edge(x) - float(np.interp(1.0 / len(x), self.grid.q, x))


class MeanField:
    """The velocity of quantiles, and its integration."""

    def __init__(
        self, grid: QuantileGrid, depth: Depth, loss: Any, beta: float, kappa: float, entropy: bool,
        wall: float,
    ) -> None:  # fmt: skip
        self.grid, self.depth, self.loss = grid, depth, loss
        self.noise, self.pull = kappa / beta, 1.0 / beta if entropy and depth > 1 else 0.0
        # q = (m + n - 2r)/r.
        self.wall = wall

    def integrate(
        self, x: np.ndarray, times: np.ndarray, t_end: float, rtol: float
    ) -> tuple[np.ndarray, tuple[float, np.ndarray] | None]:
        """Return the states at the times; on the way to 0, up to where it is near, and that."""
        from scipy.integrate import solve_ivp

        scale = float(np.abs(x).max())
        free = self.grid.mirrored or self.depth.infinite or self.wall > 0
        found = solve_ivp(
            lambda t, y: self.velocity(y), (0.0, t_end), x, method="BDF", t_eval=times,
            jac=lambda t, y: self.jacobian(y), rtol=rtol, atol=1e-3 * rtol * scale,
            events=None if free else _Wall(self.grid),
        )  # fmt: skip
        if not found.success or not np.isfinite(found.y).all():
            raise ValueError(f"density could not be followed to t_end = {t_end:g}: {found.message}")
        states = np.ascontiguousarray(found.y.T).reshape(-1, len(x))
        if found.status != 1:
            return states, None
        return states, (float(found.t_events[0][0]), found.y_events[0][0])

    def velocity(self, x: np.ndarray) -> np.ndarray:
        """Return v at the quantiles."""
        v = -self._force(x)[0] if self.loss is not None else np.zeros_like(x)
        if self.noise:
            v = v + self.noise * self._repulsion(x)
        if self.pull:
            v = v + self.pull * self._entropic(x)
        return v

    def _repulsion(self, x: np.ndarray) -> np.ndarray:
        grid = self.grid
        gap = x[:, None] - x
        np.fill_diagonal(gap, np.inf)
        total = (grid.weights / gap).sum(-1)
        slope, bend = grid.derivatives(x)
        # What a midpoint sum without its singular term lacks.
        total += grid.step * (0.5 * grid.slope * bend / slope**2 - grid.bend / slope)
        if not self.depth.infinite:
            total += (grid.weights / (x[:, None] + x)).sum(-1) + self.wall / x
        return total

    def _entropic(self, x: np.ndarray) -> np.ndarray:
        """Return the derivative of ``1/2 int log a`` in x, by ``L(z) = coth z - 1/z``."""
        n = float(self.depth)
        logs = torch.from_numpy(x) if self.depth.infinite else torch.from_numpy(n * np.log(x))
        t = logs.unsqueeze(-1) - logs
        size = t.abs().clamp_min(1e-300)
        odd = langevin_function(size)
        if not self.depth.infinite:
            odd = odd - langevin_function(size / n) / n
        share = 0.5 * (1.0 - self.depth.inverse + torch.sign(t) * odd)
        total = (share @ torch.from_numpy(self.grid.weights)).numpy()
        return total if self.depth.infinite else n * total / x

    def _force(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and second derivative of ``e`` in x."""
        y = torch.from_numpy(x).requires_grad_()
        flat = y if self.depth.infinite else y / math.sqrt(self.depth)
        with torch.enable_grad():
            value = self.loss(self.depth.power(flat).unsqueeze(-1))
            if not isinstance(value, Tensor) or value.shape != y.shape:
                raise ValueError("loss must return one value for each row of singular values")
            (first,) = torch.autograd.grad(value.sum(), y, create_graph=True)
            second = torch.zeros_like(first)
            if first.requires_grad:
                (second,) = torch.autograd.grad(first.sum(), y)
        return first.detach().numpy(), second.numpy()

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        """Return the derivative of the velocity; that of the entropy is left out: it is smooth."""
        w, h, n = self.grid.weights, self.grid.step, len(x)
        gap = x[:, None] - x
        np.fill_diagonal(gap, np.inf)
        near = w / gap**2
        j = near.copy()
        own = -near.sum(-1)
        if not self.depth.infinite:
            image = w / (x[:, None] + x) ** 2
            j -= image
            own -= image.sum(-1) + self.wall / x**2
        slope, _ = self.grid.derivatives(x)
        c = 0.5 * self.grid.slope / (slope**2 * h)
        own -= 2 * c
        k = np.arange(n)
        j[k, k] += own
        j[k[1:], k[:-1]] += c[1:]
        j[k[:-1], k[1:]] += c[:-1]
        j *= self.noise
        if self.loss is not None:
            j[k, k] -= self._force(x)[1]
        return j
