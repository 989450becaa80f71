"""What is drawn stands in the data of the lines: motions, planes, fibres, comparisons, films."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cycler import cycler
from matplotlib import rc_context
from PIL import Image

import dln_geometry as dln
from dln_geometry import laws, plot
from dln_geometry.testing import assert_close

F64 = torch.float64
TARGET = torch.diag(torch.tensor([1.0, 0.5, 0.2], dtype=F64))


def flow(depth=3, **options):
    start = dln.Collapsed.random((3, 3), 3, depth, scale=0.2, generator=1, dtype=F64)
    return dln.gradient_flow(dln.losses.Quadratic(TARGET), start, t_end=2.0, rtol=1e-6, **options)


def test_series_and_observables_by_name():
    path = flow(observe={"trace": lambda p: p.matrix.diagonal(dim1=-2, dim2=-1).sum(-1)})
    (line,) = plot.observable(path, "trace").lines
    assert (line.get_ydata() == path.observed["trace"].numpy()).all()
    (line,) = plot.observable(path, "effective_rank").lines
    assert_close(torch.tensor(line.get_ydata()), dln.effective_rank(path.singular_values))
    assert plot.observable(path, "loss").get_yscale() == "log"
    with pytest.raises(ValueError, match="name must be one of trace, effective_rank, loss"):
        plot.observable(path, "spread")


def test_a_colour_bar_numbers_the_modes():
    ax = plot.singular_values(flow(), colorbar=True, linestyle=":")
    assert {line.get_linestyle() for line in ax.lines} == {":"}
    bar = ax.figure.axes[1]
    ticks = list(bar.get_yticks())
    assert ticks == [1.0, 2.0, 3.0]


def test_particles_stand_against_their_law():
    path = dln.dyson(torch.zeros(4, dtype=F64), dyson_index=math.inf, t_end=1.0)
    ax = plot.particles(path, law=lambda t: laws.semicircle_radius(4, t))
    assert len(ax.lines) == 5
    assert (ax.lines[3].get_ydata() == path.states[:, 3].numpy()).all()
    assert_close(torch.tensor(ax.lines[4].get_ydata()), 4.0 * path.t.sqrt())


def test_histograms_have_area_one():
    ax = plot.histogram(np.linspace(0, 1, 500), bins=7, density=lambda x: 0 * x + 1)
    area = sum(p.get_width() * p.get_height() for p in ax.patches)
    assert area == pytest.approx(1.0)
    assert (ax.lines[0].get_ydata() == 1).all()


def test_landscapes_and_portraits_cover_their_plane():
    ax = plot.landscape(lambda p: p.square().sum(-1), x=(-1, 2), y=(0, 1), count=9, lines=True)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 2), (0, 1))
    assert len(ax.figure.axes) == 2
    with pytest.raises(ValueError, match=r"f must return shape \(81,\), got \(81, 2\)"):
        plot.landscape(lambda p: p, count=9)
    with pytest.raises(ValueError, match="velocity must return shape"):
        plot.phase_portrait(lambda p: p[:, 0], count=9)


def test_paths_in_the_plane_of_two_singular_values():
    path = flow()
    line, dot = plot.spectral_plane(path, modes=(2, 0)).lines
    assert (line.get_xdata() == path.singular_values[:, 2].numpy()).all()
    assert (line.get_ydata() == path.singular_values[:, 0].numpy()).all()
    assert dot.get_xdata() == line.get_xdata()[:1]


@pytest.mark.parametrize("product", [0.3, 1.0])
def test_balancing_flows_stay_on_the_fibre_and_end_balanced(product):
    ax = plot.scalar_fibre(product, flows=4)
    flows = [np.stack(line.get_data_3d()) for line in ax.lines if line.get_color() == "#BB5566"]
    flows = [curve for curve in flows if curve.shape[1] > 1]
    assert len(flows) == 4
    for curve in flows:
        assert_close(torch.tensor(curve.prod(0)), torch.full((curve.shape[1],), product, dtype=F64))
        end = torch.tensor(curve[:, -1])
        assert_close(end, torch.full((3,), product ** (1 / 3), dtype=F64), ops=1000)


def test_depths_have_their_colours():
    runs = {depth: flow(depth) for depth in (math.inf, 2)}
    two, infinite = plot.depths(runs, "singular_values").lines[::3]
    assert (two.get_label(), infinite.get_label()) == ("depth 2", "depth ∞")
    assert infinite.get_color() == plot.depth_color(math.inf)


def test_balance_layer_by_layer():
    layers = [[[1.0]], [[3.0]], [[2.0]]]
    path = dln.kirwan_ness_flow(layers, t_end=0.1, keep_points=True)
    first, second = plot.balancedness(path).lines
    assert (first.get_ydata()[0], second.get_ydata()[0]) == (8.0, 5.0)
    with pytest.raises(ValueError, match="trajectory must hold the layers at its times"):
        plot.balancedness(flow())


@pytest.mark.parametrize("kept", ["dense", "keep_points"])
def test_films_have_their_frames(kept, tmp_path):
    file = plot.animation(flow(**{kept: True}), tmp_path / "flow.gif", frames=3, width=3.0)
    with Image.open(file) as film:
        assert film.n_frames == 3


def test_options_of_the_user_win_by_any_name_and_one_label_names_all(generator):
    """Under a cycle of dashes, lines with colours of their own are whole."""
    start = dln.Collapsed.random((4, 3), 3, 3, batch=(2,), scale=0.3, generator=generator)
    loss = dln.losses.Quadratic(torch.ones(4, 3))
    run = dln.gradient_flow(loss, start, t_end=0.2, save_at=5)
    cycle = cycler(color=["r", "g"]) + cycler(linestyle=["-", "--"])
    with rc_context({"axes.prop_cycle": cycle}):
        for draw in (
            plot.singular_values,
            plot.loss,
            plot.particles,
            plot.entropy,
            lambda run, **style: plot.observable(run, "effective_rank", **style),
        ):
            ax = draw(run, c="k", lw=3, label="both")
            assert {line.get_linewidth() for line in ax.lines} == {3}
            assert {line.get_color() for line in ax.lines} == {"k"}
            assert ax.get_legend_handles_labels()[1] == ["both"]
        for ax in (plot.singular_values(run), plot.particles(run), plot.depths({2: run, 3: run})):
            assert {line.get_linestyle() for line in ax.lines} == {"-"}
        assert plot.depths({2: run}, lw=2, ls=":").lines[0].get_linestyle() == ":"
    assert plot.spectrum(torch.eye(2), c="k", marker="x").lines[0].get_marker() == "x"
    assert plot.histogram(torch.ones(3), ec="k", lw=2).patches[0].get_linewidth() == 2
    assert plot.matrix(torch.eye(2), norm="log").images[0].norm.vmin == 1
