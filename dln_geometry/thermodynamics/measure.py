"""The measure whose mass is the partition function, in the coordinates ``lam = s^{1/N}``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import log_kernel_of_pairs
from dln_geometry.support import Depth

FIELDS = {"real": 1, "complex": 2, "quaternion": 4}


@dataclass(frozen=True)
class SpectralMeasure:
    r"""``vol(O_X)^{1/kappa} dvol_g`` on the m x n matrices of rank r over a field of dimension f.

    The singular values have the density, with ``lam = s^{1/N}`` and ``nu = 1/(2 kappa)``,

        ``(constant / r!) prod lam_i^power prod_{i<j} |lam_i^2 - lam_j^2|^f a_ij^{f nu} dlam``.

    In ``rho = sqrt(N) lam`` the volume is ``prod d rho_k prod |lam_i^2 - lam_j^2|^f
    prod lam_k^{f(m+n-2r)} (lam_k/sqrt N)^{f-1} dU dV`` with unit generators ``E_ij - E_ji``; the
    orbits have ``prod a_ij^{f/2} prod a_ii^{(f-1)/2} prod_p lam_k^{f(d_p-r)}`` times a constant.
    """

    sides: tuple[int, int]
    rank: int
    depth: Depth
    kappa: float
    entropy: bool
    index: int

    @cached_property
    def nu(self) -> float:
        """``1/(2 kappa)``; 0 without entropy or hidden layers."""
        return 0.5 / self.kappa if self.entropy and self.depth > 1 else 0.0

    @cached_property
    def excess(self) -> float:
        """``sum_p (d_p - r)`` over the hidden layers, of width ``min(m, n)``."""
        return (self.depth - 1.0) * (self.sides[1] - self.rank)

    @cached_property
    def power(self) -> float:
        """The exponent of one ``lam``."""
        f, r = self.index, self.rank
        hidden = 2 * f * self.excess + (2 * self.depth - 2) * (f - 1)
        return f * (sum(self.sides) - 2 * r) + (f - 1) + self.nu * hidden

    @cached_property
    def pair_power(self) -> float:
        """The exponent with which a pair grows in ``lam``."""
        return self.index * (2 + self.nu * (2 * self.depth - 2))

    def dimension(self, k: int) -> float:
        """Return the power of t with which the mass grows if k values of lam grow like t."""
        pairs = 0.5 * k * (k - 1) + k * (self.rank - k)
        return k * (self.power + 1) + pairs * self.pair_power

    @cached_property
    def log_orbit(self) -> float:
        """The constant of the entropy."""
        f, r, d = self.index, self.rank, self.sides[1]
        halves = 0.25 * r * (r - 1) + 0.5 * r * (d - r)
        return (self.depth - 1.0) * (log_frames(d, r, f) + f * halves * math.log(2.0))

    @cached_property
    def log_constant(self) -> float:
        """The logarithm of the constant."""
        f, r, (m, n) = self.index, self.rank, self.sides
        angles = log_frames(m, r, f) + log_frames(n, r, f) - r * log_sphere(f)
        scale = 0.5 * r * (2 - f) + self.nu * (f - 1) * r
        return angles + scale * self.depth.log + 2 * self.nu * self.log_orbit

    def log_orbit_volume(self, log_lam: Tensor) -> Tensor:
        """Return the entropy at values (..., r)."""
        f, x = self.index, log_lam * float(self.depth)
        i, j = torch.triu_indices(self.rank, self.rank, 1, device=x.device)
        pairs = log_kernel_of_pairs(x[..., i], x[..., j], self.depth, False).sum(-1)
        one = f * self.excess + (f - 1) * (self.depth - 1)
        # One value may be zero where the entropy has no term of single values.
        each = one * log_lam.sum(-1) if one else 0.0
        each = each + 0.5 * (f - 1) * self.rank * self.depth.log
        return self.log_orbit + 0.5 * f * pairs + each

    def log_single(self, log_lam: Tensor) -> Tensor:
        """Return the entropy's part of one value, of the shape of `log_lam`, without constant."""
        f = self.index
        one = f * self.excess + (f - 1) * (self.depth - 1)
        return one * log_lam + 0.5 * (f - 1) * self.depth.log

    def log_pair(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the entropy's part of a pair."""
        n = float(self.depth)
        return 0.5 * self.index * log_kernel_of_pairs(n * first, n * second, self.depth, False)


def log_sphere(k: int) -> float:
    """Return the log of the area ``2 pi^{k/2}/Gamma(k/2)`` of the sphere in k dimensions."""
    return math.log(2.0) + 0.5 * k * math.log(math.pi) - math.lgamma(0.5 * k)


def log_frames(d: int, r: int, f: int) -> float:
    """Return the log volume of the r-frames in d dimensions, generators ``E_ij - E_ji`` of unit."""
    return sum(log_sphere(f * k) for k in range(d - r + 1, d + 1))
