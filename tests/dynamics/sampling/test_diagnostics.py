from __future__ import annotations

import sys

import pytest
import torch

from dln_geometry import Trajectory, diagnostics

F64 = torch.float64


def _trajectory(rows, *batch, generator=None):
    z = torch.randn(rows, *batch, 2, generator=generator, dtype=F64)
    return Trajectory(t=torch.arange(float(rows)), loss=z[..., 0], singular_values=z)


def test_chains_and_draws(generator):
    path = _trajectory(12, 2, 3, generator=generator)
    data = diagnostics.chains(path, burn_in=2, thin=3)
    assert dict(data.sizes) == {"chain": 6, "draw": 4, "mode": 2}
    assert data.loss.values[4].tolist() == path.loss[2::3, 1, 1].tolist()
    assert data.time.values.tolist() == [2.0, 5.0, 8.0, 11.0]
    assert dict(diagnostics.chains(_trajectory(5)).sizes) == {"chain": 1, "draw": 5, "mode": 2}


def test_independent_draws_count_in_full_and_chains_apart_are_seen(generator):
    pytest.importorskip("arviz")
    path = _trajectory(500, 4, generator=generator)
    size = diagnostics.effective_sample_size(path)
    assert 0.8 * 2000 < float(size.loss) < 1.3 * 2000
    assert size.singular_values.shape == (2,)
    assert float(diagnostics.split_rhat(path).loss) < 1.01
    apart = Trajectory(t=path.t, loss=path.loss + torch.arange(4.0))
    assert float(diagnostics.split_rhat(apart).loss) > 1.3
    slow = Trajectory(t=path.t, loss=path.loss.cumsum(0))
    assert float(diagnostics.effective_sample_size(slow).loss) < 50


def test_without_arviz_the_remedy_is_named(generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="arviz must be installed"):
        diagnostics.split_rhat(_trajectory(8, 2, generator=generator))


def test_one_chain_has_no_split_rhat(generator):
    with pytest.raises(ValueError, match="at least two chains, got 1"):
        diagnostics.split_rhat(_trajectory(8, 1, generator=generator))


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        (3.0, {}, TypeError, "trajectory must be a Trajectory"),
        (None, {"burn_in": -1}, ValueError, "burn_in must be at least 0"),
        (None, {"thin": 0}, ValueError, "thin must be at least 1"),
        (None, {"thin": 0.5}, TypeError, "thin must be an integer"),
        (None, {"burn_in": 7}, ValueError, "burn_in must leave at least 4 rows, got 3 of 10"),
    ],
)
def test_bad_input(path, options, error, message, generator):
    path = _trajectory(10, 2, generator=generator) if path is None else path
    with pytest.raises(error, match=message):
        diagnostics.chains(path, **options)
