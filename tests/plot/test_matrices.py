from __future__ import annotations

import numpy as np
import pytest
import torch

from dln_geometry import plot
from dln_geometry.geometry.points import Collapsed, Network, random_balanced
from dln_geometry.testing import assert_close


def lines(ax):
    return [np.stack(line.get_data()) for line in ax.lines]


def test_matrix_is_symmetric_about_zero_and_shows_holes(rng):
    x = rng.normal(size=(4, 6))
    x[1, 2] = np.nan
    ax = plot.matrix(x)
    (image,) = ax.images
    assert image.get_array().shape == (4, 6)
    assert image.get_array().mask.sum() == 1
    low, high = image.get_clim()
    assert -low == high == np.nanmax(np.abs(x))
    (grey,) = plot.matrix(np.ones((2, 2)), cmap="gray", vmin=0.0, vmax=1.0).images
    assert grey.get_clim() == (0.0, 1.0)
    plot.matrix(np.full((2, 2), np.nan))


def test_matrix_and_spectrum_take_points(generator):
    point = Collapsed.random((5, 4), 3, 2.5, generator=generator, dtype=torch.float64)
    (image,) = plot.matrix(point).images
    assert_close(np.asarray(image.get_array()), point.matrix)
    for x in (point, point.point()):
        ((index, s),) = lines(plot.spectrum(x))
        assert (index == [1, 2, 3]).all()
        assert_close(s, torch.ones(3, dtype=torch.float64))
    layers = random_balanced((4, 3, 5), scale=0.7, generator=generator, dtype=torch.float64)
    (image,) = plot.matrix(Network(layers)).images
    assert_close(np.asarray(image.get_array()), layers[1] @ layers[0])
    ((_, s),) = lines(plot.spectrum(Network(layers)))
    assert_close(s, torch.full((3,), 0.7, dtype=torch.float64))


def test_spectrum_leaves_zeros_out():
    ax = plot.spectrum([[3.0, 0.0], [0.0, 0.0]])
    ((index, s),) = lines(ax)
    assert (index == [1]).all()
    assert_close(s, torch.tensor([3.0], dtype=torch.float64))
    assert ax.get_yscale() == "log"
    plot.spectrum(torch.zeros(2, 2))


def test_what_is_no_single_matrix_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \(m, n\), got \(3,\)"):
        plot.matrix(np.ones(3))
    with pytest.raises(ValueError, match="single matrix"):
        plot.spectrum(torch.ones(2, 3, 3))


def test_a_histogram_of_all_numbers_is_refused():
    with pytest.raises(ValueError, match="a range that is a number, got values from -1e[+]308"):
        plot.histogram(torch.tensor([-1e308, 1e308], dtype=torch.float64))
