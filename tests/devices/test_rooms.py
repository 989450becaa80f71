"""Rooms that the tables of calls do not name: methods of `ode`, completion, and the hosts."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses, ode
from dln_geometry.completion import MatrixCompleter
from tests.devices.moves import tensors_of
from tests.devices.pretended import NAME, PretendedTensor, pretended, there

F64 = torch.float64
RATES = torch.logspace(-1, 1, 20, dtype=F64)


def known(rates: torch.Tensor) -> ode.KnownField:
    def field(t: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        torch.mul(y, -rates[:, None], out=out)
        return y.norm(dim=-1, keepdim=True)

    def jacobian(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
        return -rates[:, None, None] * eye

    def narrowed(samples: torch.Tensor) -> ode.KnownField:
        return known(rates[samples.to(rates.device)])

    return ode.KnownField(field, jacobian=jacobian, narrowed=narrowed)


def integrated(rates: torch.Tensor, method: str) -> Any:
    system = known(rates)
    y0 = torch.ones(len(rates), 3, dtype=F64, device=rates.device)
    return ode.integrate(
        system.field, y0, t_end=1.0, rtol=1e-4, method=method, save_at=[0.0, 0.5, 1.0],
        stop={"small": (0, 1.0)}, jacobian=system.jacobian, narrowed=system.narrowed,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["rk3", "rk5", "rk8", "rkc", "rodas", "auto"])
def test_methods_stay_on_the_device_and_samples_leave_there_too(method):
    """The host waits once a step, whatever leaves."""
    here = integrated(RATES, method)
    with pretended() as counts:
        far = integrated(there(RATES), method)
        waits = counts.total
    assert isinstance(far.y, PretendedTensor)
    assert isinstance(far.saved["y"], PretendedTensor)
    assert here.status == far.status
    assert torch.allclose(here.y, far.y.held, rtol=1e-9)
    assert torch.allclose(here.saved["y"], far.saved["y"].held, rtol=1e-9)
    assert waits <= here.stats["steps"] + here.stats["rejected"] + 12, str(counts)


class Rotation:
    """An orbit of period one, for `collocate`."""

    def field(self, y: torch.Tensor) -> torch.Tensor:
        return torch.stack((-y[..., 1], y[..., 0]), -1)

    def coordinates_at(self, y: torch.Tensor) -> Any:
        return lambda difference: difference

    def restricted(self, samples: Any) -> Rotation:
        return self

    def ends(self, t: Any, h: Any, states: Any) -> Any:
        return np.full(len(t), np.inf)


def test_collocation_and_differences_stay_on_the_device():
    y = torch.tensor([[1.0, 0.0], [0.3, 0.4]], dtype=F64)

    def run(start: torch.Tensor) -> list[torch.Tensor]:
        journey = ode.collocate(Rotation(), start, [0.5, 2.0], rtol=1e-10, shortest=1e-6)

        def field(t: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
            torch.mul(x, x.flip(-1), out=out)

        t = torch.zeros(2, dtype=F64, device=start.device)
        return [*journey.states, ode.differences(field, t, start)]

    here = run(y)
    with pretended():
        far = run(there(y))
    for a, b in zip(here, far, strict=True):
        assert isinstance(b, PretendedTensor)
        assert torch.allclose(a, b.held, rtol=1e-9)


def table() -> np.ndarray:
    g = np.random.default_rng(3)
    x = g.normal(size=(12, 2)) @ g.normal(size=(2, 9)) + 3.0
    x[g.random(x.shape) < 0.3] = np.nan
    return x


def test_completion_computes_on_the_device():
    x, options = table(), {"depth": 2, "rank": 2, "decay": 0.1, "validation": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = MatrixCompleter(**options, random_state=0).fit(x)
        with pretended():
            far = MatrixCompleter(**options, random_state=0, device=f"{NAME}:0").fit(x)
            inside = [t for t in tensors_of(far.models_).values() if t.numel()]
            predicted = far.transform(x)
    assert inside
    assert all(isinstance(t, PretendedTensor) for t in inside)
    assert (here.depth_, here.rank_, here.decay_) == (far.depth_, far.rank_, far.decay_)
    assert np.allclose(here.transform(x), np.asarray(predicted), rtol=1e-3, atol=1e-3)


def test_entries_and_steps_of_flows_on_the_device():
    """A flow whose steps are all kept, and one on a table of entries, dense and sparse."""
    g = torch.Generator().manual_seed(1)
    start = dln.Collapsed.random((6, 5), 2, 3, scale=0.4, generator=g, dtype=F64)
    loss = losses.Completion([0, 1, 2, 3, 5], [1, 0, 4, 2, 3], torch.ones(5, dtype=F64), (6, 5))

    def run(start: dln.Collapsed) -> Any:
        path = dln.gradient_flow(loss, start, t_end=0.2, rtol=1e-3, dense=True)
        return path.at(0.1).final.matrix, path.final.entries([0, 2], [1, 4])

    here = run(start)
    with pretended():
        far = run(start.replace(L=there(start.L), R=there(start.R)))
    for a, b in zip(here, far, strict=True):
        assert isinstance(b, PretendedTensor)
        assert torch.allclose(a, b.held, rtol=1e-9)


@pytest.mark.slow
def test_spaces_of_geomstats_stay_on_the_device():
    """With its torch backend, which needs a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.hosts"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "GEOMSTATS_BACKEND": "pytorch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(done.stdout.split("\n")) > 10
