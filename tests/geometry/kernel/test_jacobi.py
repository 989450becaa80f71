from __future__ import annotations

import pytest
import torch

from dln_geometry.geometry.kernel import jacobi_eigh, jacobi_svd
from dln_geometry.testing import assert_close

SHAPES = [(1, 1), (2, 2), (3, 1), (7, 5), (4, 7), (10, 10), (13, 12)]


def spectra(r, dtype):
    """Return spectra that are hard for sweeps: graded, equal, near, with zeros, in clusters."""
    real = torch.zeros((), dtype=dtype).real.dtype
    k = torch.arange(r, dtype=real)
    digits = 12 if real == torch.float64 else 6
    yield 10.0 ** (-digits * k / max(r - 1, 1))
    yield torch.ones(r, dtype=real)
    yield 1.0 + 1e-9 * k.flip(0)
    yield (k < r - r // 2).to(real)
    yield torch.where(k % 2 == 0, 1.0, 1e-3).to(real)
    yield torch.zeros(r, dtype=real)


def frame(d, r, dtype, generator):
    return torch.linalg.qr(torch.randn(3, d, r, dtype=dtype, generator=generator))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_and_frames_are_those_of_lapack(shape, dtype, generator):
    (m, n), r = shape, min(shape)
    for s in spectra(r, dtype):
        x = (frame(m, r, dtype, generator) * s) @ frame(n, r, dtype, generator).mH
        u, found, vh = jacobi_svd(x)
        one = torch.eye(r, dtype=dtype).expand(3, r, r)
        assert_close(u.mH @ u, one, ops=1000)
        assert_close(vh @ vh.mH, one, ops=1000)
        assert_close((u * found.unsqueeze(-2)) @ vh, x, ops=1000)
        scale = float(s.max())
        eps = torch.finfo(dtype).eps
        assert float((found - torch.linalg.svdvals(x)).abs().max()) <= 300 * eps * scale
        assert bool((found.diff(dim=-1) <= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_eigenvalues_of_either_sign(n, dtype, generator):
    a = torch.randn(4, n, n, dtype=dtype, generator=generator)
    a = a + a.mH
    # Opposite eigenvalues have one singular value.
    a = torch.cat((a, torch.diag_embed(torch.ones(1, n, dtype=dtype) * (-1.0) ** torch.arange(n))))
    values, vectors = jacobi_eigh(a.tril())
    assert_close(values, torch.linalg.eigvalsh(a), ops=1000)
    assert_close((vectors * values.unsqueeze(-2)) @ vectors.mH, a, ops=1000)


def test_extreme_sizes_and_nan():
    x = torch.tensor([[1e-30, 2e-30], [3e-30, -1e-30]])
    assert_close(jacobi_svd(x)[1], torch.linalg.svdvals(x.double()).float(), ops=100)
    assert_close(jacobi_svd(1e38 * x / 3e-30)[1], 1e38 * jacobi_svd(x / 3e-30)[1], ops=100)
    bad = torch.stack((torch.eye(3), torch.full((3, 3), torch.nan)))
    s = jacobi_svd(bad)[1]
    assert bool(torch.isfinite(s[0]).all())
    assert bool(torch.isnan(s[1]).all())
