from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dln_geometry.support import (
    as_covector,
    as_depth,
    as_dtype,
    as_factors,
    as_float_tensor,
    as_generator,
    as_layer_count,
    as_matrix,
    as_module_generator,
    as_normalized,
    as_rank,
    as_width_sequence,
    as_widths,
)


def test_numbers_become_tensors_of_the_right_dtype():
    assert as_float_tensor([1, 2], "x").dtype == torch.get_default_dtype()
    assert as_float_tensor(True, "x").dtype == torch.get_default_dtype()
    assert as_float_tensor(np.float64(2.0), "x").dtype == torch.float64
    assert as_float_tensor(torch.ones(2).half(), "x").dtype == torch.float32
    assert as_float_tensor(torch.ones(2).bfloat16(), "x").dtype == torch.float32
    assert as_float_tensor(np.ones(2, dtype=np.float32), "x").dtype == torch.float32
    assert as_float_tensor(torch.ones(2), "x", dtype=torch.float64).dtype == torch.float64


def test_python_numbers_are_not_rounded_on_the_way():
    assert as_float_tensor([0.1, 1e-100], "x", dtype=torch.float64).tolist() == [0.1, 1e-100]
    assert as_float_tensor(0.1, "x", dtype=torch.float64).item() == 0.1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],
        lambda x: x[:1][::-1],
        lambda x: x.T,
        lambda x: x.astype(">f8"),
        lambda x: x.astype(">i4"),
        lambda x: x.astype(np.longdouble),
        lambda x: np.broadcast_to(x[0], (4, 3)),
        lambda x: np.zeros(3, dtype=[("a", "i1"), ("b", "f8")])["b"],
        lambda x: np.longdouble(2.0),
    ],
    ids=["turned", "one-row", "transposed", "big", "integer", "long", "fixed", "odd", "scalar"],
)
def test_arrays_of_every_make(change):
    x = change(np.arange(9.0).reshape(3, 3))
    # Warnings are errors: a read-only array must not be shared.
    assert as_float_tensor(x, "x", dtype=torch.float64).numpy().tolist() == x.tolist()


def test_plain_arrays_are_shared():
    x = np.ones(3)
    assert as_float_tensor(x, "x").data_ptr() == x.ctypes.data


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.eye(2).to_sparse(), "x must be dense, got the layout torch.sparse_coo"),
        (np.array([None]), "x must be a real array or tensor, got None in an array"),
        (np.array(["a"]), "x must be a real array or tensor, got ndarray"),
        (np.ones(2, dtype=np.clongdouble), "x must be real, got torch.complex128"),
        ("ab", "x must be a real array or tensor, got str"),
    ],
)
def test_what_is_no_dense_real_array(x, message):
    with pytest.raises(TypeError, match=message):
        as_float_tensor(x, "x")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_where_it_is_asked_for(half):
    assert as_dtype(half) == torch.float32
    assert as_dtype(torch.float64) == torch.float64
    for x in ([0.1], torch.ones(2), torch.ones(2).double(), torch.ones(2).to(half)):
        assert as_float_tensor(x, "x", dtype=half).dtype == torch.float32
    assert as_float_tensor(0.1, "x", dtype=half).item() == torch.tensor(0.1).item()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, np.float32, "float"])
def test_dtypes_must_be_floating(dtype):
    for x in ([0.5], torch.ones(2)):
        with pytest.raises(TypeError, match="dtype must be a"):
            as_float_tensor(x, "x", dtype=dtype)


def test_tensors_keep_their_graph_and_identity():
    x = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    assert as_matrix(x) is x


def test_covectors_must_have_the_shape_of_the_point():
    like = torch.ones(1, dtype=torch.float64)
    assert as_covector([[1, 2]], like, (1, 2), "g").dtype == torch.float64
    assert as_covector(torch.ones(5, 1, 2), like, (1, 2), "g").shape == (5, 1, 2)
    with pytest.raises(ValueError, match=r"g must have shape \(\.\.\., 1, 2\) like the point, got"):
        as_covector([[1], [2]], like, (1, 2), "g")


@pytest.mark.parametrize(
    ("depth", "value"), [(1, 1.0), (2.5, 2.5), (math.inf, math.inf), (np.int64(3), 3.0)]
)
def test_depths(depth, value):
    assert as_depth(depth) == value


@pytest.mark.parametrize("depth", ["3", None, True, [2], 2j])
def test_depths_must_be_numbers(depth):
    with pytest.raises(TypeError, match="depth must be a real number >= 1 or inf"):
        as_depth(depth)


@pytest.mark.parametrize("depth", [0.5, math.nan, -math.inf])
def test_depths_must_be_at_least_one(depth):
    with pytest.raises(ValueError, match="depth must be a real number >= 1 or inf"):
        as_depth(depth)


@pytest.mark.parametrize("depth", [1.5, math.inf])
def test_layer_counts_are_integers(depth):
    assert as_layer_count(10**6) == 10**6
    assert as_layer_count(4.0) == 4
    with pytest.raises(ValueError, match=rf"depth must be a finite integer .* got {depth}"):
        as_layer_count(depth)


def test_normalisation():
    assert as_normalized(None, math.inf)
    assert not as_normalized(None, 3.0)
    assert as_normalized(True, 3.0)
    with pytest.raises(ValueError, match="only A/N has a limit, got False"):
        as_normalized(False, math.inf)


@pytest.mark.parametrize(
    ("rank", "error"), [(0, ValueError), (4, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_ranks(rank, error):
    assert as_rank(np.int32(3), 3, "width") == 3
    with pytest.raises(error, match="rank must"):
        as_rank(rank, 3, "width")


def test_widths():
    assert as_widths(None, (4, 3), 3, 2) == (3, 3, 3, 4)
    assert as_widths(5, (4, 3), 3, 2) == (3, 5, 5, 4)
    assert as_widths([3, 2, 6, 4], (4, 3), 3, 2) == (3, 2, 6, 4)
    assert as_widths(None, (4, 3), 1, 2) == (3, 4)
    assert as_width_sequence([np.int64(2), 3]) == (2, 3)
    for widths in (np.array([3, 2, 6, 4]), torch.tensor([3, 2, 6, 4])):
        assert as_width_sequence(widths) == (3, 2, 6, 4)
        assert as_widths(widths, (4, 3), 3, 2) == (3, 2, 6, 4)
    assert as_widths(torch.tensor(5), (4, 3), 3, 2) == (3, 5, 5, 4)


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        (1, ValueError, r"widths must all be at least the rank 2, got \(3, 1, 1, 4\)"),
        ((3, 2, 4), ValueError, r"widths must hold depth \+ 1 = 4 numbers"),
        ((4, 2, 2, 3), ValueError, "widths must start with 3 and end with 4"),
        ((3, 2, 0, 4), ValueError, "widths must be positive"),
        ((3, 2, 2.5, 4), TypeError, "widths must be integers"),
        ("wide", TypeError, "widths must be a sequence"),
        (2.5, TypeError, "widths must be a sequence"),
        ((3,), ValueError, "widths must hold at least two numbers"),
        (True, TypeError, "widths must be a sequence"),
        (np.array([3.0, 2.0, 2.0, 4.0]), TypeError, "widths must be integers"),
        (torch.tensor([[3, 4], [3, 4]]), TypeError, "widths must be integers"),
        (torch.tensor(2.5), TypeError, "widths must be a sequence"),
    ],
)
def test_bad_widths(widths, error, message):
    with pytest.raises(error, match=message):
        as_widths(widths, (4, 3), 3, 2)


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        ((torch.ones(2, 3), torch.ones(4, 3)), ValueError, "W_2 needs 2 columns, got shape"),
        ((torch.ones(2, 3), torch.ones(4, 2).double()), ValueError, "factors must share one dtype"),
        (
            (torch.ones(5, 2, 3), torch.ones(4, 2)),
            ValueError,
            "must share their leading dimensions",
        ),
        ((), ValueError, "factors must hold at least one matrix"),
        (torch.ones(2, 2, 2), TypeError, "factors must be a sequence of matrices"),
        ("ab", TypeError, "factors must be a sequence of matrices"),
        (3, TypeError, "factors must be a sequence of matrices"),
        ((torch.ones(2),), ValueError, r"factors\[0\] must have shape"),
        ((torch.ones(2, 2), None), TypeError, r"factors\[1\] must be a real array"),
        ((torch.ones(2, 2), torch.full((2, 2), math.nan)), ValueError, r"factors\[1\] must be fin"),
    ],
)
def test_bad_factors(factors, error, message):
    with pytest.raises(error, match=message):
        as_factors(factors)


def test_generators():
    own = torch.Generator().manual_seed(3)
    assert as_generator(own, torch.device("cpu")) is own
    before = torch.get_rng_state()
    one, two = (as_generator(None, torch.device("cpu")) for _ in range(2))
    assert one.initial_seed() != two.initial_seed()
    assert torch.equal(torch.get_rng_state(), before)
    seeded = [torch.randn(3, generator=as_generator(s, torch.device("cpu"))) for s in (7, 7, 8)]
    assert torch.equal(seeded[0], torch.randn(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    as_generator(np.int64(7), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_of_modules_follow_the_global_seed():
    cpu = torch.device("cpu")
    own = torch.Generator().manual_seed(3)
    assert as_module_generator(own, cpu) is own
    assert as_module_generator(3, cpu).initial_seed() == 3
    with torch.random.fork_rng():
        seeds = []
        for _ in range(2):
            torch.manual_seed(5)
            seeds.append([as_module_generator(None, cpu).initial_seed() for _ in range(2)])
    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]


@pytest.mark.parametrize(
    ("generator", "error"),
    [(s, TypeError) for s in (True, 1.0, "0", torch.Generator)]
    + [(s, ValueError) for s in (-1, 2**64)],
)
def test_bad_generators(generator, error):
    for door in as_generator, as_module_generator:
        with pytest.raises(error, match="generator must be"):
            door(generator, torch.device("cpu"))
