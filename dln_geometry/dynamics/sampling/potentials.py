"""The measure ``exp(-(beta/kappa) F) dvol_g`` in coordinates in which the volume is flat."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import contract
from dln_geometry.dynamics.noise import FlatCoordinates
from dln_geometry.geometry.kernel import log_kernel_of_pairs
from dln_geometry.geometry.metric import entropy_slope
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import absolute_square, field_dimension


class Potential:
    """``V(A, Q)`` of the measure ``exp(-V) dA dQ``, and its gradient in A.

    ``Y = A Q^T``, or its transpose if ``m = r < n``; there is no Q if it would be square.

    At infinite depth A is the symmetric H and Q the orthogonal O of ``X = U_0 O exp(H) V_0^T``; the
    column and row spaces stand still. The volume of ``g^N`` is the product of Lebesgue's and
    Haar's: the factors ``s_i^2 - s_j^2`` of Lebesgue measure on matrices over the kernel leave
    ``log s_i - log s_j``.

    Over the complex numbers the transpose is the adjoint, H is Hermitian, and O unitary.

    `weight` is ``beta / kappa``; `entropic` is ``1 / kappa`` and ``sum_p (d_p - r)`` over the
    hidden layers, if the entropy acts; `point` is the start of the chain.
    """

    def __init__(
        self, loss: Any, weight: float, entropic: tuple[float, float] | None, point: EndToEnd
    ) -> None:
        self.loss, self.weight, self.entropic = loss, weight, entropic
        (m, n), r, self.depth = point.shape, point.rank, point.depth
        self.flat = FlatCoordinates(point.depth)
        self.swapped = m == r < n and not self.depth.infinite
        self.index = field_dimension(None, point.dtype)
        self.excess = 0 if self.depth.infinite else (m if self.swapped else n) - r
        self.spaces = point.u, point.vh.mH

    def coordinates(self, point: EndToEnd) -> tuple[Tensor, Tensor]:
        """Return A and Q of the start."""
        rho = self.flat.of(point.s)
        if self.depth.infinite:
            a = rho.diag_embed().to(point.dtype)
            return a, torch.eye(point.rank, dtype=a.dtype, device=a.device).expand_as(a)
        u, v = (point.vh.mH, point.u) if self.swapped else (point.u, point.vh.mH)
        a = u * rho.unsqueeze(-2)
        return (a, v) if self.excess else (a @ v.mH, a.new_zeros(0))

    def increment(self, z: Tensor) -> Tensor:
        """Turn standard normal numbers into an increment of A of density ``exp(-|dA|^2/2)``."""
        return 0.5 * (z + z.mH) if self.depth.infinite else z

    def size(self, a: Tensor) -> Tensor:
        """Return how far rotations by a unit angle move Y, in the mean."""
        if self.depth.infinite:
            return a.real.new_ones(())
        return absolute_square(a).sum((-2, -1)).mean().sqrt()

    def at(self, a: Tensor, q: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Return ``V``, the drift, ``u, s, v`` of X, and the energy.

        The drift is ``-V'``, but the repulsion from zero at finite depth is bounded where a step
        cannot follow it: the Metropolis test corrects any drift.
        """
        deep = self.depth.infinite
        if deep:
            rho, w = torch.linalg.eigh(a)
            rho, w = rho.flip(-1), w.flip(-1)
            u, v, oh = self.spaces[0] @ (q @ w), self.spaces[1] @ w, w.mH
        else:
            u, rho, oh = torch.linalg.svd(a, full_matrices=False)
            v = q @ oh.mH if self.excess else oh.mH
        s = self.flat.values(rho)
        left, right = (v, u) if self.swapped else (u, v)
        energy, g, gl = contract(self.loss, left * s.unsqueeze(-2), right)
        if self.swapped:
            g = gl / torch.where(s > 0, s, math.inf).unsqueeze(-2)
        core = u.mH @ g
        sums, slopes = self.flat.weights(rho, s)
        density, pull = self._repulsion(rho, s)
        value = self.weight * energy - density
        if deep:
            drift = (-0.5 * self.weight) * slopes * (core + core.mH)
            return value, w @ (drift + pull.diag_embed()) @ w.mH, left, s, right, energy
        slope = u @ (0.5 * (slopes * (core + core.mH) + sums * (core - core.mH)))
        if a.shape[-2] > a.shape[-1]:
            power = (rho / self.flat.scale) ** (self.depth - 1.0)
            slope = slope + (g - u @ core) * power.unsqueeze(-2)
        drift = (-self.weight / self.flat.scale) * slope
        bounded = pull * rho / (rho.square() + h * pull).clamp_min(torch.finfo(rho.dtype).tiny)
        return value, (drift + u * bounded.unsqueeze(-2)) @ oh, left, s, right, energy

    def _repulsion(self, rho: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density of wall and entropy, (...), and its derivative, (..., r).

        The derivative in ``log rho``, at infinite depth in rho.
        """
        deep, tiny, f = self.depth.infinite, torch.finfo(rho.dtype).tiny, self.index
        log_rho = rho if deep else rho.clamp_min(tiny).log()
        density = f * self.excess * log_rho.sum(-1)
        pull = torch.full_like(rho, float(f * self.excess))
        if self.entropic is None:
            return density, pull
        share, excess = self.entropic
        x, r = rho if deep else s.log(), s.shape[-1]
        i, j = torch.triu_indices(r, r, 1, device=s.device)
        kernel = log_kernel_of_pairs(x[..., i], x[..., j], self.depth, deep)
        # Of complex orbits also the phases: half the kernel's diagonal.
        phases = (f - 1) * (1.0 if deep else self.depth - 1.0)
        density = density + share * (0.5 * f * kernel.sum(-1) + (excess + phases) * log_rho.sum(-1))
        # Homogeneous in s at infinite depth: divide by the largest to avoid overflow.
        safe = ((x - x[..., :1]).exp() if deep else s).clamp_min(tiny**0.5)
        slope = f * safe * entropy_slope(safe, self.depth) * (1.0 if deep else self.depth)
        return density, pull + share * (slope + excess + phases)
