from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.dynamics.noise import Particles, simulate, time_grid
from dln_geometry.testing import assert_close
from tests.dynamics.noise.routes import F64, Cliff, quadratic, start_at


def test_a_killed_run_continues_to_the_same_bits(generator, tmp_path):
    p = start_at((3, 3), 3, 3, generator, chains=2)
    loss = quadratic((3, 3), generator)
    options = {
        "beta": 3.0,
        "t_end": 1.0,
        "dt": 0.05,
        "keep_points": True,
        "save_at": [0.0, 0.5, 1.0],
    }
    whole = dln.langevin(loss, p, generator=torch.Generator().manual_seed(1), **options)
    seen = []

    def kill(fraction, info):
        seen.append(fraction)
        if fraction >= 0.5:
            raise KeyboardInterrupt

    store = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        dln.langevin(
            loss,
            p,
            generator=torch.Generator().manual_seed(1),
            progress=kill,
            store=store,
            every=0.0,
            **options,
        )
    again = dln.langevin(
        loss, p, generator=torch.Generator().manual_seed(1), store=store, **options
    )
    assert torch.equal(whole.singular_values, again.singular_values)
    assert torch.equal(whole.final.L, again.final.L)
    assert len(again.points) == 3
    assert seen == [0.0, 0.5]
    with pytest.raises(ValueError, match="store must belong to the same run"):
        dln.langevin(loss, p, generator=generator, store=store, **{**options, "beta": 4.0})
    other = quadratic((3, 3), generator)
    for energy, change in ((other, {}), (loss, {"widths": 4})):
        with pytest.raises(ValueError, match="store must belong to the same run"):
            dln.langevin(energy, p, generator=generator, store=store, **options, **change)


def test_a_killed_run_of_splitting_steps_continues_too(generator, tmp_path):
    p, loss = start_at((3, 3), 3, 4, generator), quadratic((3, 3), generator)
    options = {"beta": 3.0, "t_end": 0.5, "dt": 0.1, "chains": 2, "method": "splitting"}
    whole = dln.langevin(loss, p, generator=torch.Generator().manual_seed(1), **options)

    def kill(fraction, info):
        if fraction >= 0.6:
            raise KeyboardInterrupt

    store = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        dln.langevin(
            loss,
            p,
            generator=torch.Generator().manual_seed(1),
            store=store,
            every=0.0,
            progress=kill,
            **options,
        )
    again = dln.langevin(
        loss, p, generator=torch.Generator().manual_seed(1), store=store, **options
    )
    assert torch.equal(whole.singular_values, again.singular_values)
    with pytest.raises(ValueError, match="store must belong to the same run"):
        dln.langevin(loss, p, generator=generator, store=store, **{**options, "method": "product"})


class Ending(dln.losses.Quadratic):
    """A loss whose call number `left` ends the process: in a step that has drawn its noise."""

    left, ending = math.inf, KeyboardInterrupt

    def contract(self, left, right):
        return self.counted(super().contract(left, right))

    def evaluate(self, x):
        return self.counted(super().evaluate(x))

    def counted(self, result):
        Ending.left -= 1
        if Ending.left == 0:
            raise Ending.ending
        return result


MOTIONS = {
    "product": {},
    "splitting": {"method": "splitting"},
    "plain": {},
    "upstairs": {"upstairs": True},
    "gibbs": {"draws": 4, "thin": 3, "burn_in": 5},
}


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["row", "step"])
@pytest.mark.parametrize("motion", MOTIONS)
def test_an_interrupted_run_loses_nothing(motion, where, ending, tmp_path, generator, monkeypatch):
    """The clock asks for no checkpoint in so short a run: the interrupt alone saves the state."""
    p = start_at((2, 2), 2, 1 if motion == "plain" else 3, generator, chains=2)
    start = p.factors() if motion == "upstairs" else p
    loss = Ending(torch.randn(2, 2, generator=generator, dtype=F64))
    options = {"beta": 3.0, "generator": 5, "keep_points": True, **MOTIONS[motion]}
    run = dln.sample_gibbs if motion == "gibbs" else dln.langevin
    if motion != "gibbs":
        options |= {"t_end": 1.0, "dt": 0.1, "save_at": [0.0, 0.3, 0.6, 1.0]}
    whole = run(loss, start, **options)
    rows, again = [], []

    def told(fraction, info):
        rows.append(fraction)
        if where == "row" and len(rows) == 3:
            raise ending

    with monkeypatch.context() as patch:
        patch.setattr(Ending, "ending", ending)
        patch.setattr(Ending, "left", 12 if where == "step" else math.inf)
        with pytest.raises(ending):
            run(loss, start, progress=told, store=tmp_path / "run", **options)
    assert 0 < len(rows) < 4
    resumed = run(
        loss, start, progress=lambda f, info: again.append(f), store=tmp_path / "run", **options
    )
    assert len(rows) + len(again) == 4, "rows before the interrupt are not made again"
    assert torch.equal(whole.singular_values, resumed.singular_values)
    for a, b in zip(whole.points, resumed.points, strict=True):
        for x, y in zip(parts_of(a), parts_of(b), strict=True):
            assert torch.equal(x, y)


def parts_of(point):
    return [point.matrix] if hasattr(point, "matrix") else list(point)


def test_saved_times_are_met(generator):
    p = start_at((2, 2), 2, 3, generator)
    path = dln.brownian_motion(p, t_end=1.0, dt=0.3, generator=generator, save_at=[0.1, 0.5, 0.95])
    assert_close(path.t, torch.tensor([0.1, 0.5, 0.95], dtype=F64))
    assert path.stats["steps"] == 1 + 2 + 2
    assert len(dln.brownian_motion(p, t_end=1.0, dt=1e-3, generator=generator)) == 101


@pytest.mark.parametrize("method", ["product", "splitting"])
@pytest.mark.parametrize("depth", [1, 3, math.inf])
def test_the_chains_that_diverge_are_named_and_the_others_kept(method, depth, generator):
    start = dln.EndToEnd.of(torch.eye(2, dtype=F64).expand(4, 2, 2), depth)
    with pytest.raises(dln.FlowError, match=r"in sample 2 of 4") as caught:
        dln.langevin(
            Cliff(2, calls=10),
            start,
            beta=9.0,
            t_end=1.0,
            dt=0.02,
            generator=generator,
            method=method,
        )
    reached = caught.value.trajectory
    assert reached.status == ["unfinished", "unfinished", "failed", "unfinished"]
    assert bool(torch.isfinite(reached.final.matrix).all())
    assert len(reached) > 0


def test_a_step_that_is_too_large_warns_and_names_the_remedy(generator):
    loss = dln.losses.Quadratic(100 * torch.eye(3, dtype=F64))
    start = start_at((3, 3), 3, 4, generator)
    with pytest.warns(UserWarning, match="dt = 0.5 is too large .* take a smaller dt"):
        dln.langevin(loss, start, beta=1.0, t_end=1.0, dt=0.5, generator=generator)


def test_grids_make_equal_steps_between_saved_times():
    grid = time_grid(1.0, 0.3, [0.1, 0.5, 0.95], to_end=True)
    assert grid.counts == (1, 2, 2, 1)
    assert_close(torch.tensor(grid.sizes), [0.1, 0.2, 0.225, 0.05])
    assert_close(grid.step_times(), [0.1, 0.3, 0.5, 0.725, 0.95, 1.0])
    assert grid.steps == len(grid.step_times())
    # No step is made for rounding: seven times 0.01 is less than 0.07 by one.
    assert time_grid(7 * 0.01, 0.01).counts == (0, *(1,) * 7)
    assert time_grid(1000.3, None, [0.1, 1000.2, 1000.3]).counts == (1, 1, 1)
    assert time_grid(2.0, None).counts == (0, *(1,) * 100)
    many = time_grid(1.0, 1e-3)
    assert (len(many.times), many.steps, float(many.times[-1])) == (101, 1000, 1.0)
    given = time_grid(1.0, None, [0.25, 0.5], steps=8, to_end=True)
    assert (given.counts, given.sizes) == ((2, 2, 4), (0.125,) * 3)


def test_particles_are_shrunk_by_the_confining_drift():
    """Without repulsion and noise ``x' = -c x``; a step sees the time ``(1 - e^{-2ch})/(2c)``."""
    seen = []

    def still(x, h, index):
        seen.append(h)
        return x

    x, c = torch.tensor([-1.0, 2.0], dtype=F64), 0.7
    path = simulate(Particles(still, "still", c), (x,), time_grid(1.0, 0.25), label="still")
    assert_close(path.final, math.exp(-c) * x)
    assert_close(path.states[2], math.exp(-0.5 * c) * x)
    assert_close(seen, [-math.expm1(-0.5 * c) / (2 * c)] * 4)
    assert path.stats == {"steps": 4, "dt": 0.25, "scheme": "still"}


def test_particles_that_overflow_are_named():
    def diverging(x, h, index):
        if bool((x[1] > 1).any()):
            raise torch.linalg.LinAlgError
        return torch.where(torch.tensor([[False], [True]]), torch.inf, x)

    motion = Particles(diverging, "diverging", 0.0)
    with pytest.raises(dln.FlowError, match="got overflow, at t = 0.5 in sample 1 of 2") as caught:
        simulate(motion, (torch.zeros(2, 3),), time_grid(1.0, 0.5), label="diverging")
    assert caught.value.trajectory.status == ["unfinished", "failed"]


def test_progress_bars_show_every_step_and_callbacks_every_row(generator, capsys):
    p, seen = start_at((2, 2), 2, 3, generator), []
    options = {"t_end": 1.0, "dt": 0.1, "save_at": [0.2, 1.0], "generator": generator}
    dln.brownian_motion(p, progress=lambda fraction, info: seen.append(fraction), **options)
    assert seen == [0.2, 1.0]
    dln.brownian_motion(p, progress=True, **options)
    shown = capsys.readouterr().out
    assert "brownian motion" in shown
    assert "100%" in shown
    assert "nan" not in shown
