"""A trajectory is a value: rows, parts, interpolation, selection, one line of text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.testing import assert_close
from tests.dynamics.routes import flows, short_run

SERIES = ("t", "loss", "singular_values", "defect")


def test_a_record_is_a_row(generator):
    for path in flows(generator):
        assert len(list(path)) == len(path) == len(path.t)
        for k in (0, 2, len(path) - 1, -1):
            record = path[k]
            for name in SERIES:
                assert torch.equal(getattr(record, name), getattr(path, name)[k])
            assert record.t.ndim == 0
            assert record.batch_shape == path.batch_shape
            assert (record.final is None) == (path.points is None)
        if path.points is not None:
            assert path[2].final is path.points[2]
            assert path[2].points is None
        with pytest.raises(IndexError):
            path[len(path)]
        with pytest.raises(TypeError, match="single time has no length"):
            len(path[0])
        assert path[0]


def test_a_slice_is_a_part_of_the_run(generator):
    kept, batch, *_ = flows(generator)
    for path in (kept, batch):
        for part in (slice(1, 4), slice(None, None, 2), slice(3, None), slice(None, None, -1)):
            rows = list(range(len(path)))[part]
            for name in SERIES:
                assert torch.equal(getattr(path[part], name), getattr(path, name)[rows])
        assert path[2:].final is path.final
        assert len(path[3:3]) == 0
    assert kept[1:4].points == kept.points[1:4]
    assert kept[1:4].final is kept.points[3]
    assert batch[:3].final is None
    assert batch[:3].batch_shape == (2,)


def test_records_between_saved_times_lie_on_the_chord(generator):
    _, path, *_ = flows(generator)
    times = path.t.tolist()
    for t in (0.3 * times[3] + 0.7 * times[4], times[-2] + 1e-4):
        record = path.at(t)
        for name in SERIES[1:]:
            values = getattr(path, name).double().flatten(1)
            expected = [np.interp(t, times, column) for column in values.T.numpy()]
            assert_close(getattr(record, name).flatten(), expected)
        assert record.t == t
        assert record.final is None
    for k in (0, 3, len(path) - 1):
        for t in (times[k], path.t[k]):
            assert torch.equal(path.at(t).singular_values, path.singular_values[k])
    single = dln.Trajectory(t=torch.tensor([0.1, 0.3]), loss=torch.tensor([1.0, 2.0]))
    # The nearest number of the times' own type.
    assert single.at(0.1).loss == 1.0
    for t in (-1e-9, times[-1] + 1e-6, math.nan):
        with pytest.raises(ValueError, match="t must"):
            path.at(t)
    with pytest.raises(TypeError, match="t must be a real number"):
        path.at("soon")
    with pytest.raises(ValueError, match="t must lie within the saved times, got 0.5"):
        dln.Trajectory(t=torch.zeros(0)).at(0.5)


def test_at_a_saved_time_the_kept_point_is_there(generator):
    path, *_ = flows(generator)
    assert path.at(path.t[3]).final is path.points[3]


def batches(generator):
    y = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    loss, options = losses.Quadratic(y), {"t_end": 0.4, "save_at": 5, "keep_points": True}
    draw = {"batch": (2, 3), "generator": generator, "dtype": torch.float64}
    pair = dln.Collapsed.random((5, 4), 3, 3, scale=0.5, **draw)
    layers = [0.5 * torch.randn(2, 3, a, b, generator=generator) for b, a in ((4, 3), (3, 5))]
    return [
        dln.gradient_flow(loss, pair, **options),
        dln.gradient_flow(loss, pair.point().replace(depth=1), until={"loss": 5.0}, **options),
        dln.gradient_flow(loss, layers, **options),
    ]


@pytest.mark.parametrize(
    "index",
    [1, (1, 2), (slice(None), 1), [1, 0], (..., 0), torch.tensor([[True, False, True]] * 2)],
    ids=["row", "one", "column", "list", "last", "mask"],
)
def test_samples_are_selected_everywhere(index, generator):
    paths = batches(generator)
    parts = [path.select(index) for path in paths]
    if isinstance(index, tuple) and index[0] is ...:
        # The ellipsis stands for dimensions of the batch alone.
        index = (slice(None), 0)
    for path, part in zip(paths, parts, strict=True):
        status = np.array(path.status).reshape(2, 3)
        for name in ("loss", "defect", "singular_values"):
            values = getattr(path, name)
            rows = [row[index] for row in values]
            assert torch.equal(getattr(part, name), torch.stack(rows))
            assert torch.equal(getattr(path[2].select(index), name), rows[2])
        assert torch.equal(part.t, path.t)
        x, points = matrix(path.final), [matrix(point) for point in path.points]
        assert_close(matrix(part.final), x[index])
        for got, want in zip(part.points, points, strict=True):
            assert_close(matrix(got), want[index])
        chosen = status[index if not isinstance(index, torch.Tensor) else index.numpy()]
        assert part.status == (chosen.flatten().tolist() if np.ndim(chosen) else chosen)
        assert part.batch_shape == x[index].shape[:-2]


def matrix(point):
    return dln.end_to_end(point) if isinstance(point, tuple) else point.matrix


def test_selection_of_particles_and_misfits():
    states = torch.arange(24.0).view(2, 3, 4)
    path = dln.Trajectory(t=torch.arange(2.0), states=states, final=states[-1])
    assert path.batch_shape == (3,)
    assert torch.equal(path.select(1).states, states[:, 1])
    assert torch.equal(path.select(1).final, states[-1, 1])
    for index in (3, (0, 0)):
        with pytest.raises(IndexError):
            path.select(index)
    with pytest.raises(IndexError, match="no batch"):
        short_run().select(0)


def test_copies_keep_what_gradients_hang_on(generator):
    x = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    point = dln.EndToEnd.of(x, 3)
    path = dln.Trajectory(
        t=torch.arange(2.0), loss=torch.ones(2, 2), final=point, points=(point,) * 2
    )
    expected = torch.autograd.grad(dln.entropy(dln.EndToEnd.of(x[1], 3)), x)[0]
    for copy in (path.select(1).final, path[:].select(1).final, path[0].select(1).final):
        assert_close(torch.autograd.grad(dln.entropy(copy), x, retain_graph=True)[0], expected)
    loss = x.square().sum((-2, -1)).expand(2, 2)
    later = dln.Trajectory(t=torch.arange(2.0), loss=loss).at(0.25).select(0)
    assert_close(torch.autograd.grad(later.loss, x)[0][0], 2 * x[0])


def test_trajectories_print_as_one_line(generator):
    single, batch, layered, plain = flows(generator)
    assert (
        repr(single)
        == f"Trajectory(Collapsed 5 x 4, depth 3, {len(single)} times from 0 to 0.4, t_end)"
    )
    assert (
        repr(batch)
        == "Trajectory(Collapsed 5 x 4, depth inf, 101 times from 0 to 0.4, batch (2,), t_end)"
    )
    assert repr(layered).startswith("Trajectory(Network 5 x 4, depth 2, ")
    assert repr(plain).startswith("Trajectory(EndToEnd 5 x 4, depth 1, ")
    assert repr(single[1:3][0]).startswith("Trajectory(Collapsed 5 x 4, depth 3, t = ")
    assert repr(dln.Trajectory(t=torch.zeros(0))) == "Trajectory(0 times, t_end)"
    mixed = dln.Trajectory(t=torch.ones(1), loss=torch.ones(1, 3), status=["loss", "t_end", "loss"])
    assert repr(mixed) == "Trajectory(1 time from 1 to 1, batch (3,), 2 loss, 1 t_end)"
    assert mixed._repr_html_().count("<td>") == 4
    assert single == single
    assert single != single[:]
    assert len({single, single[:]}) == 2


def test_xarray_names_its_axes(generator):
    single, batch, layered, _ = (path.to_xarray() for path in flows(generator))
    assert single["singular_values"].dims == ("time", "mode")
    assert batch["singular_values"].dims == ("time", "batch", "mode")
    assert batch["loss"].sizes == {"time": 101, "batch": 2}
    assert layered.attrs["depth"] == 2.0
    assert single.attrs["status"] == "t_end"
    np.testing.assert_array_equal(single["time"], np.unique(single["time"]))
