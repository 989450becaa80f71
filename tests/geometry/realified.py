"""Complex matrices and their real forms, an independent route to every complex result.

``[[A, -B], [B, A]]`` stands for ``A + i B``. Real forms are the fixed points of an isometry of the
real networks, so that flows, geodesics and every tensor of the metric agree on them.
"""

from __future__ import annotations

import torch

C128 = torch.complex128


def real_form(z):
    """Return the real form (..., 2m, 2n) of complex matrices (..., m, n)."""
    upper, lower = torch.cat((z.real, -z.imag), -1), torch.cat((z.imag, z.real), -1)
    return torch.cat((upper, lower), -2)


def complex_normal(generator, *shape):
    """Draw a complex matrix with independent normal entries."""
    return torch.randn(*shape, generator=generator, dtype=C128)


def of_rank(generator, m, n, r):
    """Draw a complex m x n matrix of rank r."""
    return complex_normal(generator, m, r) @ complex_normal(generator, r, n)


def as_vector(*parts):
    """Return complex matrices as one real vector, whose length is the Frobenius norm."""
    return torch.cat([torch.view_as_real(part.resolve_conj()).flatten() for part in parts])


def generators(d):
    """Yield an orthonormal basis of the anti-Hermitian d x d matrices."""
    for i in range(d):
        e = torch.zeros(d, d, dtype=C128)
        e[i, i] = 1j
        yield e
        for j in range(i):
            for unit in (1.0, 1j):
                e = torch.zeros(d, d, dtype=C128)
                e[i, j], e[j, i] = unit, -complex(unit).conjugate()
                yield e / 2**0.5


def quaternions(a, b):
    """Return the complex representation of the quaternion matrix ``A + B j``."""
    upper, lower = torch.cat((a, -b.conj()), -1), torch.cat((b, a.conj()), -1)
    return torch.cat((upper, lower), -2)


def symplectic_generators(d):
    """Yield an orthonormal basis of the Lie algebra sp(d), as complex representations.

    The norm of a quaternion is half that of its representation, squared.
    """
    zero = torch.zeros(d, d, dtype=C128)
    for i in range(d):
        for a, b in ((1j, 0.0), (0.0, 1.0), (0.0, 1j)):
            x, y = zero.clone(), zero.clone()
            x[i, i], y[i, i] = a, b
            yield quaternions(x, y)
        for j in range(i):
            for a, b in ((1.0, 0.0), (1j, 0.0), (0.0, 1.0), (0.0, 1j)):
                x, y = zero.clone(), zero.clone()
                x[i, j], x[j, i], y[i, j], y[j, i] = a, -complex(a).conjugate(), b, b
                yield quaternions(x, y) / 2**0.5
