"""What the secants of earlier shots say about the next one (Anderson acceleration)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Secants", "secant_step"]


class Secants:
    """The moves of a velocity and the changes of what it misses, sample by sample.

    Parameters
    ----------
    most : int
        Number of secants that are kept.

    References
    ----------
    Walker, Ni, SIAM J. Numer. Anal. 49 (2011).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: tuple[Tensor, Tensor] | None = None
        self._moves: list[Tensor] = []
        self._changes: list[Tensor] = []

    def refine(self, least: float) -> None:
        """Forget the last shot, and changes below a size: coarse shots knew no better."""
        self._last = None
        kept = [
            (move, change)
            for move, change in zip(self._moves, self._changes, strict=True)
            if float(change.norm(dim=-1).min()) > least
        ]
        self._moves, self._changes = [m for m, _ in kept], [c for _, c in kept]

    @property
    def velocity(self) -> Tensor | None:
        """The velocity of the last shot."""
        return None if self._last is None else self._last[0]

    def step(self, velocity: Tensor, miss: Tensor) -> Tensor:
        """Take in a shot, and return by how much to change its velocity.

        Parameters
        ----------
        velocity, miss : Tensor, shape (..., k)
            Without secants the step is the miss.
        """
        if self._last is not None:
            self._moves = [*self._moves, velocity - self._last[0]][-self._most :]
            self._changes = [*self._changes, miss - self._last[1]][-self._most :]
        self._last = velocity, miss
        return miss + secant_step(self._moves, self._changes, miss)


def secant_step(moves: list[Tensor], changes: list[Tensor], miss: Tensor) -> Tensor:
    """Return what secants add to the plain step, sample by sample.

    Parameters
    ----------
    moves, changes : list of Tensor, shape (..., k)
        Of the velocity, and of what it misses.
    miss : Tensor, shape (..., k)
    """
    if not moves:
        return torch.zeros_like(miss)
    f, v = torch.stack(changes, -1), torch.stack(moves, -1)
    # Columns of unit length: old, long moves must not drown the new ones.
    scale = f.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(f.dtype).tiny)
    f, v = f / scale, v / scale
    gram = f.mT @ f
    eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    floor = 100.0 * torch.finfo(f.dtype).eps * eye
    weights = torch.linalg.solve(gram + floor, f.mT @ miss.unsqueeze(-1))
    return -((v + f) @ weights).squeeze(-1)
