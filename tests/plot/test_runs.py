from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dln_geometry import plot
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Quadratic
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import Collapsed, EndToEnd, random_balanced
from dln_geometry.testing import assert_close


def target(m, n, generator):
    return torch.randn(m, n, dtype=torch.float64, generator=generator)


@pytest.fixture
def run(generator):
    """A rectangular run of depth 3 that kept its points."""
    start = Collapsed.random((5, 4), 3, 3, scale=0.3, generator=generator, dtype=torch.float64)
    return gradient_flow(
        Quadratic(target(5, 4, generator)), start, t_end=0.7, rtol=1e-6, keep_points=True
    )


def lines(ax):
    return [np.stack(line.get_data()) for line in ax.lines]


def test_singular_values_are_drawn_mode_by_mode(run):
    ax = plot.singular_values(run, count=2)
    assert len(ax.lines) == 3
    drawn = {tuple(y) for _, y in lines(ax)}
    assert drawn == {tuple(s) for s in run.singular_values.T.tolist()}
    assert all((t == run.t.numpy()).all() for t, _ in lines(ax))
    assert ax.get_yscale() == "linear"
    assert ax.get_xlim() == (0.0, float(run.t[-1]))
    assert plot.singular_values(run, log=True).get_yscale() == "log"


def test_loss_is_drawn_into_the_given_axes(run):
    given = Figure().add_subplot()
    ax = plot.loss(run, given, label="depth 3", color="C2")
    assert ax is given
    (line,) = ax.lines
    assert line.get_label() == "depth 3"
    assert (line.get_ydata() == run.loss.numpy()).all()
    assert ax.get_yscale() == "log"


def test_entropy_is_that_of_the_points_on_the_way(run):
    expected = torch.stack([entropy(point) for point in run.points])
    ((loss, drawn),) = lines(plot.entropy(run))
    assert (loss == run.loss.numpy()).all()
    # The eigenvalues of L^T L lose the square of the ratio of the singular values.
    s = run.singular_values
    assert_close(drawn, expected, condition=float((s[:, 0] / s[:, -1]).max()) ** 2)
    ((_, relative),) = lines(plot.entropy(run, relative=True))
    assert relative[0] == 0
    assert_close(relative, drawn - drawn[0])
    ((_, wide),) = lines(plot.entropy(run, widths=9))
    assert_close(wide[-1], entropy(run.final, widths=9), condition=100)


def test_entropy_against_loss_runs_from_left_to_right_once(run):
    ax = plot.entropy(run)
    plot.entropy(run, ax)
    assert ax.xaxis_inverted()
    assert ax.get_xscale() == "log"
    assert len(ax.lines) == 2


@pytest.mark.parametrize("depth", [1, 2.5, float("inf")])
def test_every_depth_can_be_drawn(depth, generator):
    start = EndToEnd.of(target(3, 3, generator), depth)
    run = gradient_flow(Quadratic(target(3, 3, generator)), start, t_end=0.2, rtol=1e-5)
    ((_, drawn),) = lines(plot.entropy(run))
    assert np.isfinite(drawn).all()
    if depth == 1:
        assert not drawn.any()
    plot.singular_values(run)
    plot.loss(run)


def test_layers_bring_their_own_widths(generator):
    factors = [
        w + 0.1 * torch.randn(w.shape, dtype=w.dtype, generator=generator)
        for w in random_balanced((3, 6, 4), generator=generator, dtype=torch.float64)
    ]
    run = gradient_flow(Quadratic(target(4, 3, generator)), factors, t_end=0.1, rtol=1e-5)
    ((_, drawn),) = lines(plot.entropy(run))
    product = run.final[1] @ run.final[0]
    expected = entropy(EndToEnd.of(product, 2), widths=(3, 6, 4))
    assert_close(drawn[-1], expected, condition=100)


def test_a_batch_gives_one_line_for_each_sample(generator):
    start = Collapsed.random(
        (3, 3), 2, 2, scale=0.5, batch=(4,), generator=generator, dtype=torch.float64
    )
    run = gradient_flow(Quadratic(target(3, 3, generator)), start, t_end=0.3, rtol=1e-5)
    assert len(plot.loss(run).lines) == 4
    assert len(plot.entropy(run).lines) == 4
    assert len(plot.singular_values(run).lines) == 8


def test_figures_are_unknown_to_pyplot_and_can_be_written(run, tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    for draw in (plot.singular_values, plot.loss, plot.entropy):
        ax = draw(run)
        path = tmp_path / f"{draw.__name__}.png"
        ax.figure.savefig(path)
        assert path.stat().st_size > 1000
    if loaded:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("draw", [plot.singular_values, plot.loss, plot.entropy])
def test_what_is_no_run_is_refused(draw):
    with pytest.raises(TypeError, match="trajectory must be a Trajectory, got ndarray"):
        draw(np.ones(3))
    with pytest.raises(ValueError, match="trajectory must hold .* got none"):
        draw(Trajectory(t=torch.zeros(2)))


def test_bad_arguments_are_refused(run):
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        plot.singular_values(run, count=-1)
    bare = Trajectory(t=run.t, loss=run.loss, singular_values=run.singular_values)
    with pytest.raises(ValueError, match="last point"):
        plot.entropy(bare)
