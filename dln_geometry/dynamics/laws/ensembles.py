"""Beta ensembles by tridiagonal and bidiagonal models, and their limits at infinite index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.laws.times import one_or_more, root
from dln_geometry.support import (
    as_count,
    as_device,
    as_dtype,
    as_float_tensor,
    as_generator,
    as_index,
    as_real,
    as_sides,
    as_size,
    chi,
    normal,
)

# Size up to which a batch of dense decompositions beats a loop of tridiagonal ones.
_BATCHED = 64


def beta_hermite(
    n: int,
    dyson_index: float,
    *,
    t: Any = 1.0,
    size: Sequence[int] | int = (),
    generator: torch.Generator | int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw Dyson Brownian motion of n particles, all from 0, at time t: (*size, n), ascending.

    At times t of any shape: (*size, *t.shape, n), independent of each other; 0 at time 0.


    The density is proportional to ``prod_{i<j} |x_i - x_j|^b exp(-b sum x_i^2/(4t))``:
    eigenvalues of the tridiagonal matrix with diagonal ``sqrt(2t/b) N(0, 1)`` and off-diagonal
    ``sqrt(t/b) chi_{kb}``, k = 1..n-1. At infinite index ``sqrt(t)`` times the zeros of
    ``He_n``. With confinement c, `dyson` has this law at ``t = (1 - e^{-2ct})/(2c)``.

    Parameters
    ----------
    n : int
        Number of particles.
    dyson_index : float
        Index b in (0, inf]: 1, 2, 4 for real symmetric, Hermitian, quaternion matrices.
    t : float or array_like
        Time or times.
    size : int or sequence of int
        Shape of the batch of samples.
    generator, dtype, device : optional
        Source of randomness or its seed (a fresh one by default); dtype and device of the result.

    References
    ----------
    Dumitriu, Edelman, Matrix models for beta ensembles, arXiv math-ph/0206043, Theorem 2.12.

    Examples
    --------
    >>> import math
    >>> dln.laws.beta_hermite(3, math.inf, t=4.0)
    tensor([-3.4641,  0.0000,  3.4641], dtype=torch.float64)
    """
    n, b, dtype = as_count(n, "n"), as_index(dyson_index), as_dtype(dtype)
    t, batch, place = _scale_and_batch(t, size, device)
    if math.isinf(b):
        zeros = root(t) * hermite_zeros(n)
        return zeros.expand(*batch, n).clone().to(dtype=dtype, device=place)
    generator = as_generator(generator, place)
    main = root(2 * t / b) * normal((*batch, n), generator, torch.float64)
    k = torch.arange(1, n, dtype=torch.float64, device="cpu")
    off = root(t / b) * chi(k * b, batch, generator)
    return tridiagonal_eigenvalues(main, off).to(dtype=dtype, device=place)


def beta_laguerre(
    shape: tuple[int, int],
    dyson_index: float,
    *,
    t: Any = 1.0,
    size: Sequence[int] | int = (),
    generator: torch.Generator | int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw the singular values of an m x n Brownian motion of index b from 0, at time t.

    Shape (*size, min(m, n)), ascending (at times t of any shape ``(*size, *t.shape, min(m, n))``,
    independent of each other). With m >= n the density is proportional to
    ``prod_{i<j} |s_i^2 - s_j^2|^b prod_i s_i^{b(m-n+1)-1} exp(-b sum s_i^2/(2t))``: singular values
    of the bidiagonal matrix with diagonal ``sqrt(t/b) chi_{b(m-i)}``, i = 0..n-1, and off-diagonal
    ``sqrt(t/b) chi_{bk}``, k = n-1..1. Entries have variance t whatever the index;
    ``E sum s_i^2 = m n t``. At infinite index ``s_i^2 / t`` are the zeros of ``L_n^{(m-n)}``.

    Parameters
    ----------
    shape : (int, int)
        Shape (m, n) of the matrix, in either order.
    dyson_index : float
        Index b in (0, inf]: 1, 2, 4 for real, complex, quaternion matrices.
    t, size, generator, dtype, device
        As in `beta_hermite`.

    References
    ----------
    Dumitriu, Edelman, arXiv math-ph/0206043, Theorem 3.4.

    Examples
    --------
    >>> import math
    >>> dln.laws.beta_laguerre((2, 1), math.inf, t=8.0)
    tensor([4.], dtype=torch.float64)
    """
    (m, n), b, dtype = as_sides(shape), as_index(dyson_index), as_dtype(dtype)
    t, batch, place = _scale_and_batch(t, size, device)
    if math.isinf(b):
        roots = (t * laguerre_zeros(n, m - n)).sqrt()
        return roots.expand(*batch, n).clone().to(dtype=dtype, device=place)
    generator = as_generator(generator, place)
    main = chi(b * torch.arange(m, m - n, -1, dtype=torch.float64, device="cpu"), batch, generator)
    off = chi(b * torch.arange(n - 1, 0, -1, dtype=torch.float64, device="cpu"), batch, generator)
    # The eigenvalues of this tridiagonal matrix are plus and minus the singular values.
    both = main.new_zeros(*batch, 2 * n - 1)
    both[..., ::2], both[..., 1::2] = main, off
    values = tridiagonal_eigenvalues(main.new_zeros(*batch, 2 * n), both)[..., n:]
    return (root(t / b) * values.clamp_min(0.0)).to(dtype=dtype, device=place)


def _scale_and_batch(
    t: Any, size: Sequence[int] | int, device: torch.device | str | None
) -> tuple[Any, tuple[int, ...], torch.device]:
    """Return times, with a last dimension for particles, the batch of samples, and the device."""
    times, batch = one_or_more(t), as_size(size, least=0)
    place = as_device("cpu" if device is None else device)
    if not isinstance(times, Tensor):
        return times, batch, place
    where = times.device if device is None else place
    return times.to("cpu", torch.float64).unsqueeze(-1), (*batch, *times.shape), where


def hermite_zeros(
    n: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> Tensor:
    """Return the zeros of the Hermite polynomial ``He_n``, ascending, shape (n,).

    ``sqrt(t)`` times these solves ``dx_i/dt = sum_{j != i} 1/(x_i - x_j)`` from 0.

    Examples
    --------
    >>> dln.laws.hermite_zeros(2)
    tensor([-1.,  1.], dtype=torch.float64)
    """
    n, dtype, device = (
        as_count(n, "n"),
        as_dtype(dtype),
        as_device("cpu" if device is None else device),
    )
    off = torch.arange(1, n, dtype=torch.float64, device="cpu").sqrt()
    zeros = tridiagonal_eigenvalues(torch.zeros(n, dtype=torch.float64, device="cpu"), off)
    return (0.5 * (zeros - zeros.flip(-1))).to(dtype=dtype, device=device)


def laguerre_zeros(
    n: int,
    excess: float,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the zeros of the Laguerre polynomial ``L_n^{(a)}``, ``a = excess > -1``, ascending.

    ``t`` times these solves ``dw_i/dt = a + 1 + sum_{j != i} 2 w_i/(w_i - w_j)`` from 0.

    Examples
    --------
    >>> dln.laws.laguerre_zeros(1, 2.0)
    tensor([3.], dtype=torch.float64)
    """
    n, dtype, device = (
        as_count(n, "n"),
        as_dtype(dtype),
        as_device("cpu" if device is None else device),
    )
    excess = as_real(excess, "excess")
    if not -1 < excess < math.inf:
        raise ValueError(f"excess must be finite and above -1, got {excess}")
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    off = (k[1:] * (k[1:] + excess)).sqrt()
    return tridiagonal_eigenvalues(2 * k + excess + 1, off).to(dtype=dtype, device=device)


def tridiagonal_eigenvalues(main: Any, off: Any, *, check: bool = True) -> Tensor:
    """Return the eigenvalues of symmetric tridiagonal matrices (..., n), (..., n - 1), ascending.

    Large ones take O(n^2) each, one after the other on the CPU. ``check=False`` trusts two tensors
    that fit.

    Examples
    --------
    >>> dln.laws.tridiagonal_eigenvalues([2.0, 2.0], [1.0])
    tensor([1., 3.])
    """
    if check:
        main = as_float_tensor(main, "main")
        off = as_float_tensor(off, "off", dtype=main.dtype, device=main.device)
        if main.ndim == 0 or (*off.shape[:-1], off.shape[-1] + 1) != main.shape:
            got = f"{tuple(main.shape)} and {tuple(off.shape)}"
            raise ValueError(f"main and off must have shapes (..., n) and (..., n - 1), got {got}")
    n = main.shape[-1]
    if n == 1:
        return main
    if n <= _BATCHED:
        return torch.linalg.eigvalsh(main.diag_embed() + off.diag_embed(-1))
    from scipy.linalg import eigvalsh_tridiagonal

    pairs = zip(*(x.reshape(-1, x.shape[-1]).cpu().numpy() for x in (main, off)), strict=True)
    rows = [eigvalsh_tridiagonal(d, e) for d, e in pairs]
    return torch.from_numpy(np.stack(rows)).reshape(main.shape).to(main)
