"""One step of a Dyson Brownian motion of singular values, by a random rectangular matrix.

Every step maps singular values (..., n) to singular values in ascending order, after the time h;
they may coincide and vanish. Nothing is checked here. As for eigenvalues (`dyson_steps`), entries
whose moments interpolate between real, complex and quaternion matrices give weak order 2 for
symmetric polynomials of ``s^2``: it takes ``E|z|^4 = 1 + 2/b``, and ``E z^2 = 2/b - 1`` for
diagonal entries and for the products of two opposite ones, hence complex entries above b = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.eigenvalue_steps import Step, signed_modulus
from dln_geometry.support import chi, normal


def singular_step(excess: int, index: float, generator: torch.Generator) -> Step:
    """Return the step for (n + excess) x n matrices; exact in law at index 1, else of order 2."""
    if index == 1:
        return lambda s, h: real_singular_values(s, h, excess, generator)
    if index > 1:
        return _complex_step(excess, index, generator)

    def step(s: Tensor, h: float) -> Tensor:
        # The generator is that of index 1 and (1/b - 1) times that of squared Bessel processes of
        # dimension 0, s^2/2: both are exact. The real one stands outside: no value stays at 0.
        s = real_singular_values(s, 0.5 * h, excess, generator)
        s = vanishing_bessel(s, (1 / index - 1) * h, generator)
        return real_singular_values(s, 0.5 * h, excess, generator)

    return step


def real_singular_values(
    s: Tensor, h: float, excess: int, generator: torch.Generator, *, signed: bool = False
) -> Tensor:
    """Return singular values of ``[diag(s); 0] + sqrt(h) Gaussian``, exact in law.

    With `signed` (square matrices) the smallest carries the sign of the determinant.
    """
    n = s.shape[-1]
    matrix = math.sqrt(h) * normal((*s.shape, n), generator, s.dtype, s.device)
    matrix.diagonal(dim1=-2, dim2=-1).add_(s)
    if excess:
        matrix = torch.cat((matrix, math.sqrt(h) * _rows(s, excess, 1.0, generator)), -2)
    values = torch.linalg.svdvals(matrix).flip(-1)
    if signed:
        sign = torch.linalg.slogdet(matrix).sign
        values[..., 0] *= torch.where(sign < 0, -1.0, 1.0).to(values.dtype)
    return values


def _complex_step(excess: int, index: float, generator: torch.Generator) -> Step:
    """Return the step for indices above 1."""

    def step(s: Tensor, h: float) -> Tensor:
        n = s.shape[-1]
        root, batch = math.sqrt(h), s.shape[:-1]
        g = normal((*s.shape, n), generator, s.dtype, s.device)
        real = signed_modulus(g, index, generator)
        # Half of every pair of opposite entries is imaginary with probability 1 - 1/b.
        draw = torch.rand((*s.shape, n), generator=generator, device=generator.device)
        turned = (draw.to(s.device) > 1 / index).tril(-1)
        imaginary = torch.where(turned, real, 0.0)
        real = torch.where(turned, 0.0, real)
        main = g.diagonal(dim1=-2, dim2=-1) / math.sqrt(index)
        freedom = torch.full((n,), index - 1, dtype=s.dtype, device=s.device)
        across = chi(freedom, batch, generator) / math.sqrt(index)
        real[..., range(n), range(n)] = s / root + main
        imaginary[..., range(n), range(n)] = across
        matrix = torch.complex(real, imaginary)
        if excess:
            matrix = torch.cat((matrix, _rows(s, excess, index, generator).to(matrix.dtype)), -2)
        return root * torch.linalg.svdvals(matrix).flip(-1)

    return step


def _rows(s: Tensor, excess: int, index: float, generator: torch.Generator) -> Tensor:
    """Draw the rows of a matrix below its square part: of more than n only the triangle of a QR."""
    n = s.shape[-1]
    rows = min(excess, n)
    g = normal((*s.shape[:-1], rows, n), generator, s.dtype, s.device)
    block = signed_modulus(g, index, generator)
    if excess > n:
        freedom = index * (excess - torch.arange(n, dtype=s.dtype, device=s.device))
        block = block.triu(1)
        block[..., range(n), range(n)] = chi(freedom, s.shape[:-1], generator) / math.sqrt(index)
    return block


def vanishing_bessel(s: Tensor, h: float, generator: torch.Generator) -> Tensor:
    """Return Bessel processes of dimension 0 after the time h, exact in law: 0 is absorbing.

    ``ds = dB - ds/(2s)``; ``s^2 = 2h Gamma(K)`` with K Poisson of mean ``s^2/(2h)``.
    """
    device = generator.device
    count = torch.poisson((s.square() / (2 * h)).to(device), generator=generator)
    squared = 2 * h * torch._standard_gamma(count.clamp_min(1.0), generator=generator)
    return torch.where(count > 0, squared, 0.0).sqrt().to(s.device)
