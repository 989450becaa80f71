from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from dln_geometry.support import Depth, as_depth, as_layer_count, as_normalized
from dln_geometry.testing import assert_close


@pytest.mark.parametrize("value", [1, 2, 2.7, 64, 1e300])
def test_a_depth_is_a_float_with_its_constants(value):
    depth = as_depth(value)
    assert depth == value
    assert isinstance(depth, float)
    assert repr(depth) == repr(float(value))
    assert not depth.infinite
    assert (depth.inverse, depth.log) == (1 / value, math.log(value))
    assert depth.exponent == pytest.approx(2 - 2 / value, abs=1e-15)
    assert (depth.unit(True), depth.unit(False)) == (value, 1.0)
    s = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    assert_close(depth.root(s), s ** (1 / value))
    if value < 1e10:
        assert_close(depth.power(depth.root(s)), s, condition=value)


def test_the_limit_at_infinity():
    depth = as_depth(math.inf)
    assert depth.infinite
    assert (depth.inverse, depth.log, depth.exponent) == (0.0, 0.0, 2.0)
    assert (depth.unit(True), as_normalized(None, depth)) == (1.0, True)
    s = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    assert_close(depth.root(s), s.log())
    assert_close(depth.power(depth.root(s)), s)
    # N (s^{1/N} - 1) tends to log s, no further than the error of its expansion, (log s)^2/2N.
    n = 1e6
    error = (n * (Depth(n).root(s) - 1) - depth.root(s)).abs()
    assert bool((error <= s.log().square() / (2 * n) * 1.01 + 1e-9).all())


def test_layers_are_counted():
    assert as_layer_count(3.0) == 3
    for value in (2.5, math.inf):
        with pytest.raises(ValueError, match="finite integer where factors are made"):
            as_layer_count(value)


def test_depths_survive_files_and_copies(tmp_path):
    depth = as_depth(2.5)
    for other in (pickle.loads(pickle.dumps(depth)), copy.deepcopy(depth), copy.copy(depth)):
        assert type(other) is Depth
        assert (other, other.inverse) == (2.5, 0.4)
    torch.save({"depth": depth}, tmp_path / "run.pt")
    assert torch.load(tmp_path / "run.pt", weights_only=True) == {"depth": 2.5}
