"""Solve for layers with a given product and given moments, by damped Gauss-Newton steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dln_geometry.geometry.points import layer_moments, product

_STARTS, _STEPS, _DENSE = 6, 300, 2000


def fitted_layers(
    x: Tensor, moments: Sequence[Tensor], widths: Sequence[int], rounding: float
) -> tuple[tuple[Tensor, ...], float]:
    """Return layers near to a solution, and their largest error relative to the size.

    The steps start at random layers and are the shortest ones that solve the linear equations.
    """
    depth = len(widths) - 1
    sizes = [float(g.abs().max()) for g in moments]
    unit = max(max(sizes, default=0.0) ** 0.5, float(x.abs().max()) ** (1.0 / depth)) or 1.0
    target = [x / unit**depth, *(g / unit**2 for g in moments)]
    best: tuple[tuple[Tensor, ...], float] = ((), float("inf"))
    for seed in range(_STARTS):
        generator = torch.Generator(x.device).manual_seed(seed)
        start = [
            torch.randn(b, a, generator=generator, dtype=x.dtype, device=x.device)
            / max(a, b) ** 0.5
            for a, b in pairwise(widths)
        ]
        layers, error = _descent(start, target, rounding)
        if error < best[1]:
            best = tuple(w * unit for w in layers), error
        if error <= rounding:
            break
    return best


def _descent(
    layers: list[Tensor], target: Sequence[Tensor], rounding: float
) -> tuple[list[Tensor], float]:
    shapes = [_real_parts(w).shape for w in layers]
    counts = [s.numel() for s in shapes]

    def split(q: Tensor) -> list[Tensor]:
        parts = [w.view(s) for w, s in zip(q.split(counts), shapes, strict=True)]
        return [torch.view_as_complex(w) for w in parts] if layers[0].is_complex() else parts

    def errors(q: Tensor) -> Tensor:
        w = split(q)
        made = [product(w), *layer_moments(w)]
        return torch.cat([_real_parts(a - b).flatten() for a, b in zip(made, target, strict=True)])

    q = torch.cat([_real_parts(w).flatten() for w in layers])
    off, damping = errors(q), 1e-2
    size = float(off.norm())
    stalled = 0
    for _ in range(_STEPS):
        step = _step(errors, q, off, damping * size**2)
        trial = errors(q + step)
        smaller = float(trial.norm())
        if smaller < size:
            stalled = stalled + 1 if smaller > 0.9 * size and size < 1e-9 else 0
            q, off, size, damping = q + step, trial, smaller, damping / 5
        else:
            damping, stalled = max(damping, 1e-6) * 4, stalled + 1
        if size == 0.0 or (float(off.abs().max()) <= 0.1 * rounding) or stalled > 12:
            break
    return split(q), float(off.abs().max())


def _real_parts(w: Tensor) -> Tensor:
    """Return a matrix in real numbers: the two parts of complex ones in a last dimension."""
    return torch.view_as_real(w.resolve_conj()) if w.is_complex() else w


def _step(errors: Callable[[Tensor], Tensor], q: Tensor, off: Tensor, damping: float) -> Tensor:
    """Return ``-J^T (J J^T + damping)^{-1} off``: dense, or by conjugate gradients if large."""
    pull = torch.func.vjp(errors, q)[1]
    count = off.numel()
    if count <= _DENSE:
        eye = torch.eye(count, dtype=q.dtype, device=q.device)
        jacobian = torch.func.vmap(pull)(eye)[0]
        gram = jacobian @ jacobian.mT
        # Redundant equations make the Gram matrix singular.
        least = 1e-14 * float(gram.diagonal().max())
        values, vectors = torch.linalg.eigh(gram)
        weights = (vectors.mT @ off) / (values.clamp_min(0.0) + damping + least)
        return -(jacobian.mT @ (vectors @ weights))
    y = torch.zeros_like(off)
    r, d = off.clone(), off.clone()
    rho = r @ r
    first = rho
    for _ in range(500):
        image = torch.func.jvp(errors, (q,), (pull(d)[0],))[1] + damping * d
        alpha = rho / (d @ image)
        y, r = y + alpha * d, r - alpha * image
        before, rho = rho, r @ r
        if float(rho) <= 1e-10 * float(first):
            break
        d = r + rho / before * d
    return -pull(y)[0]
