r"""Sums over pairs of singular values, such as the entropy, with their derivatives in the matrix.

With ``x = log s`` and ``p = s^2`` the eigenvalues of ``X X^T``, a symmetric function F changes
under a move d of ``X X^T``, in its eigenvectors, by ``sum_i F_i d_ii`` and, to second order,
``1/2 sum_ik F_ik d_ii d_kk + sum_{i<k} (F_i - F_k)/(p_i - p_k) d_ik^2``, derivatives by p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import log_kernel_of_pairs, log_kernel_slope
from dln_geometry.geometry.metric.blocks import Frames
from dln_geometry.geometry.metric.unit_size import followed_in_range
from dln_geometry.geometry.points import EndToEnd, Nearby, nearly_equal, separate, smooth
from dln_geometry.support import Depth, absolute_square, as_double, field_dimension


def over_field(p: EndToEnd, field: str | None) -> tuple[EndToEnd, int]:
    """Return a point whose singular values are those over a field, and the field's dimension f.

    A real point is one over any field. A complex point with ``field="quaternion"`` is the complex
    representation of a matrix of quaternions: its singular values come in pairs, of which one is
    kept. `None` stands for the field of the tensors.
    """
    f = field_dimension(field, p.dtype)
    if not p.dtype.is_complex or f == 2:
        return p, f
    if f == 1:
        raise ValueError(f'field must be "complex" or "quaternion" for a {p.dtype} point, got real')
    x = p.detach().matrix
    even = not (p.rank % 2 or any(d % 2 for d in p.shape))
    bound = 1e3 * torch.finfo(x.dtype).eps * max(p.shape) * p.s.detach()[..., 0]
    if not even or bool((_beside_quaternions(x) > bound).any()):
        raise ValueError(
            "point must be a complex representation [[A, -B*], [B, A*]] (A*: conjugate entries) "
            f'for field="quaternion", got another matrix of shape {p.shape} and rank {p.rank}'
        )
    if p.followed is not None:
        raise ValueError(
            'point must be detached for field="quaternion": moves of its entries leave the complex '
            "representations, got one that requires gradients"
        )
    parts = p.u[..., ::2], p.s[..., ::2], p.vh[..., ::2, :]
    half = EndToEnd(*parts, p.depth, p.normalized, check=False)
    return half.replace(u=half.u[..., ::2, :], vh=half.vh[..., ::2], check=False), f


def _beside_quaternions(x: Tensor) -> Tensor:
    """Return the largest entry by which a matrix is no complex representation, shape (...)."""
    m, n = (d // 2 for d in x.shape[-2:])
    gaps = x[..., :m, :n] - x[..., m:, n:].conj(), x[..., m:, :n] + x[..., :m, n:].conj()
    return torch.maximum(*(gap.abs().amax((-2, -1)) for gap in gaps))


def sum_over_pairs(p: EndToEnd, value: Tensor, pairs: float, singles: float) -> Tensor:
    """Return `value`, up to a constant ``pairs sum_{i != j} log a_ij + singles sum_i log s_i``.

    Twice differentiable in the matrix of the point.
    """

    def model(x: Tensor, frames: Frames) -> tuple[Tensor]:
        s, d = _move_of_squares(x, frames)
        first, second = pair_slopes(s, p.depth, pairs, singles)
        square = s.square()
        slope = 0.5 * first / square
        bend = 0.25 * second / (square.unsqueeze(-1) * square.unsqueeze(-2))
        bend = bend - torch.diag_embed(slope / square)
        own = d.diagonal(dim1=-2, dim2=-1).real
        total = (slope * own).sum(-1)
        total = total + 0.5 * (own.unsqueeze(-1) * bend * own.unsqueeze(-2)).sum((-2, -1))
        apart = torch.ones_like(bend) - torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        chords = apart * chord_slopes(square, slope, bend)
        bent = 0.5 * (chords * absolute_square(d)).sum((-2, -1))
        return ((total + bent).to(x.real.dtype),)

    source = followed_in_range(p)
    return smooth((value,), (model, model), (source,), p.constants)[0]


def gradient_of_pairs(p: EndToEnd, value: Tensor, pairs: float, singles: float) -> Tensor:
    """Return the gradient of `sum_over_pairs` in X, ``U diag(F_s) V^T``, of which `value` is it.

    Twice differentiable; the second derivative only at separate singular values.
    """

    def model(x: Tensor, frames: Frames) -> tuple[Tensor]:
        u, s, vh = (as_double(part) for part in frames)
        scale = s[..., :1]
        left, move, right = Nearby.of(x, (u, s, vh))
        s = s / scale
        first, second = pair_slopes(s, p.depth, pairs, singles)
        slope = first / s
        bend = second / (s.unsqueeze(-1) * s.unsqueeze(-2)) - torch.diag_embed(slope / s)
        even, odd = 0.5 * (move + move.mH), 0.5 * (move - move.mH)
        eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        own = (bend @ even.diagonal(dim1=-2, dim2=-1).real.unsqueeze(-1)).squeeze(-1)
        core = torch.diag_embed(slope + own) + (1.0 - eye) * chord_slopes(s, slope, bend) * even
        sums = [y.unsqueeze(-1) + y.unsqueeze(-2) for y in (slope, s)]
        core = core + odd * sums[0] / sums[1]
        return ((left @ core @ right.mH / scale.unsqueeze(-1)).to(x.dtype),)

    def from_frames(u: Tensor, s: Tensor, vh: Tensor) -> tuple[Tensor]:
        off = 1.0 - torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        slope = 2.0 * pairs * (off * log_kernel_slope(s, p.depth)).sum(-1) + singles / s
        return ((u * slope.unsqueeze(-2)) @ vh,)

    source = followed_in_range(p)
    second = separate(from_frames, "the derivative of entropy_gradient")
    return smooth((value,), (model, second), (source,), p.constants)[0]


def _move_of_squares(x: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
    """Return s and the move of ``X X^T`` in its eigenvectors, both in units of the largest s."""
    u, s, vh = (as_double(part) for part in frames)
    move = Nearby.of(x, (u, s, vh)).move
    s = s / s[..., :1]
    up = move * s.unsqueeze(-2)
    return s, up + up.mH + move @ move.mH


def pair_slopes(s: Tensor, depth: Depth, pairs: float, singles: float) -> tuple[Tensor, Tensor]:
    """Return the first and second derivatives of `sum_over_pairs` in ``x = log s``."""
    r, x = s.shape[-1], s.log()
    apart = 1.0 - torch.eye(r, dtype=s.dtype, device=s.device)
    slopes = apart * log_kernel_slope(s, depth) * s.unsqueeze(-1)

    def rise(shift: Tensor) -> Tensor:
        rows = x.unsqueeze(-1) + shift
        return log_kernel_of_pairs(rows, x.unsqueeze(-2), depth, depth.infinite).sum()

    zero = torch.zeros_like(slopes)
    bends = torch.func.grad(lambda y: torch.func.grad(rise)(y).sum())(zero)
    bends = 2.0 * pairs * apart * bends
    second = torch.diag_embed(bends.sum(-1)) - bends
    return 2.0 * pairs * slopes.sum(-1) + singles, second


def chord_slopes(p: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """Return ``(F_i - F_k)/(p_i - p_k)``, shape (..., r, r); ``F_ii - F_ik`` at equal values."""
    own = bend.diagonal(dim1=-2, dim2=-1)
    tied = nearly_equal(p)
    gap = torch.where(tied, 1.0, p.unsqueeze(-1) - p.unsqueeze(-2))
    close = 0.5 * (own.unsqueeze(-1) + own.unsqueeze(-2)) - bend
    return torch.where(tied, close, (slope.unsqueeze(-1) - slope.unsqueeze(-2)) / gap)
