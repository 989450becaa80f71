from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close

DEPTHS = [1, 1.5, 2, 2.7, 3, 8, 100, math.inf]
DTYPES = [torch.float64, torch.float32]
SHAPES = [((4, 4), 4), ((5, 3), 3), ((3, 6), 2), ((4, 5), 1)]


def draw_matrix(shape, rank, generator, dtype, batch=()):
    """Return a matrix with known singular values, not made by the library."""
    m, n = shape
    spectrum = torch.linspace(2.0, 0.3, rank, dtype=torch.float64)
    left = torch.randn(*batch, m, m, generator=generator, dtype=torch.float64)
    right = torch.randn(*batch, n, n, generator=generator, dtype=torch.float64)
    u = torch.linalg.matrix_exp(left - left.mT)[..., :rank]
    v = torch.linalg.matrix_exp(right - right.mT)[..., :rank]
    return ((u * spectrum) @ v.mT).to(dtype), spectrum.to(dtype)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "rank"), SHAPES)
def test_round_trips(shape, rank, dtype, depth, generator):
    x, spectrum = draw_matrix(shape, rank, generator, dtype, batch=(2,))
    point = dln.EndToEnd.of(x, depth, rank=rank)
    assert point.shape == shape
    assert point.rank == rank
    assert point.depth == depth
    assert_close(point.matrix, x)
    assert_close(point.s, spectrum.expand(2, -1), scale=2)
    pair = dln.Collapsed.of(point)
    assert pair.shape == shape
    assert pair.rank == rank
    # Powers of lam up to N/2 are taken and undone.
    power = max(1.0, min(depth, 100) / 2)
    assert_close(pair.matrix, x, condition=power)
    assert_close(pair.singular_values(), point.s, condition=power)
    back = pair.point()
    assert_close(back.matrix, x, condition=power)
    assert_close(back.s, point.s, condition=power)
    assert_close(back.u.mT @ back.u, torch.eye(rank, dtype=dtype).expand(2, -1, -1))
    assert_close(back.vh @ back.vh.mT, torch.eye(rank, dtype=dtype).expand(2, -1, -1))
    assert back.depth == depth
    zero = torch.zeros(2, dtype=dtype)
    assert_close(pair.defect(), zero, scale=1)
    assert dln.Collapsed.of(pair) is pair


@pytest.mark.parametrize("depth", [1.5, 2, 2.7, 3, 8])
def test_collapsed_is_balanced_with_the_right_middle(depth, generator):
    x, s = draw_matrix((5, 3), 3, generator, torch.float64)
    pair = dln.Collapsed.of(dln.EndToEnd.of(x, depth))
    c = pair.L.mT @ pair.L
    assert_close(c, pair.R.mT @ pair.R)
    assert_close(torch.linalg.eigvalsh(c).flip(-1), s ** (2 / depth))
    values, vectors = torch.linalg.eigh(c)
    middle = (vectors * values ** ((depth - 2) / 2)) @ vectors.mT
    assert_close(pair.M, middle)
    assert_close(pair.L @ middle @ pair.R.mT, x)


def test_collapsed_at_infinite_depth_is_the_pair_of_depth_two(generator):
    x, s = draw_matrix((3, 6), 2, generator, torch.float64)
    deep = dln.Collapsed.of(dln.EndToEnd.of(x, math.inf, rank=2))
    two = dln.Collapsed.of(dln.EndToEnd.of(x, 2, rank=2))
    assert_close(deep.L, two.L, ops=1)
    assert_close(deep.R, two.R, ops=1)
    assert_close(deep.L @ deep.R.mT, x)
    assert_close(deep.singular_values(), s)
    assert deep.point().normalized


@pytest.mark.parametrize("depth", [1.5, 2, 3, 2.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_singular_values_survive(depth, dtype, generator):
    x, _ = draw_matrix((4, 4), 2, generator, dtype)
    u, s, vh = torch.linalg.svd(x)
    s = torch.where(torch.arange(4) < 2, s, 0.0)
    point = dln.EndToEnd(u, s, vh, depth, False)
    pair = dln.Collapsed.of(point)
    assert_close(pair.matrix, point.matrix)
    # A rounding error in C comes out at the power N/2.
    noise = torch.finfo(dtype).eps ** (min(depth, 2) / 2)
    assert float((pair.singular_values() - s).abs().max()) < 30 * noise
    assert_close(pair.point().matrix, point.matrix)


def test_entries_are_those_of_the_matrix(generator):
    x, _ = draw_matrix((5, 3), 3, generator, torch.float64, batch=(2,))
    pair = dln.Collapsed.of(dln.EndToEnd.of(x, 3.4))
    rows, cols = torch.tensor([0, 4, 4, 2]), torch.tensor([2, 0, 0, 1])
    assert_close(pair.entries(rows, cols), x[..., rows, cols], scale=2)
    assert_close(pair.point().entries(rows, cols), x[..., rows, cols], scale=2, ops=1000)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_defect_is_the_relative_violation(depth, generator):
    x, _ = draw_matrix((5, 3), 3, generator, torch.float64)
    pair = dln.Collapsed.of(dln.EndToEnd.of(x, depth))
    off = dln.Collapsed(1.1 * pair.L, pair.R, depth, check=False)
    # L^T L = 1.21 C against C.
    assert_close(off.defect(), 0.21 / 1.21)
    zero = dln.Collapsed(0 * pair.L, 0 * pair.R, depth)
    assert_close(zero.defect(), 0.0, scale=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("hidden", [None, 4, "own"])
def test_factors_of_a_collapsed_point(hidden, depth, dtype, generator):
    x, _ = draw_matrix((5, 3), 2, generator, dtype)
    pair = dln.Collapsed.of(dln.EndToEnd.of(x, depth, rank=2))
    widths = (3, *(2 + p % 3 for p in range(depth - 1)), 5) if hidden == "own" else hidden
    inner = widths[1:-1] if hidden == "own" else (hidden or 3,) * (depth - 1)
    for source in (None, generator):
        factors = pair.factors(widths, source)
        assert tuple(w.shape[-1] for w in factors) == (3, *inner)
        assert bool(dln.is_balanced(factors))
        assert_close(dln.end_to_end(factors), x)
        again = dln.Collapsed.of(factors)
        assert again.rank == 2
        assert again.depth == depth
        assert_close(again.matrix, x)


def test_collapsing_unbalanced_factors_keeps_the_product(generator):
    layers = [
        torch.randn(3, b, a, generator=generator, dtype=torch.float64)
        for a, b in ((4, 6), (6, 3), (3, 5))
    ]
    pair = dln.Collapsed.of(layers)
    x = layers[2] @ layers[1] @ layers[0]
    assert pair.rank == 3
    assert_close(pair.matrix, x)
    assert_close(pair.defect(), torch.zeros(3, dtype=torch.float64), scale=1)
    assert dln.Collapsed.of(dln.EndToEnd.of(x, 3, rank=2)).rank == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2.7, 5, math.inf])
def test_random_points(depth, dtype, generator):
    spectrum = torch.tensor([[3.0, 1.0], [0.2, 0.2]], dtype=dtype)
    pair = dln.Collapsed.random(
        (4, 3), 2, depth, spectrum=spectrum, batch=(5, 2), generator=generator, dtype=dtype
    )
    assert pair.L.shape == (5, 2, 4, 2)
    assert pair.L.dtype == dtype
    values = torch.linalg.svdvals(pair.matrix)[..., :2]
    assert_close(values, spectrum.expand(5, 2, 2))
    assert_close(pair.defect(), torch.zeros(5, 2, dtype=dtype), scale=1)
    first, second = (
        dln.Collapsed.random(
            (4, 3), None, depth, scale=0.7, generator=torch.Generator().manual_seed(8)
        )
        for _ in range(2)
    )
    assert torch.equal(first.L, second.L)
    assert_close(torch.linalg.svdvals(first.matrix), torch.full((3,), 0.7))


def test_random_points_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    a = dln.Collapsed.random((3, 3), 2, 3)
    b = dln.Collapsed.random((3, 3), 2, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a.L, b.L)


def test_numbers_keep_the_precision_of_the_dtype_asked_for(generator):
    pair = dln.Collapsed.random(
        (2, 2), 2, 2, spectrum=[0.3, 0.1], generator=generator, dtype=torch.float64
    )
    assert_close(pair.singular_values(), [0.3, 0.1], ops=20)


def test_points_are_frozen(generator):
    point = dln.EndToEnd.of([[1.0]], 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.depth = 3
    pair = dln.Collapsed.of(point)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.depth = 3


def test_rank_truncates_to_the_nearest_matrix(generator):
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    point = dln.EndToEnd.of(x, 3, rank=2)
    assert_close(point.matrix, (u[:, :2] * s[:2]) @ vh[:2])


def test_inputs_are_converted_once():
    assert dln.EndToEnd.of([[1, 2], [3, 4]], 2).s.dtype == torch.get_default_dtype()
    assert dln.EndToEnd.of(np.eye(2), 2).s.dtype == torch.float64
    assert dln.EndToEnd.of(torch.eye(2, dtype=torch.bfloat16), 2).s.dtype == torch.float32
    assert dln.EndToEnd.of(np.eye(2), np.float64(2.5)).depth == 2.5


BAD_MATRICES = [
    ([1.0, 2.0], ValueError, r"x must have shape \(\.\.\., m, n\), got \(2,\)"),
    (3.0, ValueError, r"x must have shape \(\.\.\., m, n\), got \(\)"),
    (torch.ones(0, 3), ValueError, "x must not be empty"),
    (torch.ones(2, 0), ValueError, "x must not be empty"),
    ([[1.0, math.nan]], ValueError, "x must be finite, got NaN or infinite entries"),
    ([[1.0, math.inf]], ValueError, "x must be finite"),
    ("matrix", TypeError, "x must be a real array or tensor, got str"),
    (None, TypeError, "x must be a real array or tensor, got NoneType"),
    (torch.eye(2).bool().numpy().astype("S"), TypeError, "x must be a real array or tensor"),
    ([["a", "b"]], TypeError, "x must be a real array or tensor, got str"),
    ([[1.0, 2.0], [3.0]], ValueError, r"x must be rectangular, got parts of shapes \(1,\), \(2,\)"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_MATRICES)
def test_bad_matrices(x, error, message):
    with pytest.raises(error, match=message):
        dln.EndToEnd.of(x, 2)


@pytest.mark.parametrize("depth", [0, 0.999, -3, math.nan, -math.inf])
def test_bad_depth(depth):
    message = "depth must be a real number >= 1 or inf, got"
    with pytest.raises(ValueError, match=message):
        dln.EndToEnd.of(torch.eye(2), depth)
    with pytest.raises(ValueError, match=message):
        dln.Collapsed.random((2, 2), 1, depth)
    with pytest.raises(ValueError, match=message):
        dln.Collapsed(torch.eye(2), torch.eye(2), depth)


@pytest.mark.parametrize(
    ("rank", "error"), [(0, ValueError), (3, ValueError), (-1, ValueError), (1.5, TypeError)]
)
def test_bad_rank(rank, error):
    with pytest.raises(error, match="rank must"):
        dln.EndToEnd.of(torch.ones(2, 5), 2, rank=rank)
    with pytest.raises(error, match="rank must"):
        dln.Collapsed.random((2, 5), rank, 2)


@pytest.mark.parametrize("depth", [2.5, math.inf])
def test_factors_need_an_integer_depth(depth):
    point = dln.EndToEnd.of(torch.eye(2), depth)
    with pytest.raises(ValueError, match="depth must be a finite integer where factors are made"):
        dln.Collapsed.of(point).factors()
    with pytest.raises(ValueError, match="depth must be a finite integer where factors are made"):
        dln.balanced_factors(point)


def test_unnormalised_infinity():
    with pytest.raises(ValueError, match="normalized must be True or None at infinite depth"):
        dln.EndToEnd.of(torch.eye(2), math.inf, normalized=False)
    with pytest.raises(ValueError, match="normalized must be True or None at infinite depth"):
        dln.Collapsed(torch.eye(2), torch.eye(2), math.inf, normalized=False)


def test_normalisation_goes_with_the_point():
    p = dln.EndToEnd.of(torch.eye(2), 3, normalized=True)
    assert dln.Collapsed.of(p).point().normalized
    assert not dln.Collapsed(torch.eye(2), torch.eye(2), 3).normalized


def test_constructors_are_doors():
    one = torch.eye(2, dtype=torch.float64)
    assert dln.Collapsed([[1.0], [0.0]], [[-1.0]], 3).L.shape == (2, 1)
    with pytest.raises(ValueError, match="L and R must be balanced, .* difference of 3.0e"):
        dln.Collapsed([[1.0], [0.0]], [[2.0]], 3)
    assert isinstance(dln.Collapsed(one, one, 3).depth, float)
    with pytest.raises(ValueError, match="share dtype and device"):
        dln.Collapsed(one, one.float(), 3)
    with pytest.raises(ValueError, match="must have shape"):
        dln.Collapsed(one[0], one[0], 3)
    s = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert torch.equal(dln.EndToEnd(one.numpy(), s.numpy(), one, 3).matrix, torch.diag(s))
    for wrong, message in ((-s, "s must be non-negative"), (s.flip(0), "s must descend")):
        with pytest.raises(ValueError, match=message):
            dln.EndToEnd(one, wrong, one, 3)
        assert dln.EndToEnd(one, wrong, one, 3, check=False).s is wrong
    with pytest.raises(ValueError, match="u must have orthonormal columns, got a deviation of 3"):
        dln.EndToEnd(2 * one, s, one, 3)
    with pytest.raises(ValueError, match="vh must have orthonormal rows, got a deviation of 3"):
        dln.EndToEnd(one, s, 2 * one, 3)
    with pytest.raises(ValueError, match="u, s and vh must have shapes"):
        dln.EndToEnd(one, one[0, :1], one, 3, False)
    with pytest.raises(ValueError, match="depth must be"):
        dln.EndToEnd(one, one[0], one, 0.5, False)


@pytest.mark.parametrize(
    ("spectrum", "error", "message"),
    [
        ([1.0, -1.0], ValueError, "spectrum must be non-negative"),
        ([1.0, 2.0, 3.0], ValueError, r"spectrum must have shape \(\.\.\., 2\)"),
        ([1.0, math.nan], ValueError, "spectrum must be finite"),
        ("ones", TypeError, "spectrum must be a real array"),
    ],
)
def test_bad_spectrum(spectrum, error, message):
    with pytest.raises(error, match=message):
        dln.Collapsed.random((2, 2), 2, 2, spectrum=spectrum)
    with pytest.raises(error, match=message):
        dln.random_balanced((2, 2, 2), spectrum=spectrum)


def test_bad_pairs():
    with pytest.raises(ValueError, match=r"L and R must have shapes .* got \(3, 2\) and \(3, 1\)"):
        dln.Collapsed(torch.ones(3, 2), torch.ones(3, 1), 2)
    with pytest.raises(ValueError, match="shape must be positive, got"):
        dln.Collapsed.random((0, 2), None, 2)
    with pytest.raises(TypeError, match="generator must be a torch.Generator or .*, got str"):
        dln.Collapsed.random((2, 2), None, 2, generator="3")
    with pytest.raises(TypeError, match="point must be a sequence of matrices"):
        dln.Collapsed.of(torch.eye(2))
    with pytest.raises(TypeError, match="point must be an EndToEnd or a Collapsed, got Tensor"):
        dln.cometric(torch.eye(2), torch.eye(2))
