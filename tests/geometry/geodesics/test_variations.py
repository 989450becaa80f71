from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.geodesics.routes import draw, gaussian

# Of the differences of order 4 that derivatives are compared with.
ACCURACY = 1e-8


def slope_of(f):
    h = 1e-3
    one, two = ((f(k * h) - f(-k * h)) / (2 * k * h) for k in (1, 2))
    return (4.0 * one - two) / 3.0


def family(shape, spectrum, depth, generator):
    """Return a curve of points, of tangent vectors at them, and of goals near them."""
    x = draw(shape, spectrum, depth, generator).matrix
    left, turn, right, other = (
        0.15 * gaussian((d, d), generator) for d in (shape[0], shape[0], shape[1], shape[1])
    )
    exp = torch.linalg.matrix_exp

    def point(t):
        return dln.EndToEnd.of(exp(t * turn) @ x @ exp(t * other), depth, rank=len(spectrum))

    def vector(p, t):
        y = p.matrix
        return left @ y + y @ right + t * (turn @ y - y @ other)

    def goal(t):
        y = exp(left - t * turn) @ x @ exp(right + t * other)
        return dln.EndToEnd.of(y, depth, rank=len(spectrum))

    return point, vector, goal


FUNCTIONS = {
    "exponential": lambda p, z, q, t: dln.exponential(p, z).matrix,
    "spectrum": lambda p, z, q, t: dln.exponential(p, z).singular_values,
    "geodesic": lambda p, z, q, t: dln.geodesic(p, z, torch.stack([0 * t, 1 + t, t - 1])).matrix,
    "logarithm": lambda p, z, q, t: dln.logarithm(p, q),
    "distance": lambda p, z, q, t: dln.distance(p, q),
}
CASES = [
    ((3, 3), (1.9, 0.8, 0.3), 3),
    ((3, 3), (1.2, 1.2, 0.6), math.inf),
    ((3, 4), (1.1, 1.1), 1.5),
    ((3, 2), (0.9, 0.5), 1),
]


@pytest.mark.parametrize(("shape", "spectrum", "depth"), CASES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_agree_with_differences(name, shape, spectrum, depth, generator):
    """Along a curve of points, velocities, goals and times at once."""
    point, vector, goal = family(shape, spectrum, depth, generator)
    weights = gaussian((3, *shape), generator)

    def at(t):
        p = point(t)
        value = FUNCTIONS[name](p, vector(p, t), goal(t), t)
        return (
            value.sum()
            if value.ndim < 2
            else (value * (weights if value.ndim > 2 else weights[0])).sum()
        )

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(at(t), t)
    with torch.no_grad():
        expected = slope_of(lambda h: at(torch.tensor(float(h), dtype=torch.float64)))
    assert float(abs(slope - expected)) < ACCURACY * float(1 + abs(expected))


def test_a_mixed_loss_has_the_gradient_of_the_sum(generator):
    x = draw((3, 3), (1.9, 0.8, 0.3), 3, generator).matrix.requires_grad_()
    z = (0.2 * gaussian((3, 3), generator)).requires_grad_()

    def parts(x, z):
        p = dln.EndToEnd.of(x, 3)
        return dln.exponential(p, z).matrix.square().sum(), dln.inner(p, z, z)

    total = torch.autograd.grad(sum(parts(x, z)), (x, z))
    split = [torch.autograd.grad(part, (x, z)) for part in parts(x, z)]
    for whole, one, two in zip(total, *split, strict=True):
        assert_close(whole, one + two)


def test_float32_and_batches(generator):
    points = [draw((3, 3), s, 3, generator).matrix for s in ((1.9, 0.8, 0.3), (1.2, 1.2, 0.5))]
    x, z = torch.stack(points), 0.2 * gaussian((3, 3), generator)

    def gradient(x, z):
        x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
        end = dln.exponential(dln.EndToEnd.of(x, 3), z).matrix
        return torch.autograd.grad(end.pow(3).sum(), (x, z))

    in_x, in_z = gradient(x, z)
    single = [gradient(y, z) for y in x]
    assert_close(in_x, torch.stack([g for g, _ in single]), ops=1e5)
    assert_close(in_z, sum(g for _, g in single), ops=1e5)
    assert_close(gradient(x.float(), z.float())[0], in_x, ops=1000)


def test_second_derivatives_are_refused(generator):
    x = draw((2, 2), (1.9, 0.8), 3, generator).matrix.requires_grad_()
    end = dln.exponential(dln.EndToEnd.of(x, 3), 0.1 * gaussian((2, 2), generator)).matrix
    (slope,) = torch.autograd.grad(end.sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="no derivative of this order"):
        torch.autograd.grad(slope.sum(), x)


@pytest.mark.parametrize("depth", [1, 3])
def test_distance_of_a_point_from_itself_has_the_gradient_zero(depth, generator):
    x = draw((3, 3), (1.9, 0.8, 0.3), depth, generator).matrix.requires_grad_()
    p = dln.EndToEnd.of(x, depth)
    (slope,) = torch.autograd.grad(dln.distance(p, p.detach()), x)
    assert not bool(slope.any())
