from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from dln_geometry import plot


def grey(color):
    """Return the lightness of a colour as a printer without colours shows it (Rec. 709)."""
    r, g, b = np.asarray(color[:3])
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_style_holds_inside_and_leaves_nothing_behind():
    before = dict(rcParams)
    with plot.style("page"):
        fig, axes = plot.figure(2, 3, sharex=True)
        assert axes.shape == (2, 3)
        assert tuple(fig.get_size_inches()) == pytest.approx((7.0, 0.75 * 7 * 2 / 3))
        assert rcParams["pdf.fonttype"] == 42
        assert plot.spectrum(np.eye(2)).figure.get_figwidth() == 7.0
    assert dict(rcParams) == before
    with plot.style(5.0, aspect=0.5):
        assert tuple(rcParams["figure.figsize"]) == (5.0, 2.5)
    fig, ax = plot.figure(width="column")
    assert isinstance(ax, Axes)
    assert fig.get_figwidth() == 3.4
    assert plot.spectrum(np.eye(2)).figure.get_figwidth() == 5.0


def test_depths_differ_in_grey_and_infinity_is_the_darkest():
    depths = (1, 1.5, 2, 3, 4, 6, 10, 100, math.inf)
    found = [grey(plot.depth_color(depth)) for depth in depths]
    assert all(a > b + 0.01 for a, b in itertools.pairwise(found))
    assert found[0] < 0.8, "the lightest must be seen on white paper"


def test_lines_of_the_cycle_differ_in_grey():
    with plot.style():
        cycle = list(rcParams["axes.prop_cycle"])
    lightness = sorted(grey(to_rgb(c["color"])) for c in cycle)
    assert len(cycle) == 4
    assert all(b - a > 0.1 for a, b in itertools.pairwise(lightness))


def test_labels_of_depths():
    assert plot.depth_label(math.inf, "N =") == "N = ∞"
    assert plot.depth_label(2.5, "") == "2.5"


def test_letters_stand_above_the_panels():
    _, axes = plot.figure(1, 3)
    assert plot.panel_letters(axes) == list(axes)
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b", "c"]
    plot.panel_letters(axes[0], ["i"])
    assert axes[0].get_title(loc="left") == "i"
    with pytest.raises(ValueError, match="letters must be as many as panels, 3"):
        plot.panel_letters(axes, "ab")


def test_files_are_written_whole_and_equal(tmp_path):
    ax = plot.spectrum(np.diag([3.0, 1.0]))
    paths = plot.save(ax, tmp_path / "one.two")
    assert [p.name for p in paths] == ["one.two.pdf", "one.two.png"]
    first = paths[0].read_bytes()
    assert plot.save(ax.figure, tmp_path / "one.two")[0].read_bytes() == first
    assert [p.name for p in plot.save(ax, tmp_path / "a.svg")] == ["a.svg"]
    with pytest.raises(ValueError, match="formats must be some of .* got"):
        plot.save(ax, tmp_path / "b", formats=["docx"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "one.two.pdf", "one.two.png"]


def test_matplotlib_waits_for_the_first_figure():
    code = "import sys, dln_geometry.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
