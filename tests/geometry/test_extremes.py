"""The whole geometry at spectra and depths where numbers leave the range of their type.

Every call gives finite numbers, documented infinities, or an error in words; NaN never.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dln_geometry as dln
from dln_geometry import EndToEnd
from dln_geometry.testing import assert_close

DEPTHS = (1.0, 1.0001, 2.0, 3.0, 100.0, 1e6, 1e12, math.inf)
SHAPES = ((1, 1), (2, 2), (1, 3), (3, 1), (3, 2))
BATCHES = ((), (2,), (0,))
KINDS = (torch.float32, torch.float64)


def spectra(dtype: torch.dtype, rank: int) -> list[tuple[float, ...]]:
    big, denormal = (1e30, 1e-40) if dtype == torch.float32 else (1e150, 1e-310)
    pairs = [(1.0, 1.0), (1.0, 1e-12), (1.0, 1.0 / big), (big, 1.0), (big, big), (big, 1.0 / big)]
    pairs += [(1.0 / big, 1.0 / big), (denormal, denormal), (1.0, 0.0), (0.0, 0.0)]
    return list(dict.fromkeys(pair[:rank] for pair in pairs))


def orthonormal(sizes: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(*sizes, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(normal).Q.to(like)


def point_at(
    shape: tuple[int, int],
    spectrum: tuple[float, ...],
    depth: float,
    batch: tuple[int, ...],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[EndToEnd, Tensor, Tensor]:
    """Return a point, a covector, and a tangent vector about as large as the point."""
    r = min(shape)
    s = torch.tensor(spectrum, dtype=dtype).expand(*batch, r)
    u, v = (orthonormal((*batch, size, r), s, generator) for size in shape)
    p = EndToEnd(u, s, v.mT, depth)
    g = torch.randn(*batch, *shape, dtype=torch.float64, generator=generator).to(s)
    move = s.unsqueeze(-1) * (u.mT @ g @ v) / max(1.0, spectrum[0])
    return p, g, max(1.0, spectrum[0]) * (u @ move @ v.mT)


Call = Callable[[EndToEnd, Tensor, Tensor], Any]
OF_A_POINT: dict[str, Call] = {
    "cometric": lambda p, g, z: dln.cometric(p, g),
    "cometric_sqrt": lambda p, g, z: dln.cometric_sqrt(p, g),
    "metric": lambda p, g, z: dln.metric(p, z),
    "inner": lambda p, g, z: dln.inner(p, z, z),
    "connection": lambda p, g, z: dln.connection(p, z, z),
    "riemannian_hessian": lambda p, g, z: dln.riemannian_hessian(p, g, g, z),
    "log_volume_density": lambda p, g, z: dln.log_volume_density(p),
    "entropy": lambda p, g, z: dln.entropy(p),
    "entropy_gradient": lambda p, g, z: dln.entropy_gradient(p),
}
VALUES: dict[str, Call] = OF_A_POINT | {
    "entropy of wider layers": lambda p, g, z: dln.entropy(p, widths=5),
    "free_energy": lambda p, g, z: dln.free_energy(p, dln.losses.Quadratic(p.matrix), 2.0),
    "scalar_curvature": lambda p, g, z: dln.scalar_curvature(p),
    "ricci_curvature": lambda p, g, z: dln.ricci_curvature(p, z),
    "sectional_curvature": lambda p, g, z: dln.sectional_curvature(p, z, g),
    "riemann_curvature": lambda p, g, z: dln.riemann_curvature(p, z, g, z, g),
    "Collapsed": lambda p, g, z: [(c := dln.Collapsed.of(p)).matrix, c.point().matrix],
    "balanced_factors": lambda p, g, z: dln.balanced_factors(p) if p.depth <= 100 else (),
}
GEODESICS: dict[str, Call] = {
    "exponential": lambda p, g, z: dln.exponential(p, z).matrix,
    "logarithm": lambda p, g, z: dln.logarithm(p, p),
    "distance": lambda p, g, z: dln.distance(p, p),
    "parallel_transport": lambda p, g, z: dln.parallel_transport(p, z, z)[1],
}


def slope(call: Call) -> Call:
    """Return the gradient of a function in the matrix."""

    def gradient(p: EndToEnd, g: Tensor, z: Tensor) -> Any:
        x = p.matrix.clone().requires_grad_()
        total = call(EndToEnd.of(x, p.depth), g, z).sum() + 0.0 * x.sum()
        return torch.autograd.grad(total, x)[0]

    return gradient


def tensors_of(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from tensors_of(part)


def faults(calls: dict[str, Call], cases: Any, generator: torch.Generator) -> list[str]:
    """Return the calls that give NaN, or an error that is not of the library."""
    found = []
    for shape, spectrum, depth, batch, dtype in cases:
        p, g, z = point_at(shape, spectrum, depth, batch, dtype, generator)
        for name, call in calls.items():
            what = f"{name} {shape} {spectrum} {depth:g} {batch} {dtype}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = call(p, g, z)
            except (ValueError, dln.GeodesicError):
                continue
            except Exception as error:
                found.append(f"{what}: {type(error).__name__}: {error}")
                continue
            if any(bool(torch.isnan(part).any()) for part in tensors_of(result)):
                found.append(f"{what}: NaN")
    return found


def cases(generator: torch.Generator, count: int | None) -> list[Any]:
    """Return all cases, or some of them at random."""
    every = [
        (shape, spectrum, depth, batch, dtype)
        for dtype in KINDS
        for shape in SHAPES
        for spectrum in spectra(dtype, min(shape))
        for depth in DEPTHS
        for batch in BATCHES
    ]
    if count is None:
        return every
    return [every[i] for i in torch.randperm(len(every), generator=generator)[:count].tolist()]


@pytest.mark.parametrize("size", [1e-160, 1e160])
@pytest.mark.parametrize("depth", [3.0, 4.5, 1e9, math.inf])
def test_values_are_those_at_unit_size(size, depth, generator):
    """Homogeneous functions, at powers of X and of the vectors that cancel."""
    p, g, z = point_at((2, 2), (1.0, 0.3), depth, (), torch.float64, generator)
    q, flat = p.over(torch.tensor(1.0 / size, dtype=torch.float64)), p.depth.exponent
    pairs = [
        (dln.connection(q, size * z, z), dln.connection(p, z, z)),
        (dln.metric(q, size * z) * size ** (flat - 1.0), dln.metric(p, z)),
        (dln.inner(q, size * z, z) * size ** (flat - 1.0), dln.inner(p, z, z)),
        (dln.cometric(q, g / size) * size ** (1.0 - flat), dln.cometric(p, g)),
    ]
    for found, wanted in pairs:
        assert_close(found, wanted, ops=1000)


@pytest.mark.parametrize("depth", [3.0, 100.0, math.inf])
def test_float32_gives_the_values_of_float64(depth, generator):
    p, _, z = point_at((2, 2), (1e-18, 3e-19), depth, (), torch.float32, generator)
    # Rounded frames are orthonormal to float32 only.
    u, v = (torch.linalg.qr(x.double()) for x in (p.u, p.vh.mT))
    u, v = (frame.Q * frame.R.diagonal().sign() for frame in (u, v))
    exact = EndToEnd(u, p.s.double(), v.mT, depth)
    for call in (dln.connection, dln.inner):
        found, wanted = call(p, z, z), call(exact, z.double(), z.double())
        assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm())


@pytest.mark.parametrize("depth", [2.0, 3.0, 1e6, math.inf])
@pytest.mark.parametrize("dtype", KINDS)
def test_a_point_is_at_distance_zero_from_itself(dtype, depth, generator):
    for spectrum in spectra(dtype, 2):
        if min(spectrum) > 0.0:
            p, _, _ = point_at((3, 2), spectrum, depth, (), dtype, generator)
            assert not dln.distance(p, p), spectrum
            assert not dln.logarithm(p, p).any(), spectrum


def test_values_are_never_nan_in_silence(generator):
    assert not faults(VALUES, cases(generator, 60), generator)


def test_gradients_are_never_nan_in_silence(generator):
    calls = {f"slope of {name}": slope(call) for name, call in OF_A_POINT.items()}
    assert not faults(calls, cases(generator, 20), generator)


def test_geodesics_are_never_nan_in_silence(generator):
    assert not faults(GEODESICS, cases(generator, 6), generator)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_call_of_the_whole_table_is_nan_in_silence(shape, dtype, generator):
    some = [case for case in cases(generator, None) if (case[0], case[-1]) == (shape, dtype)]
    slopes = {f"slope of {name}": slope(call) for name, call in OF_A_POINT.items()}
    assert not faults(VALUES, some, generator)
    assert not faults(slopes, [case for case in some if case[3] != (0,)], generator)
    assert not faults(GEODESICS, some[::17], generator)
