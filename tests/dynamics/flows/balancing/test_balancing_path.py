"""The balancing flow at extreme layers: precisions, scales, dead units, zeros, empty batches."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dln_geometry.dynamics.flows import balancing_flow, balancing_velocity
from dln_geometry.geometry.points import end_to_end, is_balanced, moments
from dln_geometry.testing import assert_close

WIDTHS = [(1, 3, 3, 1), (2, 5, 5, 2), (1, 3, 3, 3, 1), (2, 4, 6, 4, 2), (1, 22, 22, 1), (3, 3, 3)]


def layers_of(widths, generator, batch=()):
    return [
        torch.randn(*batch, after, before, generator=generator, dtype=torch.float64)
        for before, after in pairwise(widths)
    ]


def without_unit(layers, unit, rows=True, columns=True):
    layers = [w.clone() for w in layers]
    for before, after in pairwise(layers):
        if rows:
            before[unit] = 0.0
        if columns:
            after[:, unit] = 0.0
    return layers


@pytest.mark.parametrize("widths", WIDTHS)
def test_velocity_in_single_precision(widths, generator):
    layers = [w.float() for w in layers_of(widths, generator)]
    velocity = balancing_velocity([w.double() for w in layers])
    for got, expected in zip(balancing_velocity(layers), velocity, strict=True):
        assert got.dtype == torch.float32
        assert_close(got, expected, scale=max(float(w.abs().max()) for w in layers))


@pytest.mark.parametrize("widths", [(2, 5, 5, 2), (3, 3, 3)])
@pytest.mark.parametrize("scale", [1e300, 1e150, 1e-150, 1e-300])
def test_velocity_has_degree_one(widths, scale, generator):
    layers = layers_of(widths, generator)
    moved = balancing_velocity([scale * w for w in layers])
    for got, expected in zip(moved, balancing_velocity(layers), strict=True):
        assert_close(got / scale, expected, condition=100.0)


@pytest.mark.parametrize("scale", [1e200, 1e-200])
@pytest.mark.parametrize("time", [0.7, math.inf])
def test_flow_has_degree_one(scale, time, generator):
    layers = layers_of((2, 2, 2), generator)
    moved = balancing_flow([scale * w for w in layers], time)
    for got, expected in zip(moved, balancing_flow(layers, time), strict=True):
        # The place on the orbit is known to 1e-8.
        assert float((got / scale - expected).abs().max()) < 1e-7


def test_flow_in_single_precision_at_the_ends_of_its_range(generator):
    layers = [w.float() for w in layers_of((2, 2, 2), generator)]
    expected = balancing_flow(layers, 0.7)
    for scale in (1e30, 1e-30):
        for got, w in zip(balancing_flow([scale * w for w in layers], 0.7), expected, strict=True):
            assert got.dtype == torch.float32
            assert_close(got / scale, w)


@pytest.mark.parametrize(("rows", "columns"), [(True, False), (False, True), (True, True)])
def test_flow_of_a_dead_unit_in_every_layer(rows, columns, generator):
    layers = without_unit(layers_of((3, 3, 3, 3), generator), 1, rows, columns)
    size = float(sum(w.square().sum() for w in layers))
    end = balancing_flow(layers, 0.5)
    assert_close(end_to_end(end), end_to_end(layers), scale=size)
    for got, start in zip(moments(end), moments(layers), strict=True):
        assert_close(got, math.exp(-1.0) * start, scale=size)
    if rows and columns:
        # Nothing enters or leaves the unit: the rest is the flow of the narrower network.
        kept = [0, 2]
        narrow = [layers[0][kept], layers[1][kept][:, kept], layers[2][:, kept]]
        ends = balancing_flow(narrow, 0.5)
        for got, expected in zip(
            (end[0][kept], end[1][kept][:, kept], end[2][:, kept]), ends, strict=True
        ):
            assert float((got - expected).abs().max()) < 1e-7
        assert_close(end[0][1], torch.zeros(3), scale=size)


def test_flow_of_a_dead_unit_ends_at_balanced_layers(generator):
    layers = without_unit(layers_of((2, 3, 3, 2), generator), 0, columns=False)
    end = balancing_flow(layers, math.inf)
    assert bool(is_balanced(end))
    assert_close(end_to_end(end), end_to_end(layers), ops=1000, scale=10.0)


@pytest.mark.parametrize("time", [0.7, math.inf])
def test_zero_layers_and_empty_batches(time, generator):
    layers = layers_of((2, 3, 2), generator)
    for moved in (balancing_flow([0.0 * w for w in layers], time),):
        assert all(bool((w == 0).all()) for w in moved)
    empty = [w.expand(0, *w.shape) for w in layers]
    for moved in (balancing_flow(empty, time), balancing_velocity(empty)):
        assert [w.shape for w in moved] == [w.shape for w in empty]
    assert len(balancing_flow(empty, [0.1, 0.2])) == 2
