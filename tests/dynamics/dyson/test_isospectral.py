from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_mean
from tests.dynamics.noise.routes import assert_same_law

F64, C128 = torch.float64, torch.complex128


def hermitian(generator, dtype, n=3):
    z = torch.randn(n, n, generator=generator, dtype=dtype)
    return z + z.mH


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("index", [0.7, 1, 2, 3.3])
def test_noise_of_one_small_step_along_and_across_the_orbit(dtype, index, generator):
    m, h, count = hermitian(generator, dtype), 1e-6, 20_000
    end = dln.isospectral_flow(
        m.repeat(count, 1, 1), dyson_index=index, t_end=8 * h, dt=h, generator=generator
    ).final
    _, frame = torch.linalg.eigh(m)
    moved = frame.mH @ (end - m) @ frame / math.sqrt(8 * h)
    main = moved.diagonal(dim1=-2, dim2=-1).real
    assert_mean(main.square(), torch.full((3,), 2 / index, dtype=F64))
    assert_mean(main[:, 0] * main[:, 1], 0.0)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert_mean(moved[:, i, j].abs().square(), 1.0)
        if dtype.is_complex:
            assert_mean(moved[:, i, j].real.square(), 0.5)


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("index", [2.5, math.inf])
def test_the_matrix_is_a_martingale_with_dyson_eigenvalues(dtype, index, generator):
    m, t, count = hermitian(generator, dtype), 0.6, 3000
    path = dln.isospectral_flow(
        m.repeat(count, 1, 1), dyson_index=index, t_end=t, dt=t / 32, generator=generator,
        save_at=[0.0, t],
    )  # fmt: skip
    assert_close(torch.linalg.eigvalsh(path.final), path.states[-1], ops=1000)
    x = torch.linalg.eigvalsh(m)
    assert_close(path.states[0], x.repeat(count, 1), ops=1000)
    wanted = dln.dyson(
        x.repeat(1 if math.isinf(index) else count, 1), dyson_index=index, t_end=t, dt=t / 32,
        generator=generator, save_at=[t],
    )  # fmt: skip
    if math.isinf(index):
        assert (path.states[-1] - wanted.final).abs().max() < 1e-8
    else:
        assert_same_law(path.states[-1], wanted.final)
    assert_mean(path.final.real, m.real)
    if dtype.is_complex:
        assert_mean(path.final.imag, m.imag)


@pytest.mark.parametrize(("dtype", "index"), [(F64, 1), (C128, 2)])
def test_gaussian_processes_are_exact_in_few_steps(dtype, index, generator):
    """M_t - M_0 is a Gaussian matrix, whatever the frames on the way."""
    m, t, count = hermitian(generator, dtype), 1.7, 8000
    noise = dln.isospectral_flow(
        m.repeat(count, 1, 1), dyson_index=index, t_end=t, dt=t / 3, generator=generator,
        save_at=[t],
    ).final - m  # fmt: skip
    main = noise.diagonal(dim1=-2, dim2=-1).real
    assert_mean(main.square(), torch.full((3,), 2 * t / index, dtype=F64))
    assert_mean(main.pow(4), torch.full((3,), 12 * t * t / index**2, dtype=F64))
    assert_mean(noise[:, 0, 2].abs().square(), t)
    assert_mean(noise[:, 0, 2].abs().pow(4), (3 if index == 1 else 2) * t * t)
    assert_mean(noise[:, 0, 1].abs().square() * noise[:, 0, 0].real, 0.0)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_starts_with_equal_eigenvalues_have_random_frames(dtype, generator):
    """From a multiple of the identity the law of M is invariant under rotations."""
    t, count = 0.9, 4000
    start = 0.5 * torch.eye(3, dtype=dtype).repeat(count, 1, 1)
    path = dln.isospectral_flow(
        start, dyson_index=math.inf, t_end=t, dt=t / 16, generator=generator, save_at=[t]
    )
    assert_close(
        path.states[0], (0.5 + t**0.5 * dln.laws.hermite_zeros(3)).repeat(count, 1), ops=1000
    )
    # |M - 1/2|^2 is n (n - 1) t = 6t, shared alike by the dimensions of trace 0.
    dimension = 8 if dtype.is_complex else 5
    direction = torch.diag(torch.tensor([2.0, -1.0, -1.0], dtype=F64) / 6**0.5).to(dtype)
    along = ((path.final - start) * direction).sum((-2, -1)).real
    assert_mean(along.square(), 6 * t / dimension)


@pytest.mark.parametrize(("dtype", "factor"), [(C128, 0.5), (F64, 1.0)])
def test_orbits_move_by_their_mean_curvature(dtype, factor, generator):
    """The curvature vector from the curves ``e^{ta} M e^{-ta}``, orthonormal at M."""
    x = torch.tensor([-0.7, 0.1, 0.4, 1.5], dtype=F64)
    m = torch.diag(x).to(dtype)
    vector = torch.zeros_like(m)
    for i in range(4):
        for j in range(i):
            for unit in (1.0, 1j) if dtype.is_complex else (1.0,):
                a = torch.zeros_like(m)
                a[i, j] = unit
                a = a - a.mH
                tangent = a @ m - m @ a
                a = a / torch.linalg.matrix_norm(tangent)
                inner = a @ m - m @ a
                vector = vector + a @ inner - inner @ a
    h = 1e-6
    path = dln.dyson(x, dyson_index=math.inf, t_end=h, save_at=[h])
    speed = (path.final - x) / h
    normal = vector.diagonal().real
    assert (speed + factor * normal).abs().max() < 1e-3 * normal.abs().max()


def test_points_are_kept_on_demand(generator):
    m = hermitian(generator, C128)
    path = dln.isospectral_flow(
        m, dyson_index=2, t_end=1.0, dt=0.25, generator=generator, keep_points=True
    )
    assert path.states.shape == (5, 3)
    assert len(path.points) == 5
    assert_close(path.points[0], m, ops=1000)
    assert torch.equal(path.points[-1], path.final)


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        ([[0.0, 1.0], [0.5, 0.0]], ValueError, "start must be Hermitian"),
        ([[[1e20, 0.0], [0.0, 1e20]], [[0.0, 1.0], [0.5, 0.0]]], ValueError, "be Hermitian"),
        ([[0.0, 1.0]], ValueError, r"start must have shape \(..., n, n\)"),
        ([[math.nan]], ValueError, "start must be finite"),
        (torch.tensor([[complex(0, math.inf)]]), ValueError, "start must be finite"),
        ("matrix", TypeError, "start must be a real array or tensor, got str"),
    ],
)
def test_errors_say_what_was_required(start, error, words):
    with pytest.raises(error, match=words):
        dln.isospectral_flow(start, dyson_index=2, t_end=1.0, dt=0.1)
