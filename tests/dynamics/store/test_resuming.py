"""Runs that are killed at random points of their writing go on to the same bits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch

import dln_geometry as dln
from tests.dynamics.store.runs import F64, PARTICLES, RUNS, SEED, made, point, run, told

STEPS = {"t_end": 1.0, "dt": 0.02, "generator": SEED}
LONGER = {
    "gradient_flow": {"t_end": 2.0, "keep_points": True},
    "gradient_flow of a batch": {
        "start": point(batch=(3,)), "t_end": 2.0, "save_at": 30, "monitor": None, "patience": None,
        "keep_points": True,
    },
    "gradient_flow, dense": {"t_end": 2.0, "dense": True},
    "kirwan_ness_flow": {"t_end": 0.2},
    "langevin": {"keep_points": True, "chains": 2, **STEPS},
    "langevin upstairs": {"start": point().factors(), "upstairs": True, **STEPS},
    "langevin without noise": {"kappa": 0.0, **STEPS},
    "sample_gibbs": {"draws": 40, "keep_points": True},
    "dyson": STEPS,
    "dyson of infinite index": {"dyson_index": float("inf"), **STEPS},
    "dyson of increments": {
        "increments": torch.linspace(-0.1, 0.1, 90, dtype=F64).reshape(30, 3),
        "generator": None, "dt": None,
    },
    "singular_dyson": STEPS,
    "singular_dyson of a batch, infinite index": {
        "start": PARTICLES.expand(2, 3), "dyson_index": float("inf"), **STEPS,
    },
    "dln_dyson": STEPS,
    "dln_dyson without noise": {"kappa": 0.0, "t_end": 1.0},
    "isospectral_flow": {"keep_points": True, **STEPS},
    "isospectral_flow over the complex numbers": {
        "start": torch.diag(PARTICLES).to(torch.complex128), "keep_points": True, **STEPS,
    },
    "balancing_flow": {"t": [0.1, 0.3, 1.0, 4.0, float("inf")]},
}  # fmt: skip


def chosen(kind):
    name = kind.split()[0].strip(",")
    return name, {**RUNS[name][0], **LONGER[kind]}


def dying(left):
    """Kill the process at its `left`-th file operation of those that a checkpoint makes."""
    for name in ("fsync", "replace", "open"):
        real = getattr(os, name)

        def counted(*args, real=real, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(os, name, counted)


def work(kind, path, left):
    """Make a run that is killed at its `left`-th file operation, if it gets so far."""
    dying(left)
    name, options = chosen(kind)
    getattr(dln, name)(**made(options), store=path, every={"steps": 1})


def in_child(kind, path, left):
    """Do the work in a process of its own; tell whether it came to the end.

    It is forked from a fresh one: a fork of this one could take no gradients if this one has taken
    some with another device than the CPU.
    """
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload([__name__])
    child = fresh.Process(target=work, args=(kind, path, left))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), "the run must not fail"
    return child.exitcode == 0


def kills(kind, count, rng, path):
    """Kill a run so many times on its way; return how often it was, and whether it agrees."""
    name, options = chosen(kind)
    want = told(run(name, options))
    killed = 0
    for _ in range(count):
        if in_child(kind, path, int(rng.integers(1, 120))):
            break
        killed += 1
    got = told(getattr(dln, name)(**made(options), store=path, every={"steps": 1}))
    assert len(want) == len(got)
    same = all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert same, f"{kind} differs after {killed} kills"
    assert not list(path.rglob("*.part")), "nothing half written may be left"
    return killed


@pytest.mark.parametrize("kind", ["gradient_flow of a batch", "langevin"])
def test_killed_while_it_writes_a_run_goes_on_to_the_same_bits(kind, rng, tmp_path):
    assert kills(kind, 3, rng, tmp_path / "run.zarr") > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONGER)
def test_killed_twenty_times_a_run_goes_on_to_the_same_bits(kind, rng, tmp_path):
    kills(kind, 20, rng, tmp_path / "run.zarr")


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(rng, tmp_path):
    options, path = {**RUNS["langevin"][0], **STEPS, "keep_points": True}, tmp_path / "run.zarr"
    want = told(run("langevin", options))

    def work():
        dln.langevin(**made(options), store=path, every=0.0)

    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(0)
        time.sleep(float(rng.uniform(0.0, 0.3)))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    got = told(dln.langevin(**made(options), store=path))
    assert all(map(torch.equal, want, got))
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_a_store_is_read_while_the_run_goes_on(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    path, seen = tmp_path / "run.zarr", []
    options = {**RUNS["langevin"][0], **STEPS, "chains": 2, "save_at": [0.0, 0.2, 0.4, 1.0]}

    def look(fraction, info):
        if path.exists():
            data = xarray.open_zarr(path)
            seen.append((dict(data.sizes), data.load()))

    whole = dln.langevin(**made(options), store=path, every=0.0, progress=look)
    data = xarray.open_zarr(path)
    assert data.sizes == {"time": 4, "batch": 2, "mode": 3}
    assert torch.equal(torch.from_numpy(data["singular_values"].values), whole.singular_values)
    assert data["time"].values.tolist() == whole.t.tolist()
    assert [sizes.get("time", 0) for sizes, _ in seen] == [0, 1, 2] or len(seen) == 3
    for sizes, part in seen:
        rows = sizes.get("time", 0)
        if rows:
            now = torch.from_numpy(part["singular_values"].values)
            assert torch.equal(now, whole.singular_values[:rows])
    assert data.attrs["run"] == "langevin"
    assert '"beta": 3.0' in data.attrs["options"]
    assert data.attrs["dln_geometry_format"] == 3


def test_a_checkpoint_writes_what_is_new(tmp_path, monkeypatch):
    """The bytes of a checkpoint do not grow with the run."""
    from dln_geometry.dynamics import store as room

    written, real = [], room.Store.keep
    monkeypatch.setattr("dln_geometry.dynamics.store.columns.CHUNK", 2**12)

    def counted(self, state, rows):
        begun = time.time_ns()
        real(self, state, rows)
        files = [p for p in self.path.rglob("*") if p.is_file()]
        written.append(sum(p.stat().st_size for p in files if p.stat().st_mtime_ns >= begun))

    monkeypatch.setattr(room.Store, "keep", counted)
    options = {**RUNS["langevin"][0], **STEPS, "keep_points": True, "t_end": 8.0}
    options["save_at"] = torch.linspace(0, 8, 321)
    dln.langevin(**made(options), store=tmp_path / "run.zarr", every={"steps": 10})
    assert len(written) > 30
    early, late = (sum(part) / len(part) for part in (written[4:16], written[-13:-1]))
    assert late < 1.3 * early
