"""Coordinates of singular values in which ``g^N`` is flat, and how matrices move with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import power_divided_difference
from dln_geometry.support import Depth


class FlatCoordinates:
    """The coordinates ``rho = sqrt(N) s^{1/N}``; at infinite depth ``log s``.

    ``scale`` is the factor of ``s^{1/N}``: ``sqrt(N)``, or 1.
    """

    def __init__(self, depth: Depth) -> None:
        self.depth = depth
        self.scale = 1.0 if depth.infinite else math.sqrt(depth)

    def of(self, s: Tensor) -> Tensor:
        """Return the coordinates of singular values."""
        return self.depth.root(s) if self.depth.infinite else self.scale * self.depth.root(s)

    def values(self, rho: Tensor) -> Tensor:
        """Return the singular values of coordinates."""
        return self.depth.power(rho if self.depth.infinite else rho / self.scale)

    def weights(self, rho: Tensor, s: Tensor, *, signed: bool = False) -> tuple[Tensor, Tensor]:
        """Return ``(s_i + s_j)/(l_i + l_j)`` and ``(s_i - s_j)/(l_i - l_j)`` of ``l = s^{1/N}``.

        The derivative of ``Y = U rho V^T -> X`` multiplies the symmetric part of a move in the
        frames by the second, the antisymmetric one by the first (over `scale`); the cometric
        exchanges them. At infinite depth ``l = 1`` in the sums and ``l = log s`` in the
        differences. `rho` descends; if `signed`, its last entry may be negative.
        """
        sums = s.unsqueeze(-1) + s.unsqueeze(-2)
        if self.depth.infinite:
            sums, apart = 0.5 * sums, rho.unsqueeze(-1) - rho.unsqueeze(-2)
            close = apart.abs() <= torch.finfo(rho.dtype).eps ** 0.5
            slopes = (s.unsqueeze(-1) - s.unsqueeze(-2)) / torch.where(close, 1.0, apart)
            return sums, torch.where(close, sums, slopes)
        lam = rho / self.scale
        size, total = lam.abs(), lam.unsqueeze(-1) + lam.unsqueeze(-2)
        differences = power_divided_difference(size, self.depth)
        if signed:
            across = (lam.unsqueeze(-1) < 0) ^ (lam.unsqueeze(-2) < 0)
            larger = torch.maximum(size.unsqueeze(-1), size.unsqueeze(-2))
            # The bound acts only if a step has led from one side of 0 to far on the other.
            total = torch.where(across, total.clamp_min(0.1 * larger), total)
            apart = torch.where(across, lam.unsqueeze(-1) - lam.unsqueeze(-2), 1.0)
            slopes = (s.unsqueeze(-1) - s.unsqueeze(-2)) / apart
            differences = torch.where(across, slopes, differences)
        return sums / torch.where(total == 0, math.inf, total), differences
