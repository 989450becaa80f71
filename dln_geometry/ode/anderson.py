"""Anderson acceleration of fixed-point iterations; every sample has its own secants."""

from __future__ import annotations

import torch
from torch import Tensor


class Secants:
    """Accelerate ``x <- x + f(x)``: combine the last images x + f so that |f| becomes least.

    See Walker, Ni, SIAM J. Numer. Anal. 49 (2011).

    Examples
    --------
    >>> secants = dln.ode.Secants(3)
    >>> secants.add(torch.ones(1, 2), torch.ones(1, 2))  # x = 0 and f(0)
    >>> secants.add(torch.ones(1, 2), 0.5 * torch.ones(1, 2))  # x = 1/2 and f(1/2)
    >>> secants.correction(0.5 * torch.ones(1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.images: list[Tensor] = []
        self.residuals: list[Tensor] = []

    def add(self, image: Tensor, residual: Tensor) -> None:
        """Keep a change of the images, (B, n), and of the residuals, (B, k)."""
        self.images = [*self.images, image][-self.most :]
        self.residuals = [*self.residuals, residual][-self.most :]

    def restricted(self, samples: Tensor) -> Secants:
        """Return the secants of some samples."""
        part = Secants(self.most)
        part.images = [x[samples] for x in self.images]
        part.residuals = [x[samples] for x in self.residuals]
        return part

    def correction(self, residual: Tensor) -> Tensor | float:
        """Return the vector to subtract from the image with this residual, (B, n)."""
        if not self.images:
            return 0.0
        f = torch.stack(self.residuals, -1)
        # Columns of unit length: in the Gram matrix, old and long changes would hide new ones.
        scale = f.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(f.dtype).tiny)
        f = f / scale
        floor = 100.0 * torch.finfo(f.dtype).eps
        gram = f.mT @ f + floor * torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
        weights = torch.linalg.solve_ex(gram, f.mT @ residual.unsqueeze(-1)).result / scale.mT
        return (torch.stack(self.images, -1) @ weights).squeeze(-1)
