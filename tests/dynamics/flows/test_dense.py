"""The point at any time of a flow, whatever was saved."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.testing import assert_order

F64 = torch.float64
TIMES = [0.013, 0.37, 0.93]


def start_of(kind, generator):
    if kind == "layers":
        widths = (4, 6, 3, 5)
        pairs = zip(widths[1:], widths[:-1], strict=True)
        return [0.6 * torch.randn(*w, generator=generator, dtype=F64) for w in pairs]
    if kind == "balanced":
        return dln.random_balanced((4, 6, 6, 5), generator=generator, dtype=F64, batch=(2,))
    batch = (2, 2) if kind == "batch" else ()
    depth = 3.0 if kind == "batch" else kind
    x = dln.Collapsed.random(
        (5, 4), 3, max(depth, 2), scale=0.5, batch=batch, generator=generator, dtype=F64
    )
    return dln.EndToEnd.of(x.matrix, 1) if depth == 1 else x.point() if depth == 150 else x


def matrix_of(point):
    return dln.Network(point).matrix if isinstance(point, tuple) else point.matrix


def run(start, generator, **options):
    loss = losses.Quadratic(torch.randn(5, 4, generator=generator, dtype=F64))
    seen = {"x": matrix_of, "even": lambda p: matrix_of(p)[..., ::2, 0]}
    make = {"t_end": 1.0, "dense": True, "observe": seen, **options}
    return loss, dln.gradient_flow(loss, start, **make)


KINDS = [1, 2, 2.5, 3, 150, math.inf, "layers", "balanced", "batch"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_time_is_as_if_it_had_been_saved(kind, generator):
    start = start_of(kind, generator)
    loss, path = run(start, generator, save_at=[0.0, 1.0])
    exact = dln.gradient_flow(
        loss, start, t_end=1.0, save_at=TIMES, keep_points=True, rtol=1e-11, dense=False
    )
    for k, t in enumerate(TIMES):
        at = path.at(t)
        assert type(at.final) is type(path.final)
        for found, expected in (
            (matrix_of(at.final), matrix_of(exact.points[k])),
            (at.observed["x"], matrix_of(exact.points[k])),
            (at.loss, exact.loss[k]),
            (at.singular_values, exact.singular_values[k]),
        ):
            assert found.shape == expected.shape
            # Steps of order 8 at this tolerance are so long that their polynomials see 1e-5.
            assert float((found - expected).abs().max()) < 3e-5
    assert (path.at(1.0).loss == path[-1].loss).all()


def test_error_is_of_the_eighth_order(generator):
    """Of steps that do not adapt: the tolerance is loose, the times are equally spaced."""
    start = start_of(3, generator)
    loss, _ = run(start, generator)
    sizes, errors = [], []
    for count in (8, 11, 16, 22, 32):
        path = dln.gradient_flow(
            loss, start, t_end=1.0, rtol=1e-5, method="rk8", save_at=count + 1, dense=True
        )
        t = 3.5 / count
        exact = dln.gradient_flow(loss, start, t_end=1.0, save_at=[t], rtol=1e-13)
        sizes.append(1.0 / count)
        errors.append(float((path.at(t).singular_values - exact.singular_values[0]).abs().max()))
    assert_order(sizes, errors, 8, at_least=True, tol=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_files_and_copies_keep_the_steps(kind, generator, tmp_path):
    _, path = run(start_of(kind, generator), generator, save_at=[0.0, 1.0], rtol=1e-5)
    expected = path.at(0.37)
    for other in (dln.Trajectory.load(path.save(tmp_path / "run")), copy.deepcopy(path), path[0:2]):
        at = other.at(0.37)
        assert torch.equal(matrix_of(at.final), matrix_of(expected.final))
        assert torch.equal(at.observed["even"], expected.observed["even"])
        assert torch.equal(at.loss, expected.loss)


@pytest.mark.parametrize("kind", ["batch", "balanced"])
def test_samples_keep_their_steps(kind, generator):
    _, path = run(start_of(kind, generator), generator, save_at=[0.0, 1.0], rtol=1e-5)
    whole, part = path.at(0.37), path.select(-1)
    one = part.at(0.37)
    torch.testing.assert_close(matrix_of(one.final), matrix_of(whole.final)[-1])
    torch.testing.assert_close(one.observed["x"], whole.observed["x"][-1])


def test_killed_runs_continue_to_the_same_steps(generator, tmp_path):
    start = start_of(3, generator)
    loss, path = run(start, generator)
    options = {"dense": True, "observe": {"x": matrix_of}, "store": tmp_path / "store"}
    dln.gradient_flow(loss, start, t_end=0.4, **options)
    found = dln.gradient_flow(loss, start, t_end=1.0, **options)
    again = dln.gradient_flow(loss, start, t_end=1.0, **options)
    # The first run shortened one step to end at 0.4.
    assert float((found.at(0.77).loss - path.at(0.77).loss).abs()) < 1e-5
    assert torch.equal(again.at(0.77).observed["x"], found.at(0.77).observed["x"])
    with pytest.raises(ValueError, match="store must belong to the same run"):
        dln.gradient_flow(loss, start, t_end=1.0, **{**options, "observe": {"y": matrix_of}})
