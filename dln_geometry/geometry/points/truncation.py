"""The nearest matrix of rank r, with its derivative right at equal singular values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["truncated"]


def truncated(x: Tensor, frames: tuple[Tensor, Tensor, Tensor], rank: int) -> Tensor:
    """Return a matrix without its singular values below the first r, shape (..., m, n).

    Its derivative is that of a spectral function, in closed form: infinite only where the last
    value kept is equal to the first one dropped. Once differentiable.

    Parameters
    ----------
    x : Tensor, shape (..., m, n)
    frames : tuple of Tensor
        Its thin singular value decomposition ``(U, s, V^T)``, all ``min(m, n)`` values.
    rank : int
    """
    return _Truncation.apply(x, *(part.detach() for part in frames), rank)


class _Truncation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Tensor:
        ctx.save_for_backward(u, s, vh)
        ctx.rank = rank
        return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, s, vh = ctx.saved_tensors
        (g,), r = gradients, ctx.rank
        ug, gv = u.mT @ g, g @ vh.mT
        core = ug @ vh.mT
        kept, dropped = s[..., :r, None], s[..., None, r:]
        gap = (kept - dropped) * (kept + dropped)
        above, below = core[..., :r, r:], core[..., r:, :r]
        mixed = core.clone()
        mixed[..., :r, r:] = kept * (kept * above + dropped * below.mT) / gap
        mixed[..., r:, :r] = (kept * (kept * below.mT + dropped * above) / gap).mT
        mixed[..., r:, r:] = 0.0
        # What lies beyond all frames moves with what is kept.
        left, right = gv - u @ core, ug - core @ vh
        moved = u @ mixed @ vh + left[..., :r] @ vh[..., :r, :] + u[..., :r] @ right[..., :r, :]
        return moved, None, None, None, None
