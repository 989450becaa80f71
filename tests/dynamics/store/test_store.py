"""A store continues its own run and no other; damaged, foreign and contested stores are refused."""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics.store import read_sealed, write_sealed
from tests.dynamics.routes import tensors

F64 = torch.float64
SEED = 5


def seeded(seed=SEED):
    return torch.Generator().manual_seed(seed)


def point(seed=1, dtype=F64, shape=(4, 3), depth=3, **options):
    g = seeded(seed)
    return dln.Collapsed.random(shape, 3, depth, scale=0.4, generator=g, dtype=dtype, **options)


def target(seed=2):
    return torch.randn(4, 3, generator=seeded(seed), dtype=F64)


def layers(seed=3):
    return dln.random_balanced((3, 4, 4), scale=0.7, generator=seeded(seed), dtype=F64)


def unbalanced(seed=3):
    g = seeded(seed)
    return [torch.randn(d, d, generator=g, dtype=F64) for d in (3, 3)]


# Every run with a store: its arguments, and for every argument another value. `FREE` ones may
# change when the run is continued.
FREE = {"progress", "store", "every"}


def sized(p):
    return torch.linalg.matrix_norm(p.matrix)


def spectral(s):
    return 0.5 * s.square().sum(-1)


PARTICLES = torch.tensor([0.3, 1.0, 2.2], dtype=F64)
STEPS = {"t_end": 1.0, "dt": 0.1, "generator": SEED}
OTHER_STEPS = {"t_end": 1.1, "dt": 0.09, "generator": SEED + 1, "save_at": [0.0, 0.7]}


RUNS = {
    "gradient_flow": (
        {"loss": losses.Quadratic(target()), "start": point(), "t_end": 0.2, "rtol": 1e-6,
         "monitor": dln.Validation([0], [0], [1.0], (4, 3)), "patience": 900},
        {
            "decay": 0.1,
            "monitor": dln.Validation([0], [0], [2.0], (4, 3)),
            "patience": 901,
            "improvement": 1e-9,
            "loss": losses.Quadratic(-target()),
            "start": point(7),
            "save_at": [0.0, 0.1, 0.2],
            "rtol": 1e-7,
            "atol": 1e-9,
            "method": "rk5",
            "engine": "products",
            "rebalance": 1e-3,
            "keep_points": True,
            "observe": {"size": sized},
            "dense": True,
        },
        # Of float32 alone: tried by itself.
        {"t_end", "until", "precision"},
    ),
    "kirwan_ness_flow": (
        {"factors": unbalanced(), "t_end": 0.05},
        {
            "factors": unbalanced(8),
            "save_at": [0.0, 0.05],
            "rtol": 1e-7,
            "atol": 1e-9,
            "method": "rk5",
            "keep_points": True,
            "observe": {"size": sized},
            "dense": True,
        },
        {"t_end", "until"},
    ),
    "langevin": (
        {"loss": losses.Quadratic(target()), "start": point(), "beta": 3.0, "t_end": 0.2, "dt": 0.1,
         "generator": SEED},
        {
            "loss": losses.Quadratic(-target()),
            "start": point(7),
            "beta": 3.1,
            "kappa": 0.9,
            "entropy": False,
            "t_end": 0.3,
            "dt": 0.05,
            "generator": SEED + 1,
            "increments": None,
            "save_at": [0.0, 0.2],
            "chains": 2,
            "widths": 5,
            "method": "splitting",
            "upstairs": True,
            "keep_points": True,
            "observe": {"size": sized},
        },
        set(),
    ),
    "sample_gibbs": (
        {"loss": losses.Quadratic(target()), "start": point(), "beta": 3.0, "draws": 2,
         "burn_in": 3, "generator": SEED},
        {
            "loss": losses.Quadratic(-target()),
            "start": point(7),
            "beta": 3.1,
            "kappa": 0.9,
            "entropy": False,
            "draws": 3,
            "thin": 2,
            "burn_in": 4,
            "dt": 0.01,
            "generator": SEED + 1,
            "widths": 5,
            "keep_points": True,
            "observe": {"size": sized},
        },
        set(),
    ),
    "dyson": (
        {"start": PARTICLES, "dyson_index": 2.5, "scheme": "implicit", **STEPS},
        {"start": PARTICLES + 1, "dyson_index": 2.6, "confinement": 0.5, "scheme": "isospectral",
         "rtol": 1e-8, "increments": None, **OTHER_STEPS},
        {"observe"},
    ),
    "singular_dyson": (
        {"start": PARTICLES, "shape": (4, 3), "dyson_index": 1.0, **STEPS},
        {"start": PARTICLES + 1, "shape": (3, 3), "dyson_index": 2.6, "confinement": 0.5,
         "signed": None, "rtol": 1e-8, **OTHER_STEPS},
        {"observe"},
    ),
    "dln_dyson": (
        {"start": PARTICLES, "depth": 3, "beta": 2.0, "loss": spectral, **STEPS},
        {"start": PARTICLES + 1, "depth": 4, "beta": 2.1, "kappa": 0.9, "entropy": False,
         "loss": lambda s: 2 * spectral(s), "shape": (4, 3), "normalized": True, "rtol": 1e-8,
         **OTHER_STEPS},
        {"observe"},
    ),
    "isospectral_flow": (
        {"start": torch.diag(PARTICLES), "dyson_index": 2.5, **STEPS},
        {"start": torch.diag(PARTICLES + 1), "dyson_index": 2.6, "keep_points": True,
         "rtol": 1e-8, "observe": {"size": lambda m: m.diagonal(dim1=-2, dim2=-1).sum(-1)},
         **OTHER_STEPS},
        set(),
    ),
    "balancing_flow": (
        {"factors": unbalanced(), "t": [0.1, 0.3]},
        {"factors": unbalanced(8), "t": [0.1, 0.4]},
        {"observe"},
    ),
}  # fmt: skip


def made(options):
    fresh = isinstance(options.get("generator"), int)
    return {**options, "generator": seeded(options["generator"])} if fresh else options


def run(name, options, store=None):
    return getattr(dln, name)(**made(options), store=store)


def told(result):
    """Return the tensors of what a run returned."""
    if isinstance(result, dln.Trajectory):
        series = ("t", "loss", "singular_values", "states", "defect")
        found = [x for n in series if (x := getattr(result, n)) is not None]
        ends = [result.final, *(result.points or ())]
        return [*found, *result.observed.values(), *(x for end in ends for x in told(end))]
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, list):
        return [x for part in result for x in told(part)]
    return list(tensors(result))


@pytest.mark.parametrize("name", RUNS)
def test_every_option_that_decides_the_result_is_known(name, tmp_path):
    options, others, free = RUNS[name]
    assert set(inspect.signature(getattr(dln, name)).parameters) == {*others, *free, *FREE}
    store = tmp_path / "run"
    first = run(name, options, store)
    again = run(name, options, store)
    for a, b in zip(told(first), told(again), strict=True):
        assert torch.equal(a, b)
    for option, value in others.items():
        changed = {**options, option: value}
        if option == "increments" and name == "dyson":
            changed[option] = torch.randn(2, 3, generator=seeded(), dtype=F64)
        elif option == "increments":
            steps = torch.randn(2, 4, 3, generator=seeded(), dtype=F64)
            changed |= {"increments": steps, "generator": None, "dt": None}
        elif option == "signed":
            changed |= {"shape": (3, 3), "signed": True}
        with pytest.raises(ValueError, match=rf"same run, got {store} .*\b{option}\b"):
            run(name, changed, store)


def test_the_precision_of_products_is_known(tmp_path):
    loss, start = losses.Quadratic(target().float()), point().to(torch.float32)
    dln.gradient_flow(loss, start, t_end=0.2, store=tmp_path / "run")
    with pytest.raises(ValueError, match=r"same run, got .*\bprecision\b"):
        dln.gradient_flow(loss, start, t_end=0.2, store=tmp_path / "run", precision="tf32")


def test_every_public_run_with_a_store_is_tried():
    takers = {
        name
        for name in dln.__all__
        if inspect.isfunction(f := getattr(dln, name))
        and "store" in inspect.signature(f).parameters
    }
    # Those two keep runs of others, and have tests of their own.
    assert takers - {"ensemble", "sweep"} == set(RUNS)


def test_wrappers_of_runs_know_as_much(tmp_path):
    """They hand every option on to one of `RUNS`."""
    flow = {"loss": losses.Quadratic(target()), "start": point(), "beta": 3.0, "t_end": 0.1}
    motion = {"start": point(), "t_end": 0.2, "dt": 0.1, "generator": SEED}
    frozen = {**RUNS["langevin"][0], "kappa": 0.0}
    for name, options, changes in (
        ("free_energy_flow", flow, {"beta": 3.1, "widths": 5, "loss": losses.Quadratic(-target())}),
        ("brownian_motion", motion, {"upstairs": True, "dt": 0.05, "generator": 9}),
        ("langevin", frozen, {"beta": 3.1, "widths": 5, "start": point(9)}),
    ):
        store = tmp_path / f"{name}-{len(options)}"
        run(name, options, store)
        run(name, options, store)
        for option, value in changes.items():
            with pytest.raises(ValueError, match="same run"):
                run(name, {**options, option: value}, store)
    for start in (point(depth=4), point().replace(normalized=True), point(dtype=torch.float32)):
        with pytest.raises(ValueError, match="same run"):
            run("brownian_motion", {**motion, "start": start}, tmp_path / "brownian_motion-4")


class Tilted:
    """A loss of a user's, with nothing but the two methods."""

    def __init__(self, tilt):
        self.tilt = tilt

    def value(self, x):
        return (losses.as_dense(x) * self.tilt).sum((-2, -1)) + x.square().sum((-2, -1))

    def gradient(self, x):
        return self.tilt.expand_as(x) + 2 * x


def holed(x, **options):
    rows, cols = torch.arange(3), torch.arange(3)
    return losses.Completion(rows, cols, x.diagonal()[:3], (4, 3), **options)


PAIRS = {
    "quadratic": losses.Quadratic,
    "completion": holed,
    "sensing": lambda x: losses.Sensing(torch.ones(1, 4, 3, dtype=F64), x[0, :1]),
    "regression": lambda x: losses.Regression(torch.eye(3, dtype=F64), x.mT),
    "callable": lambda x: losses.from_callable(lambda z: (z - x).square().sum()),
    "named": lambda x: losses.from_callable(torch.sum, name=str(float(x.sum()))),
    "user": Tilted,
    "free energy": lambda x: dln.FreeEnergy(losses.Quadratic(x), 3.0, 3, (4, 3)),
    "free energy of a user's": lambda x: dln.FreeEnergy(Tilted(x), 3.0, 3, (4, 3)),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("scale", [1.0, 1e-8])
@pytest.mark.parametrize("change", [-1.0, 1.0 + 1e-12])
def test_losses_are_known_by_their_data(kind, scale, change, tmp_path):
    start, store = dln.EndToEnd.of(scale * target(9), 3), tmp_path / "run"
    options = {"start": start, "t_end": 1e-3, "rtol": 1e-3}
    dln.gradient_flow(PAIRS[kind](target()), store=store, **options)
    dln.gradient_flow(PAIRS[kind](target()), store=store, **options)
    with pytest.raises(ValueError, match="with other loss"):
        dln.gradient_flow(PAIRS[kind](change * target()), store=store, **options)


def test_a_rule_on_the_gradient_is_part_of_the_run(tmp_path):
    options = {**RUNS["gradient_flow"][0], "start": point(depth=4), "store": tmp_path / "run"}
    dln.gradient_flow(**options, until={"loss": 1.0})
    dln.gradient_flow(**options, until={"loss": 0.5})
    with pytest.raises(ValueError, match="other .*until"):
        dln.gradient_flow(**options, until={"gradient": 1e-3})


def stored(folder, name="gradient_flow"):
    path = Path(folder) / "state"
    run(name, RUNS[name][0], path)
    return path


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", ["gradient_flow", "sample_gibbs"])
def test_damage_is_found(name, rng, tmp_path):
    """Of the state and of every chunk; what readers see besides is written anew."""
    path = stored(tmp_path, name)
    want = run(name, RUNS[name][0], path)
    whole = {file: file.read_bytes() for file in files_of(path)}
    chunks = [file for file in whole if file.name != "zarr.json"]
    assert len(chunks) > 3
    for file in chunks:
        damaged, content = [], whole[file]
        for at in rng.integers(0, len(content), 12).tolist():
            flipped = bytearray(content)
            flipped[at] ^= 1 << int(rng.integers(8))
            damaged.append(bytes(flipped))
        for at in range(0, len(content), max(len(content) // 4, 1)):
            zeros = content[:at] + bytes(min(512, len(content) - at)) + content[at + 512 :]
            damaged += [content[:at], zeros]
        damaged += [whole[other] for other in chunks if other != file][:2]
        for bad in damaged:
            if bad == content:
                continue
            file.write_bytes(bad)
            try:
                again, said = run(name, RUNS[name][0], path), None
            except ValueError as error:
                again, said = None, str(error)
            if again is None:
                assert str(path) in said
                assert file.read_bytes() == bad
            else:
                # A bit of the compression that stands for nothing.
                assert all(map(torch.equal, told(want), told(again)))
            file.write_bytes(content)
        file.unlink()
        with pytest.raises(ValueError, match="missing"):
            run(name, RUNS[name][0], path)
        file.write_bytes(content)
    for file in whole.keys() - set(chunks):
        file.write_bytes(b"{")
    assert all(map(torch.equal, told(want), told(run(name, RUNS[name][0], path))))


def wrong(state):
    """Yield changes of the parts of a state that make it wrong."""
    parts = state.items() if isinstance(state, dict) else enumerate(state)
    for key, part in parts:
        if part == {} or key == "times":
            continue  # rows take the place
        for bad in ("text", None, -1, [1, 2], {"a": 1}, torch.ones(2, 2, 2)):
            if type(bad) is type(part) and not isinstance(part, torch.Tensor | dict):
                continue
            if part is not None or bad is not None:
                yield key, bad
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.numel():
            yield key, torch.full_like(part, torch.nan)
            yield key, part.float() if part.dtype == F64 else part.double()


def changes(state):
    for key, bad in wrong(state):
        copy = dict(state) if isinstance(state, dict) else list(state)
        copy[key] = bad
        yield copy
    for key, part in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(part, dict | list) and part:
            for changed in changes(part):
                copy = dict(state) if isinstance(state, dict) else list(state)
                copy[key] = changed
                yield copy
    if isinstance(state, dict) and state:
        yield {**state, "more": 1}
        (key, part), *rest = state.items()
        if part != {}:
            yield dict(rest)


@pytest.mark.parametrize("name", RUNS)
def test_wrong_contents_are_refused_by_name(name, rng, tmp_path):
    options = RUNS[name][0]
    if name == "gradient_flow":
        options = {**options, "save_at": [0.0, 0.1, 0.2]}
    path = tmp_path / "state"
    run(name, options, path)
    file = path / "checkpoint" / "state"
    held = read_sealed(file, "")
    every = list(changes(held["state"]))
    for k in rng.choice(len(every), min(40, len(every)), replace=False):
        state = every[k]
        if isinstance(state.get("by_method"), dict) and state["by_method"].keys() != {"rk8"}:
            continue  # any names of methods may be counted
        if name == "balancing_flow" and "piece" in state and state["piece"] is not None:
            continue  # that of the integrator, tried with the other flows
        write_sealed(file, {**held, "state": state})
        with pytest.raises(ValueError, match=f"store must hold .*{path}"):
            run(name, options, path)


def test_formats_and_foreign_places(tmp_path):
    path = stored(tmp_path)
    file = path / "checkpoint" / "state"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"dln-geometry run 3 ", b"dln-geometry run 4 ", 1))
    with pytest.raises(ValueError, match="store must have the format 3, got 4"):
        stored(tmp_path)
    for content in (b"", b"nothing", b"dln-geometry run", b"dln-geometry run \n", whole[:30]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"store must be a folder written by a run, .*{path}"):
            stored(tmp_path)
        assert file.read_bytes() == content
    shutil.rmtree(path)
    torch.save({"identity": {}, "state": {}}, path)
    for content in (path.read_bytes(), b"dln-geometry run 2 abc\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="an earlier version wrote it"):
            stored(tmp_path)
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"got the file {path}"):
        stored(tmp_path)
    assert path.read_bytes() == b"mine"
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("mine")
    with pytest.raises(ValueError, match=f"got the folder {path}"):
        stored(tmp_path)
    assert [p.name for p in path.iterdir()] == ["mine"]
    (path / "mine").unlink()
    stored(tmp_path)


def test_a_store_without_its_state_is_no_new_one(tmp_path):
    path = stored(tmp_path)
    (path / "checkpoint" / "state").unlink()
    before = files_of(path)
    with pytest.raises(ValueError, match="its state is missing"):
        stored(tmp_path)
    assert files_of(path) == before


def test_results_never_replace_a_store(tmp_path):
    path = stored(tmp_path).rename(tmp_path / "run.npz")
    with pytest.raises(IsADirectoryError):
        dln.Trajectory(t=torch.ones(1)).save(path)
    state = path / "checkpoint" / "state"
    os.symlink(state, tmp_path / "link.npz")
    with pytest.raises(ValueError, match="path must not be the store of a run"):
        dln.Trajectory(t=torch.ones(1)).save(tmp_path / "link.npz")
    run("gradient_flow", RUNS["gradient_flow"][0], path)


def test_one_writer_at_a_time(tmp_path):
    path, options = tmp_path / "state", RUNS["gradient_flow"][0]
    refused = []

    def second(fraction, info):
        if not refused:
            with pytest.raises(ValueError, match=f"one run at a time, got {path}") as caught:
                run("gradient_flow", options, path)
            refused.append(str(caught.value))

    dln.gradient_flow(**options, store=path, progress=second)
    assert str(os.getpid()) in refused[0]
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_lock_that_another_run_has_taken_is_seen(tmp_path):
    path, options = tmp_path / "state", RUNS["gradient_flow"][0]

    def stolen(fraction, info):
        (tmp_path / "state.lock").write_text(f"elsewhere 7 ? {'0' * 32}")

    with pytest.raises(ValueError, match="process 7 on elsewhere"):
        dln.gradient_flow(**options, store=path, progress=stolen)
    # It is not this run's to remove; it counts as left behind after ten minutes.
    with pytest.raises(ValueError, match="process 7 on elsewhere"):
        run("gradient_flow", options, path)
    os.utime(tmp_path / "state.lock", (time.time() - 601,) * 2)
    run("gradient_flow", options, path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_what_dead_writers_left_is_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    dead, host = int(done.stdout), socket.gethostname()
    (tmp_path / "state.lock").write_text(f"{host} {dead} ? {'0' * 32}")
    stored(tmp_path)
    inside = tmp_path / "state" / "checkpoint"
    left = [f".state.{host}~{dead}~00000000.part", f".state.{host}~{os.getpid()}~00000000.part"]
    kept = [f".state.{host}~1~00000000.part", f".state.other~{dead}~00000000.part",
            f".state2.{host}~{dead}~00000000.part", "mine.part", ".state.part"]  # fmt: skip
    before = {p.name for p in inside.iterdir()}
    for name in left + kept:
        (inside / name).write_text("half")
    stored(tmp_path)
    assert {p.name for p in inside.iterdir()} == {*before, *kept}


@pytest.mark.parametrize("name", ["gradient_flow", "langevin"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_what_was_written(call, name, tmp_path, monkeypatch):
    """Whichever write it is that fails."""
    options, path = RUNS[name][0], tmp_path / "state"
    want, real = run(name, options, tmp_path / "whole"), getattr(os, call)
    for before in range(0, 400, 9):
        left = [before]

        def full(*args, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            try:
                got, caught = getattr(dln, name)(**made(options), store=path, every=0.0), None
            except OSError as error:
                caught = error
        if caught is None:
            break
        assert caught.errno == errno.ENOSPC
        assert str(path) in str(caught)
        assert not list(tmp_path.rglob("*.part"))
    else:
        pytest.fail("the run must end once the disk has room")
    assert all(map(torch.equal, told(want), told(got)))


def test_wrong_calls_say_what_is_wrong(tmp_path):
    options = {**RUNS["gradient_flow"][0], "store": tmp_path / "state"}
    for change, error, message in (
        ({"store": 3}, TypeError, "store must be a path, got int"),
        ({"store": 3.5}, TypeError, "store must be a path, got float"),
        ({"every": -1.0}, ValueError, "every must be non-negative"),
        ({"every": {"days": 1}}, ValueError, "every must hold seconds or steps"),
        ({"every": {"steps": "a"}}, TypeError, r"every\['steps'\] must be a real number"),
        (
            {"option": 1},
            TypeError,
            r"gradient_flow\(\) got an unexpected keyword argument 'option'",
        ),
        ({"loss": None}, TypeError, "loss must have the methods"),
        ({"start": None}, TypeError, "start must be a sequence of matrices"),
    ):
        with pytest.raises(error, match=message):
            dln.gradient_flow(**{**options, **change})
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").touch()
    with pytest.raises(ValueError, match=f"got the folder {tmp_path}"):
        dln.gradient_flow(**{**options, "store": tmp_path})


def test_numpy_numbers_and_integers_are_one_option(tmp_path):
    options = {**RUNS["gradient_flow"][0], "save_at": [0, 0.1], "atol": 1}
    run("gradient_flow", options, tmp_path / "state")
    same = {**options, "save_at": np.array([0.0, 0.1]), "atol": np.float64(1.0)}
    run("gradient_flow", same, tmp_path / "state")


def test_a_store_is_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    with pytest.raises(ValueError, match="store must be a folder, got the device or pipe"):
        dln.gradient_flow(**RUNS["gradient_flow"][0], store=tmp_path / "pipe")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
