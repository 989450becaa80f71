from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from dln_geometry.cli import Puzzle, complete_at_depth, hide, load_photograph, main
from dln_geometry.testing import assert_close
from tests.cli.routes import documented_keys, refusal


@pytest.fixture(scope="module")
def quick_job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photograph")
    out, store = folder / "figure.png", folder / "store"
    assert main(["--quick", "--store", str(store), "--out", str(out)]) == 0
    return out, store


def test_main_job_draws_a_figure(quick_job):
    picture = imread(quick_job[0])[..., :3]
    assert min(picture.shape[:2]) > 800
    # Not blank: black text, white paper, and the colours of the curves between.
    assert picture.min() < 0.1
    assert picture.max() == 1.0
    assert picture.std() > 0.1


def test_the_figure_replaces_nothing_but_an_earlier_figure(quick_job, capsys):
    out, store = quick_job
    again = Path("again.png")
    again.write_bytes(b"mine")
    arguments = ["--quick", "--store", str(store), "--out", str(again)]
    assert "--force" in refusal(arguments, capsys)
    again.write_bytes(out.read_bytes())
    assert main(arguments) == 0


def test_main_job_continues_from_its_store(quick_job, capsys):
    out, store = quick_job
    assert len(list(store.iterdir())) == 4
    again = Path("again.png")
    arguments = ["--quick", "--store", str(store), "--out", str(again)]
    assert main(arguments) == 0
    assert (imread(again) == imread(out)).all()
    said = capsys.readouterr().out
    assert "held-out" in said
    assert "figure: again.png" in said
    # What is printed for programs is what the page on the command line says.
    assert main(["photograph", *arguments, "--json"]) == 0
    found, (outer, inner) = json.loads(capsys.readouterr().out), documented_keys("photograph")
    assert found.keys() - {"written"} == outer
    assert all(entry.keys() == inner["depths"] for entry in found["depths"])


def test_depth_completes_what_depth_one_leaves_grey():
    puzzle = hide(load_photograph(96), 0.6, torch.Generator().manual_seed(0))
    told = {depth: [] for depth in (1, 2, 3)}
    results = [
        complete_at_depth(puzzle, depth, torch.Generator().manual_seed(1), tell=told[depth].append)
        for depth in (1, 2, 3)
    ]
    # At depth 1 nothing is learnt about what is hidden: the start's error of 3e-4 stays.
    assert abs(results[0].held_out) < 0.01
    assert results[1].held_out < -3
    assert results[2].held_out < -3
    ranks = [r.outcome.effective_rank for r in results]
    assert ranks[0] > 2 * ranks[1] > 2 * ranks[2]
    limit = 0.03 * 0.5 * float(puzzle.loss.values.square().sum())
    for result in results:
        loss = result.trajectory.loss
        assert loss[-1] <= limit < loss[-2]
        shares = told[result.depth]
        assert shares == sorted(shares)
        assert shares[0] >= 0
        assert shares[-1] == 1


def test_hidden_pixels_are_a_share_and_leave_no_trace_in_the_loss(generator):
    picture = torch.rand(12, 9, generator=generator)
    puzzle = hide(picture, 0.6, generator)
    assert int(puzzle.observed.sum()) == 108 - 65
    other = torch.where(puzzle.observed, picture, 0.5)
    twin = Puzzle(other, puzzle.observed, puzzle.mean, puzzle.unit)
    assert (twin.loss.values == puzzle.loss.values).all()
    # The centred pixels have the norm that their share of the whole picture has.
    norm = puzzle.loss.values.double().square().sum()
    assert_close(norm.float(), torch.tensor(43 / 108), ops=1000)


def test_interrupt_without_a_store_says_what_would_help(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("dln_geometry.cli.photograph._complete_all", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted: give --store to be able to continue\n"
