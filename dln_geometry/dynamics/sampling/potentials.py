"""The measure ``exp(-(beta/kappa) F) dvol_g`` in coordinates in which the volume is flat."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import contract
from dln_geometry.geometry.kernel import log_kernel_of_pairs, power_divided_difference
from dln_geometry.geometry.metric import entropy_slope
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import Depth

__all__ = ["DeepPotential", "Potential"]


class Potential:
    """``V(A, Q)`` of the measure ``exp(-V) dA dQ``, and its gradient in A.

    ``Y = A Q^T`` if the second side of X is not the shorter one, otherwise its transpose; Q is left
    out where it is square.
    """

    def __init__(
        self, loss: Any, weight: float, entropic: tuple[float, float] | None, point: EndToEnd
    ) -> None:
        self.loss, self.weight, self.entropic = loss, weight, entropic
        (m, n), r = point.shape, point.rank
        self.depth = point.depth
        self.swapped = m == r < n
        self.excess = (m if self.swapped else n) - r
        self.root = math.sqrt(point.depth)

    def coordinates(self, point: EndToEnd) -> tuple[Tensor, Tensor]:
        """Return A and Q of a point."""
        rho = self.root * point.s ** (1.0 / point.depth)
        u, v = (point.vh.mT, point.u) if self.swapped else (point.u, point.vh.mT)
        a = u * rho.unsqueeze(-2)
        return (a, v) if self.excess else (a @ v.mT, a.new_zeros(0))

    def increment(self, z: Tensor) -> Tensor:
        """Return what independent normal numbers are as an increment of A."""
        return z

    def size(self, a: Tensor) -> Tensor:
        """Return how far a rotation by a unit angle moves Y, in the mean."""
        return a.square().sum((-2, -1)).mean().sqrt()

    def at(self, a: Tensor, q: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Return ``V``, the drift, ``u, s, v`` of X, and the energy.

        The drift is ``-V'`` but for the repulsion from zero, which is bounded where it passes
        what a step can follow: the Metropolis test makes any drift right.
        """
        depth = self.depth
        u, rho, oh = torch.linalg.svd(a, full_matrices=False)
        lam = rho / self.root
        s = lam**depth
        v = q @ oh.mT if self.excess else oh.mT
        left, right = (v, u) if self.swapped else (u, v)
        energy, gr, gl = contract(self.loss, left * s.unsqueeze(-2), right)
        if self.swapped:
            scaled = torch.where(s > 0, s, math.inf).unsqueeze(-2)
            g = gl / scaled
        else:
            g = gr
        core = u.mT @ g
        # The derivative of Y -> X: divided differences of odd powers.
        even = power_divided_difference(lam, depth)
        both = lam.unsqueeze(-1) + lam.unsqueeze(-2)
        odd = (s.unsqueeze(-1) + s.unsqueeze(-2)) / torch.where(both > 0, both, math.inf)
        moved = 0.5 * (even * (core + core.mT) + odd * (core - core.mT))
        slope = u @ moved
        if a.shape[-2] > a.shape[-1]:
            slope = slope + (g - u @ core) * (lam ** (depth - 1.0)).unsqueeze(-2)
        drift = (-self.weight / self.root) * slope
        value = self.weight * energy
        pull = torch.full_like(rho, float(self.excess))
        log_rho = rho.clamp_min(torch.finfo(rho.dtype).tiny).log()
        value = value - self.excess * log_rho.sum(-1)
        if self.entropic is not None:
            share, excess = self.entropic
            x = s.log()
            r = s.shape[-1]
            i, j = torch.triu_indices(r, r, 1, device=s.device)
            kernel = log_kernel_of_pairs(x[..., i], x[..., j], depth, False)
            value = value - share * (0.5 * kernel.sum(-1) + excess * log_rho.sum(-1))
            safe = s.clamp_min(torch.finfo(s.dtype).tiny ** 0.5)
            pull = pull + share * safe * entropy_slope(safe, depth) * depth + share * excess
        scale = pull * rho / (rho.square() + h * pull).clamp_min(torch.finfo(rho.dtype).tiny)
        drift = (drift + u * scale.unsqueeze(-2)) @ oh
        return value, drift, left, s, right, energy


class DeepPotential:
    """The same at infinite depth, ``V(H, O)`` of ``exp(-V) dH dO`` in ``X = U_0 O exp(H) V_0^T``.

    H is symmetric, O orthogonal; the column and row spaces, those of `point`, stand still. The
    volume of ``g^N`` is the product of Lebesgue's and Haar's: the factors ``s_i^2 - s_j^2`` of
    Lebesgue measure on matrices over the kernel leave ``log s_i - log s_j``.
    """

    def __init__(
        self, loss: Any, weight: float, entropic: tuple[float, float] | None, point: EndToEnd
    ) -> None:
        self.loss, self.weight, self.entropic = loss, weight, entropic
        self.depth = Depth(math.inf)
        self.left, self.right = point.u, point.vh.mT

    def coordinates(self, point: EndToEnd) -> tuple[Tensor, Tensor]:
        """Return H and O of the point that was given."""
        return point.s.log().diag_embed(), torch.eye(
            point.rank, dtype=point.s.dtype, device=point.s.device
        ).expand(*point.s.shape, point.rank)

    def increment(self, z: Tensor) -> Tensor:
        """Return the symmetric matrices with the density ``exp(-|z|^2/2)``."""
        return 0.5 * (z + z.mT)

    def size(self, a: Tensor) -> Tensor:
        """Return how far a unit angle moves X in units of a unit of H."""
        return a.new_ones(())

    def at(self, a: Tensor, q: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Return ``V``, the drift of H, ``u, s, v`` of X, and the energy."""
        x, w = torch.linalg.eigh(a)
        x, w = x.flip(-1), w.flip(-1)
        s, u, v = x.exp(), self.left @ (q @ w), self.right @ w
        energy, gr, _ = contract(self.loss, u * s.unsqueeze(-2), v)
        core = u.mT @ gr
        gap = x.unsqueeze(-1) - x.unsqueeze(-2)
        far = gap.abs() > torch.finfo(x.dtype).eps ** 0.5
        # The derivative of H -> exp(H): divided differences of the exponential.
        slope = (s.unsqueeze(-1) - s.unsqueeze(-2)) / torch.where(far, gap, 1.0)
        slope = torch.where(far, slope, 0.5 * (s.unsqueeze(-1) + s.unsqueeze(-2)))
        drift = (-0.5 * self.weight) * slope * (core + core.mT)
        value = self.weight * energy
        if self.entropic is not None:
            share = self.entropic[0]
            i, j = torch.triu_indices(x.shape[-1], x.shape[-1], 1, device=x.device)
            kernel = log_kernel_of_pairs(x[..., i], x[..., j], self.depth, True)
            value = value - share * 0.5 * kernel.sum(-1)
            # Homogeneous in s: from the largest, so that nothing overflows.
            unit = (x - x[..., :1]).exp().clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
            pull = share * unit * entropy_slope(unit, self.depth)
            drift = drift + pull.diag_embed()
        return value, w @ drift @ w.mT, u, s, v, energy
