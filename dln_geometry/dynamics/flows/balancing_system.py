"""The linear system of the orbit: block-tridiagonal, singular where X is rank-deficient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import small_eigh
from dln_geometry.support import real_product

# Width up to which a factorisation by blocks of width^2 beats conjugate gradients.
DIRECT = 20
# Added to the unit diagonal before a factorisation: the system is singular if X lacks modes.
SHIFT = 1e-7
# Rayleigh quotient, for a unit diagonal, below which a direction counts as kernel.
KERNEL = 1e-12


def solved(b: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, tolerance: float) -> Tensor:
    """Solve the system of the orbit in frames where its diagonal blocks are numbers D.

    In ``y = D^{1/2} z`` the diagonal is 1 and the rest bounded by 1, however small the singular
    values of the layers. Widths up to `DIRECT` are factored by blocks; above, conjugate gradients
    take about 10 N steps, until each sample's residual is `tolerance` times that of zero, in units
    of c. They ignore the part of b that rounding puts into the kernel of a rank-deficient X.
    """

    def applied(y: Tensor) -> Tensor:
        z = scale * y
        coupled = torch.zeros_like(z)
        coupled[:, 1:] = rows @ z[:, :-1] @ columns.mH
        coupled[:, :-1] += rows.mH @ z[:, 1:] @ columns
        return y - scale * coupled

    if b.shape[1] == 1:
        return b
    if b.shape[-1] <= DIRECT:
        factors = _factored(scale, rows, columns)
        y = _backsolved(*factors, b)
        # Correct the relative error SHIFT over the eigenvalue; always in two steps, because the
        # solution must depend smoothly on the layers.
        for _ in range(2):
            y = y + _backsolved(*factors, b - applied(y))
        return y
    y, r, p = torch.zeros_like(b), b, torch.zeros_like(b)
    goal = tolerance * (scale * b).abs().amax((1, 2, 3), keepdim=True)
    size = _sample_dot(r, r)
    last = torch.ones_like(size)
    for _ in range(100 + 40 * b.shape[1]):
        goes_on = (scale * r).abs().amax((1, 2, 3), keepdim=True) > goal
        if not bool(goes_on.any()):
            break
        p = r + size / last * p
        moved = applied(p)
        steepness = _sample_dot(p, moved)
        goes_on &= steepness > KERNEL * _sample_dot(p, p)
        step = torch.where(goes_on, size / steepness, 0.0)
        y, r = y + step * p, r - step * moved
        size, last = _sample_dot(r, r), torch.where(goes_on, size, math.inf)
    return y


def _factored(scale: Tensor, rows: Tensor, columns: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the Cholesky factors of L, block by block: the diagonal ones and those below."""
    n = scale.shape[-1] ** 2
    coupling = torch.einsum("bkim,bkjn->bkijmn", rows, columns.conj()).flatten(4).flatten(2, 3)
    coupling = scale[:, 1:].flatten(2).unsqueeze(-1) * coupling
    coupling = coupling * scale[:, :-1].flatten(2).unsqueeze(-2)
    one = (1.0 + SHIFT) * torch.eye(n, dtype=rows.dtype, device=scale.device)
    diagonal, below = (
        [
            math.sqrt(1.0 + SHIFT)
            * torch.eye(n, dtype=one.dtype, device=one.device).expand(len(scale), n, n)
        ],
        [],
    )
    for k, block in enumerate(coupling.unbind(1)):
        if k == 0:
            block = block / math.sqrt(1.0 + SHIFT)
        else:
            block = torch.linalg.solve_triangular(diagonal[-1].mH, block, upper=True, left=False)
        below.append(-block)
        diagonal.append(torch.linalg.cholesky_ex(one - block @ block.mH)[0])
    return diagonal, below


def _backsolved(diagonal: list[Tensor], below: list[Tensor], b: Tensor) -> Tensor:
    """Solve with the factors of `_factored`."""
    x = list(b.flatten(2).unsqueeze(-1).unbind(1))
    for k, factor in enumerate(diagonal):
        if k:
            x[k] = x[k] - below[k - 1] @ x[k - 1]
        x[k] = torch.linalg.solve_triangular(factor, x[k], upper=False)
    for k in reversed(range(len(diagonal))):
        if k + 1 < len(diagonal):
            x[k] = x[k] - below[k].mH @ x[k + 1]
        x[k] = torch.linalg.solve_triangular(diagonal[k].mH, x[k], upper=True)
    return torch.stack(x, 1).view_as(b)


def _sample_dot(a: Tensor, b: Tensor) -> Tensor:
    return real_product(a, b).sum((1, 2, 3), keepdim=True)


def correction_generator(w: Tensor, excess: Tensor) -> Tensor:
    """Return symmetric x, ``L x + (L x)^T = excess`` to one per cent, shape (B, N-1, d, d).

    It lowers the moments by `excess` to first order. Symmetric x reach every excess on the orbit.
    Directions whose own moments are within 1e-5 of zero are left out: there an excess of the size
    of rounding would need a large x, and the integrator's error is smaller.
    """
    before, after = w[:, :-1], w[:, 1:]
    # x_k = E_k z_k E_k^T: the diagonal blocks of the symmetric part of L are (e_i + e_j)/2.
    e, frame = small_eigh(before @ before.mH + after.mH @ after)
    diagonal = 0.5 * (e.unsqueeze(-1) + e.unsqueeze(-2))
    floor = 1e-5 * diagonal.amax((1, 2, 3), keepdim=True)
    scale = torch.where(diagonal > floor, diagonal.abs().rsqrt(), 0.0)
    inner = frame[:, 1:].mH @ w[:, 1:-1] @ frame[:, :-1]
    right = frame.mH @ (0.5 * excess) @ frame
    y = solved(scale * right, scale, inner, inner, 1e-2)
    return frame @ (scale * y) @ frame.mH
