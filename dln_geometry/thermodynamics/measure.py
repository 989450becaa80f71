"""The measure whose mass is the partition function, in the coordinates ``lam = s^{1/N}``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import log_kernel_of_pairs
from dln_geometry.geometry.points import quaternion_form
from dln_geometry.support import Depth, normal


def gaussians(shape: Sequence[int], index: int, generator: torch.Generator) -> Tensor:
    """Draw matrices whose 1, 2 or 4 parts are standard normal; quaternions as complex of twice."""
    parts = [normal(tuple(shape), generator, torch.float64) for _ in range(index)]
    if index == 1:
        return parts[0]
    z = torch.complex(parts[0], parts[1])
    return z if index == 2 else quaternion_form(z, torch.complex(parts[2], parts[3]))


@dataclass(frozen=True)
class SpectralMeasure:
    r"""``vol(O_X)^{1/kappa} dvol_g`` on the m x n matrices of rank r over a field of dimension f.

    The singular values have the density, with ``lam = s^{1/N}`` and ``nu = 1/(2 kappa)``,

        ``(constant / r!) prod lam_i^power prod_{i<j} |lam_i^2 - lam_j^2|^f a_ij^{f nu} dlam``.

    In ``rho = sqrt(N) lam`` the volume is ``prod d rho_k prod |lam_i^2 - lam_j^2|^f
    prod lam_k^{f(m+n-2r)} (lam_k/sqrt N)^{f-1} dU dV`` with unit generators ``E_ij - E_ji``; the
    orbits have ``prod a_ij^{f/2} prod a_ii^{(f-1)/2} prod_p lam_k^{f(d_p-r)}`` times a constant.

    At infinite depth row and column spaces stand still, and r x r matrices in them are left: in
    ``u = log s``, with the normalised kernel and the entropy without its constant,

        ``(constant / r!) prod e^{power u_i} prod_{i<j} |2 (u_i - u_j)|^f a_ij^{f nu} du``.

    Functions take x, ``log lam`` or u: values are ``s = e^{span x}``.
    """

    sides: tuple[int, int]
    rank: int
    depth: Depth
    kappa: float
    entropy: bool
    index: int

    @property
    def deep(self) -> bool:
        """Whether the depth is infinite."""
        return self.depth.infinite

    @property
    def span(self) -> float:
        """N, at infinite depth 1."""
        return 1.0 if self.deep else float(self.depth)

    def coordinates(self, nodes: Tensor) -> Tensor:
        """Return x of the variables of integration, lam or u."""
        return nodes if self.deep else nodes.log()

    @cached_property
    def nu(self) -> float:
        """``1/(2 kappa)``; 0 without entropy or hidden layers."""
        return 0.5 / self.kappa if self.entropy and self.depth > 1 else 0.0

    @cached_property
    def excess(self) -> float:
        """``sum_p (d_p - r)`` over the hidden layers, of width ``min(m, n)``."""
        return 0.0 if self.deep else (self.depth - 1.0) * (self.sides[1] - self.rank)

    @property
    def own_excess(self) -> float:
        """The power of ``e^x`` in the orbits' volume."""
        f = self.index
        return float(f - 1) if self.deep else f * self.excess + (f - 1) * (self.depth - 1.0)

    @cached_property
    def power(self) -> float:
        """The exponent of one ``e^x``."""
        f, r = self.index, self.rank
        volume = 0 if self.deep else f * (sum(self.sides) - 2 * r) + (f - 1)
        return volume + 2 * self.nu * self.own_excess

    @cached_property
    def pair_power(self) -> float:
        """The exponent with which a pair grows in ``e^x``."""
        f = self.index
        return 2 * f * self.nu if self.deep else f * (2 + self.nu * (2 * self.depth - 2))

    def dimension(self, k: int) -> float:
        """Return the power of t with which the mass grows if k values of ``e^x`` grow like t."""
        pairs = 0.5 * k * (k - 1) + k * (self.rank - k)
        return k * (self.power + (0 if self.deep else 1)) + pairs * self.pair_power

    @cached_property
    def log_orbit(self) -> float:
        """The constant of the entropy."""
        if self.deep:
            return 0.0
        f, r, d = self.index, self.rank, self.sides[1]
        halves = 0.25 * r * (r - 1) + 0.5 * r * (d - r)
        return (self.depth - 1.0) * (log_frames(d, r, f) + f * halves * math.log(2.0))

    @cached_property
    def log_constant(self) -> float:
        """The logarithm of the constant."""
        f, r, (m, n) = self.index, self.rank, self.sides
        if self.deep:
            return 2 * log_frames(r, r, f) - r * log_sphere(f)
        angles = log_frames(m, r, f) + log_frames(n, r, f) - r * log_sphere(f)
        scale = 0.5 * r * (2 - f) + self.nu * (f - 1) * r
        return angles + scale * self.depth.log + 2 * self.nu * self.log_orbit

    def log_orbit_volume(self, x: Tensor) -> Tensor:
        """Return the entropy at values (..., r)."""
        i, j = torch.triu_indices(self.rank, self.rank, 1, device=x.device)
        pairs = self.log_pair(x[..., i], x[..., j]).sum(-1)
        # One value may be zero where the entropy has no term of single values.
        one = self.own_excess
        each = one * x.sum(-1) if one else 0.0
        return self.log_orbit + pairs + each + self.rank * self._log_phase

    def log_single(self, x: Tensor) -> Tensor:
        """Return the entropy's part of one value, of the shape of x, without constant."""
        return self.own_excess * x + self._log_phase

    @property
    def _log_phase(self) -> float:
        return 0.0 if self.deep else 0.5 * (self.index - 1) * self.depth.log

    def log_pair(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the entropy's part of a pair."""
        n = self.span
        kernel = log_kernel_of_pairs(n * first, n * second, self.depth, self.deep)
        return 0.5 * self.index * kernel

    def log_gap(self, x: Tensor, gap: Tensor) -> Tensor:
        """Return the log of the volume of a pair at x and ``x - gap``, without the entropy."""
        if self.deep:
            return self.index * (2 * gap).log()
        return self.index * (2 * x + torch.log(-torch.expm1(-2 * gap)))

    def variables(self, x: Tensor) -> list[tuple[Tensor, float]]:
        """Return the variables of the polynomials, over their sizes, and the logs of the sizes.

        The pairs are the products of their differences where the law is a polynomial ensemble.
        """
        powers = [2.0, 2.0 * self.span]
        if self.nu != 0.5:
            powers = powers[1:] if self.nu else powers[:1]
        found = []
        for k, power in enumerate(powers):
            if self.deep and self.nu in (0.0, 0.5) and k == 0:
                size = 2 * float(x.abs().max())
                found.append((2 * x / size, math.log(size)))
            else:
                top = float(x[-1])
                found.append(((power * (x - top)).exp(), power * top))
        return found


def log_sphere(k: int) -> float:
    """Return the log of the area ``2 pi^{k/2}/Gamma(k/2)`` of the sphere in k dimensions."""
    return math.log(2.0) + 0.5 * k * math.log(math.pi) - math.lgamma(0.5 * k)


def log_frames(d: int, r: int, f: int) -> float:
    """Return the log volume of the r-frames in d dimensions, generators ``E_ij - E_ji`` of unit."""
    return sum(log_sphere(f * k) for k in range(d - r + 1, d + 1))
