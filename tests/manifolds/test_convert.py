from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch

from manifolds._convert import to_numpy, to_torch


class Pair(NamedTuple):
    left: object
    right: object


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, np.complex128, np.int64, np.uint8, np.bool_]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 5)])
def test_round_trip_keeps_values_dtype_and_shape(dtype, shape, rng):
    x = (10 * rng.random(shape)).astype(dtype)
    tensor = to_torch(x)
    assert isinstance(tensor, torch.Tensor)
    back = to_numpy(tensor)
    assert isinstance(back, np.ndarray)
    assert back.dtype == x.dtype
    assert np.array_equal(back, x)


def test_arrays_share_their_memory_where_they_can(rng):
    x = rng.random((3, 4))
    to_torch(x)[1, 2] = 7.0
    assert x[1, 2] == 7.0
    to_numpy(torch.from_numpy(x))[0, 0] = 5.0
    assert x[0, 0] == 5.0


def test_arrays_that_torch_cannot_view_are_copied(rng):
    x = rng.random((3, 4))
    frozen = x.copy()
    frozen.setflags(write=False)
    for array in (x[::-1], x.T[:, ::-1], frozen, np.broadcast_to(x, (2, 3, 4)), x.astype(">f8")):
        assert np.array_equal(to_numpy(to_torch(array)), array)


def test_tensors_pass_through_with_their_graph(generator):
    x = torch.randn(3, 2, generator=generator, requires_grad=True)
    assert to_torch(x) is x
    assert to_torch(x, like=x) is x
    wide = to_torch(x, like=torch.zeros(1, dtype=torch.float64))
    assert wide.dtype == torch.float64
    assert wide.requires_grad


def test_tensors_are_detached_and_resolved_on_the_way_out(generator):
    x = torch.randn(3, 2, generator=generator, dtype=torch.complex64, requires_grad=True)
    assert np.array_equal(to_numpy(x.conj()), np.conj(x.detach().numpy()))
    assert np.array_equal(to_numpy(x.conj().imag), -x.detach().imag.numpy())
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    assert to_numpy(half).dtype == np.float32
    assert to_numpy(half).tolist() == [1.5, -2.0]


def test_like_gives_dtype_and_device(rng):
    like = torch.zeros(2, dtype=torch.float32)
    nested = to_torch(
        (rng.random(3), [np.arange(2), torch.ones(1, dtype=torch.float64)]), like=like
    )
    assert {t.dtype for t in (nested[0], *nested[1])} == {torch.float32}
    assert to_torch(1.0, like=torch.zeros(1, device="meta")).device.type == "meta"


def test_nesting_and_container_types_are_kept(rng):
    a, b, c = rng.random((2, 3)), rng.random(4).astype(np.float32), rng.random(())
    x = (a, [b, (c,)], Pair(a, [b]), ())
    tensors = to_torch(x)
    assert isinstance(tensors, tuple)
    assert isinstance(tensors[1], list)
    assert isinstance(tensors[1][1], tuple)
    assert isinstance(tensors[2], Pair)
    assert tensors[3] == ()
    assert tensors[1][0].dtype == torch.float32
    back = to_numpy(tensors)
    assert isinstance(back[2], Pair)
    for got, expected in ((back[0], a), (back[1][0], b), (back[1][1][0], c), (back[2].right[0], b)):
        assert isinstance(got, np.ndarray)
        assert np.array_equal(got, expected)


def test_a_list_of_numbers_is_one_array():
    x = to_torch([[1.0, 2.0], [3.0, 4.0]])
    assert x.dtype == torch.float64
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert to_torch((1, 2)).dtype == torch.int64
    assert to_numpy([1.0, 2.0]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("bad", ["x", None, {"a": 1.0}, (np.ones(2), "x"), [None]])
@pytest.mark.parametrize("convert", [to_torch, to_numpy])
def test_what_is_not_numeric_is_refused(convert, bad):
    with pytest.raises(TypeError, match="must be made of numeric"):
        convert(bad)


def test_no_host_is_imported_with_the_package():
    code = (
        "import sys, manifolds, manifolds._convert; "
        "sys.exit(any(m.split('.')[0] in ('pymanopt', 'geomstats') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
