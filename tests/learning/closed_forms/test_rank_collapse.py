from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, jvp

import dln_geometry as dln
from dln_geometry.learning import Rule, flatten, unflatten
from dln_geometry.learning.closed_forms import (
    collapse_thresholds,
    conserved_functions,
    dead_directions,
)
from dln_geometry.testing import assert_close
from tests.learning.closed_forms.routes import (
    F64,
    as_params,
    draw,
    end_to_end_loss,
    raw_moments,
    upstairs,
)


@pytest.mark.parametrize(
    "widths",
    [
        (3, 2), (1, 2, 1), (1, 4, 1), (2, 3, 3), (4, 2, 3), (1, 3, 2, 4), (2, 4, 4, 1),
        (2, 5, 1, 6, 3),
    ],
    ids=str,
)  # fmt: skip
def test_conserved_functions_are_the_rank_of_the_moments(widths, generator):
    layers = draw(widths, generator)
    params = as_params(layers)

    def values(x):
        parts = raw_moments(list(unflatten(x, params).values()))
        return torch.cat([g.reshape(-1) for g in parts]) if parts else x[:0]

    jacobian = torch.func.jacrev(values)(flatten(params))
    assert conserved_functions(widths) == int(torch.linalg.matrix_rank(jacobian))


@pytest.mark.parametrize(
    "widths",
    [
        (1, 1, 1), (1, 2, 1), (2, 2, 1), (1, 3, 1), (2, 3, 2), (1, 2, 2, 1), (2, 1, 2, 1),
        (1, 2, 2, 2), (2, 2, 1, 2), (1, 3, 1, 2),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_else_is_conserved(widths, generator):
    """The Lie algebra that the gradients of all losses generate moves all other directions."""
    layers = draw(widths, generator)
    params = as_params(layers)
    x = flatten(params)

    def field_of(z):
        def field(y):
            w = list(unflatten(y, params).values())
            chain = lambda *u: (z * _product(u)).sum()  # noqa: E731
            return torch.cat([d.reshape(-1) for d in grad(chain, tuple(range(len(w))))(*w)])

        return field

    def bracket(a, b):
        return lambda y: jvp(b, (y,), (a(y),))[1] - jvp(a, (y,), (b(y),))[1]

    m, n = widths[-1], widths[0]
    fields = [field_of(z.reshape(m, n)) for z in torch.eye(m * n, dtype=F64)]
    vectors, latest = [f(x) for f in fields], fields
    while latest:
        found = []
        for a in fields:
            for b in latest:
                c = bracket(a, b)
                if _rank([*vectors, c(x)]) > _rank(vectors):
                    vectors.append(c(x))
                    found.append(c)
        latest = found
    assert conserved_functions(widths) == len(x) - _rank(vectors)


def _product(layers):
    x = layers[0]
    for w in layers[1:]:
        x = w @ x
    return x


def _rank(vectors):
    scaled = torch.stack([v / v.norm().clamp_min(1e-12) for v in vectors])
    return int(torch.linalg.matrix_rank(scaled, rtol=1e-8))


def with_dead_directions(widths, dead, generator):
    """Layers whose p-th hidden layer has dead[p] directions that carry nothing, rotated."""
    layers = list(draw(widths, generator, scale=1.0))
    for p, count in enumerate(dead):
        q, _ = torch.linalg.qr(
            torch.randn(widths[p + 1], widths[p + 1], generator=generator, dtype=F64)
        )
        n = q[:, :count]
        layers[p] = layers[p] - n @ (n.mT @ layers[p])
        layers[p + 1] = layers[p + 1] - (layers[p + 1] @ n) @ n.mT
    return tuple(layers)


@pytest.mark.parametrize(
    ("widths", "dead"),
    [
        ((3, 4, 2), (1,)), ((4, 3, 3, 5), (1, 1)), ((2, 4, 3, 4, 3), (2, 0, 1)),
        ((3, 4, 4, 2), (0, 2)),
    ],
)  # fmt: skip
def test_collapse_thresholds_are_those_of_the_hessian(widths, dead, generator):
    loss, layers = end_to_end_loss(widths, generator), with_dead_directions(widths, dead, generator)
    gradient = grad(loss)(dln.end_to_end(layers))
    thresholds = collapse_thresholds(layers, gradient)
    params = as_params(layers)
    whole = upstairs(loss, widths, 0.37)
    h = hessian(lambda x: whole(unflatten(x, params)))(flatten(params))
    for p, count in enumerate(dead, start=1):
        n = dead_directions(layers, p)
        assert n.shape == (widths[p], count)
        if count == 0:
            continue
        assert_close(n.mT @ layers[p - 1], torch.zeros(count, widths[p - 1]), scale=10.0)
        assert_close(layers[p] @ n, torch.zeros(widths[p + 1], count), scale=10.0)
        rows = []
        for direction in n.mT:
            for j in range(widths[p - 1]):
                rows.append({p - 1: torch.outer(direction, _unit(widths[p - 1], j))})
            for j in range(widths[p + 1]):
                rows.append({p: torch.outer(_unit(widths[p + 1], j), direction)})
        o = torch.stack([
            flatten({k: row.get(i, torch.zeros_like(w)) for i, (k, w) in enumerate(params.items())})
            for row in rows
        ])  # fmt: skip
        lowest = torch.linalg.eigvalsh(o @ h @ o.mT)[0]
        assert_close(lowest, 0.37 - thresholds[p - 1], ops=1000, scale=float(h.abs().max()))
        # The reflection is a symmetry: the Hessian does not mix the dead directions with others.
        others = torch.eye(h.shape[0], dtype=F64) - o.mT @ o
        assert (others @ h @ o.mT).abs().max() < 1e-10


def _unit(d, j):
    e = torch.zeros(d, dtype=F64)
    e[j] = 1.0
    return e


@pytest.mark.parametrize("side", [-1, 1])
def test_a_dead_direction_wakes_below_the_threshold(side, generator):
    widths = (3, 4, 3, 2)
    target = torch.randn(2, 3, generator=generator, dtype=F64)
    layers = with_dead_directions(widths, (1, 0), generator)
    gradient = dln.end_to_end(layers) - target
    threshold = float(collapse_thresholds(layers, gradient)[0])
    gamma, lr = threshold * (1 + 0.1 * side), 1e-3
    n = dead_directions(layers, 1)
    m = layers[2].mT @ gradient
    u, _, vh = torch.linalg.svd(m)
    kick = [-1e-5 * vh[0], 1e-5 * u[:, 0]]
    moved = [layers[0] + n @ kick[0][None], layers[1] + torch.outer(kick[1], n[:, 0]), layers[2]]
    total = upstairs(lambda x: 0.5 * (x - target).square().sum(), widths, gamma)
    size = float((n.mT @ moved[0]).norm())
    params, _ = Rule(lr).step(total, as_params(moved))
    grown = float((n.mT @ params["weights.0"]).norm()) / size
    # Of second order in the kick.
    assert abs(grown - (1 - lr * (gamma - threshold))) < 1e-9
    assert abs(grown - 1) > 1e-5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g, v: conserved_functions((2,)), ValueError, "at least two"),
        (lambda g, v: collapse_thresholds(v, torch.ones(3, 3)), ValueError, "like the point"),
        (lambda g, v: dead_directions(v, 2), ValueError, "from 1 to 1"),
        (lambda g, v: dead_directions([w[None] for w in v], 1), ValueError, "leading"),
    ],
)
def test_what_is_refused(call, error, message):
    g, v = [torch.eye(2)], [torch.ones(2, 3), torch.ones(4, 2)]
    with pytest.raises(error, match=message):
        call(g, v)


def test_depth_one_has_no_thresholds():
    assert collapse_thresholds([torch.ones(2, 3)], torch.ones(2, 3)).shape == (0,)
