"""Complex points and networks against their real forms of twice the size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.realified import C128, as_vector, complex_normal, of_rank, real_form

SHAPES = [(3, 3, 3), (4, 3, 3), (4, 5, 2)]
DEPTHS = [1, 2, 3, 2.7, math.inf]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.mark.parametrize("depth", DEPTHS)
def test_metric_agrees_with_the_real_form(shape, depth, generator):
    m, n, r = shape
    x, g = of_rank(generator, m, n, r), complex_normal(generator, m, n)
    p = dln.EndToEnd.of(x, depth, rank=r)
    q = dln.EndToEnd.of(real_form(x), depth, rank=2 * r)
    size = 1e4 * float(p.s[..., 0] / p.s[..., -1]) ** 2
    for f in (dln.cometric, dln.cometric_sqrt):
        assert_close(real_form(f(p, g)), f(q, real_form(g)), condition=size)
    u, v = (dln.cometric(p, complex_normal(generator, m, n)) for _ in range(2))
    assert_close(real_form(dln.metric(p, u)), dln.metric(q, real_form(u)), condition=size)
    inner = dln.inner(q, real_form(u), real_form(v))
    assert_close(2.0 * dln.inner(p, u, v), inner, scale=abs(inner) + 1.0, condition=size)
    assert dln.inner(p, u, v).dtype == torch.float64


@pytest.mark.parametrize("depth", [1, 2, 3.5, math.inf])
def test_connection_and_hessian_agree_with_the_real_form(shape, depth, generator):
    m, n, r = shape
    x = of_rank(generator, m, n, r)
    p = dln.EndToEnd.of(x, depth, rank=r)
    q = dln.EndToEnd.of(real_form(x), depth, rank=2 * r)
    g, h, *moves = (complex_normal(generator, m, n) for _ in range(4))
    u, v = (dln.cometric(p, move) for move in moves)
    size = 1e5 * float(p.s[..., 0] / p.s[..., -1]) ** 2
    if depth > 1:
        gamma = dln.connection(q, real_form(u), real_form(v))
        assert_close(real_form(dln.connection(p, u, v)), gamma, condition=size)
    hessian = dln.riemannian_hessian(q, real_form(g), real_form(h), real_form(u))
    assert_close(real_form(dln.riemannian_hessian(p, g, h, u)), hessian, condition=size)


@pytest.mark.parametrize(("depth", "equal"), [(1.5, False), (3, True), (math.inf, False)])
def test_derivatives_in_the_matrix(depth, equal, generator):
    x, g, w, e = (complex_normal(generator, 3, 3) for _ in range(4))
    if equal:  # all singular values
        x = 1.3 * torch.linalg.qr(x)[0]

    def paired(z):
        return (w.conj() * z).real.sum()

    functions = {
        "cometric": lambda x: paired(dln.cometric(dln.EndToEnd.of(x, depth), g)),
        "root": lambda x: paired(dln.cometric_sqrt(dln.EndToEnd.of(x, depth), g)),
        "metric": lambda x: paired(dln.metric(dln.EndToEnd.of(x, depth), g)),
        "entropy": lambda x: dln.entropy(dln.EndToEnd.of(x, depth)),
        "volume": lambda x: dln.log_volume_density(dln.EndToEnd.of(x, depth)),
        "gradient": lambda x: paired(dln.entropy_gradient(dln.EndToEnd.of(x, depth))),
        "collapsed": lambda x: paired(dln.Collapsed.of(dln.EndToEnd.of(x, depth)).matrix),
    }
    h = 1e-5
    for name, f in functions.items():
        (slope,) = torch.autograd.grad(f(y := x.clone().requires_grad_()), y)
        along = (slope.conj() * e).real.sum()
        difference = (f(x + h * e) - f(x - h * e)) / (2.0 * h)
        assert abs(along - difference) < 1e-6 * (1.0 + abs(difference)), name
        forward = torch.func.jvp(f, (x,), (e,))[1]
        assert_close(forward, along, ops=1e4, scale=1.0 + abs(along))
    (slope,) = torch.autograd.grad(functions["entropy"](y := x.clone().requires_grad_()), y)
    assert_close(dln.entropy_gradient(dln.EndToEnd.of(x, depth)), slope, ops=1e3)


def test_points_and_layers(generator):
    x = of_rank(generator, 4, 3, 2)
    for depth in (2, 3.5, math.inf):
        p = dln.EndToEnd.of(x, depth, rank=2)
        c = dln.Collapsed.of(p)
        assert c.dtype == p.dtype == C128
        assert p.s.dtype == torch.float64
        assert_close(c.matrix, x, ops=1e3)
        assert_close(c.singular_values(), p.s, ops=1e3)
        assert float(c.defect()) < 1e-13
        rows, cols = torch.tensor([0, 3]), torch.tensor([2, 1])
        for q in (p, c):
            assert_close(q.entries(rows, cols), x[rows, cols], ops=1e3)
    network = dln.balanced_factors(p.replace(depth=4), widths=(3, 5, 2, 4, 4), gauge="haar")
    assert_close(network.matrix, x, ops=1e3)
    assert dln.is_balanced(network)
    assert_close(dln.Collapsed.of(network).matrix, x, ops=1e3)
    assert_close(network.point().s, p.s, ops=1e3)
    moved = dln.gauge_action(network, [complex_normal(generator, d, d) for d in (5, 2, 4)])
    assert_close(moved.matrix, x, ops=1e5)
    assert dln.EndToEnd([[1.0]], [2.0], [[1j]], 2).matrix.tolist() == [[2j]]
    assert_close(dln.effective_rank(p), dln.effective_rank(p.s))


def test_random_networks_are_of_the_unitary_groups(generator):
    network = dln.random_balanced(
        (3, 5, 4), rank=2, spectrum=[2.0, 0.7], batch=(4000,), generator=generator, dtype=C128
    )
    assert dln.is_balanced(network).all()
    assert_close(
        network.singular_values, torch.tensor([2.0, 0.7], dtype=torch.float64).expand(4000, 2)
    )
    u = network.frames[-1][..., 0, 0]  # of a uniform vector on the sphere in C^4
    for moment, expected in ((u.abs().square(), 0.25), (u.abs() ** 4, 2 / 20)):
        assert abs(moment.mean() - expected) < 4 * moment.std() / 4000**0.5
    draws = dln.Collapsed.random((4, 3), 2, 3, dtype=torch.complex64, generator=generator)
    assert draws.dtype == torch.complex64
    assert draws.singular_values.dtype == torch.float32


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_tangent_spaces(depth, generator):
    widths = (*(4, 5, 4, 3, 3)[:depth], 3)
    network = dln.random_balanced(
        widths, rank=2, spectrum=[2.0, 0.7], generator=generator, dtype=C128
    )
    v, w = ([torch.randn(a.shape, generator=generator, dtype=C128) for a in network] for _ in "vw")
    across, along = dln.horizontal_frame(network), dln.vertical_frame(network)
    vectors = [
        as_vector(*(a[k] for a in frame)) for frame in (across, along) for k in range(len(frame[0]))
    ]
    frame = torch.stack(vectors)
    # f r (m + n - r) directions across, the unitary rotations of hidden frames along.
    hidden = sum(2 * d * 2 - 2 * 2 for d in widths[1:-1])
    assert [len(across[0]), len(along[0])] == [4 * (widths[-1] + 4 - 2), hidden]
    assert_close(frame @ frame.T, torch.eye(len(frame)).double(), ops=1e3)
    t = dln.tangent(network, v)
    assert_close(as_vector(*t), frame.T @ (frame @ as_vector(*v)), ops=1e3)
    for k in range(len(along[0])):
        assert dln.pushforward(network, [a[k] for a in along]).abs().max() < 1e-13
    lifted = dln.horizontal_lift(network, dln.pushforward(network, t))
    assert_close(as_vector(*lifted), as_vector(*dln.horizontal(network, t)), ops=1e4)
    s = dln.tangent(network, w)
    real, rt, rs = ([real_form(a) for a in part] for part in (network, t, s))
    for f in (dln.second_fundamental_form, dln.integrability):
        for a, b in zip(f(network, t, s), f(real, rt, rs), strict=True):
            assert_close(real_form(a), b, ops=1e5, scale=1.0 + float(b.abs().max()))


def test_balance_agrees_with_the_real_form(generator):
    layers = [complex_normal(generator, *s) for s in ((5, 4), (4, 5), (3, 4))]
    balanced = dln.balance(layers)
    assert_close(balanced.matrix, dln.end_to_end(layers), ops=1e3)
    assert dln.is_balanced(balanced)
    for a, b in zip(balanced, dln.balance([real_form(w) for w in layers]), strict=True):
        assert_close(real_form(a), b, ops=1e8)  # each ends its sweeps on its own
    for a, b in zip(dln.moments(layers), dln.moments([real_form(w) for w in layers]), strict=True):
        assert_close(real_form(a), b)


def test_spectra_of_complex_matrices_are_drawn(generator):
    x = complex_normal(generator, 3, 2)
    (line,) = dln.plot.spectrum(x).lines
    np.testing.assert_allclose(line.get_ydata(), torch.linalg.svdvals(x).numpy())


def test_moves_between_types(generator):
    x = complex_normal(generator, 3, 2)
    p = dln.EndToEnd.of(x, 2)
    assert p.to(torch.complex64).s.dtype == torch.float32
    real = dln.EndToEnd.of(x.real, 2).to(C128)
    assert real.dtype == C128
    assert real.s.dtype == torch.float64
    assert np.asarray(p).dtype == np.complex128
    for refused in (
        lambda: p.to(torch.float32),
        lambda: np.asarray(p, dtype=float),
        lambda: dln.EndToEnd(p.u, p.s * 1j, p.vh, 2),
        lambda: dln.cometric(dln.EndToEnd.of(x.real, 2), x),
    ):
        with pytest.raises(TypeError, match="real"):
            refused()


REFUSED = {
    "depth_kernel": lambda p: dln.depth_kernel(p.matrix, 2),
    "plot": dln.plot.matrix,
    "photograph": lambda p: dln.losses.Huber(p.matrix),
}


@pytest.mark.parametrize("name", REFUSED)
def test_real_functions_refuse_complex_points(name, generator):
    p = dln.EndToEnd.of(complex_normal(generator, 3, 3), 2)
    with pytest.raises(TypeError, match=r"must be real.*complex128"):
        REFUSED[name](p)
