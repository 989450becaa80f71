"""Flows of complex networks against those of their real forms, and against exact ones."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.testing import assert_close
from tests.geometry.realified import C128, complex_normal, of_rank, real_form

M, N = 4, 3


def near(a, b, bound):
    """Assert that two tensors differ by at most a share of the second."""
    assert a.shape == b.shape
    assert float((a - b).abs().max()) < bound * (1.0 + float(b.abs().max()))


@pytest.mark.parametrize(
    ("depth", "engine", "until"),
    [
        (1, "auto", {}),
        (2, "auto", {"gradient": 1e-14}),
        (3, "spectral", {"gradient": 1e-14}),
        (3, "products", {"gradient": 1e-14}),
        (6, "products", {}),
        (2.7, "auto", {}),
        (150, "auto", {"gradient": 1e-14}),
        (math.inf, "auto", {"gradient": 1e-14}),
    ],
)
def test_engines_agree_with_the_real_form(depth, engine, until, generator):
    y, x = complex_normal(generator, M, N), 0.5 * of_rank(generator, M, N, 2)
    t_end = 0.002 if depth == 150 else 0.3
    options = {"t_end": t_end, "rtol": 1e-10, "engine": engine, "until": until}
    p = dln.EndToEnd.of(x, depth, rank=2)
    path = dln.gradient_flow(losses.Quadratic(y), p, **options)
    q = dln.EndToEnd.of(real_form(x), depth, rank=4)
    real = dln.gradient_flow(losses.Quadratic(real_form(y)), q, **options)
    near(real_form(path.final.matrix), real.final.matrix, 1e-7)
    assert path.final.dtype == C128
    assert path.loss.dtype == path.singular_values.dtype == torch.float64


@pytest.mark.parametrize("method", ["rodas", "rkc"])
@pytest.mark.parametrize("depth", [2, 3.5, 150, math.inf])
def test_stiff_methods(method, depth, generator):
    y, x = complex_normal(generator, 2, 2), 0.5 * complex_normal(generator, 2, 2)
    p, t_end = dln.EndToEnd.of(x, depth), 0.001 if depth == 150 else 0.1
    one, two = (
        dln.gradient_flow(losses.Quadratic(y), p, t_end=t_end, method=name, rtol=1e-6)
        for name in (method, "rk8")
    )
    near(one.final.matrix, two.final.matrix, 1e-4)


def every_loss(generator):
    """Return complex losses of 4 x 3 matrices by name."""
    rows, cols = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1, 2, 0, 2])
    entries = rows, cols, complex_normal(generator, 5), (M, N)
    weights = [0.5, 1.0, 2.0, 1.0, 0.3]
    return {
        "target": losses.Quadratic(complex_normal(generator, M, N)),
        "sensing": losses.Sensing(complex_normal(generator, 6, M, N), complex_normal(generator, 6)),
        "many pairs": losses.Regression(
            complex_normal(generator, 7, N), complex_normal(generator, 7, M)
        ),
        "few pairs": losses.Regression(
            complex_normal(generator, 2, N), complex_normal(generator, 2, M)
        ),
        "entries": losses.Completion(*entries),
        "weighted": losses.Completion(*entries, weights=weights, reduction="mean"),
        "function": losses.from_callable(
            lambda x: (x.abs() ** 4).sum() + (x[0, 0] * x[1, 1].conj()).imag
        ),
    }


NAMES = ["target", "sensing", "many pairs", "few pairs", "entries", "weighted", "function"]


@pytest.mark.parametrize("name", NAMES)
def test_losses(name, generator):
    loss, x = every_loss(generator)[name], of_rank(generator, M, N, 2)

    def dense(gradient):
        return gradient if gradient.layout == torch.strided else gradient.to_dense()

    (slope,) = torch.autograd.grad(loss.value(y := x.clone().requires_grad_()), y)
    assert_close(dense(loss.gradient(x)), slope, ops=1e3)
    left, right = complex_normal(generator, M, 2), complex_normal(generator, N, 2)
    value, g_right, g_left = losses.contract(loss, left, right)
    g = dense(loss.gradient(left @ right.mH))
    assert_close(value, loss.value(left @ right.mH), ops=1e3)
    assert_close(g_right, g @ right, ops=1e3)
    assert_close(g_left, g.mH @ left, ops=1e3)
    c = dln.Collapsed.of(dln.EndToEnd.of(x, 3, rank=2))
    assert_close(dense(loss.gradient(c)), slope, ops=1e4)
    batch = complex_normal(generator, 2, 5, M, N)
    assert_close(loss.value(batch)[1, 2], loss.value(batch[1, 2]), ops=1e3)


def test_large_completions_are_contracted_entry_by_entry(generator):
    rows, cols = torch.arange(70).repeat_interleave(2), (torch.arange(140) * 7) % 80
    loss = losses.Completion(rows, cols, complex_normal(generator, 3, 140), (70, 80))
    left, right = complex_normal(generator, 70, 3), complex_normal(generator, 3, 80, 3)
    value, g_right, g_left = losses.contract(loss, left, right)
    g = loss.gradient(left @ right.mH).to_dense()
    assert_close(value, loss.value(left @ right.mH), ops=1e3)
    assert_close(g_right, g @ right, ops=1e3)
    assert_close(g_left, g.mH @ left, ops=1e3)


@pytest.mark.parametrize("name", ["sensing", "many pairs", "entries", "function"])
def test_layers_and_two_matrices_agree(name, generator):
    loss = every_loss(generator)[name]
    network = dln.random_balanced(
        (N, 5, 4, M), spectrum=[1.0, 0.7, 0.3], dtype=C128, generator=generator
    )
    options = {"t_end": 0.2, "rtol": 1e-10}
    thin = dln.gradient_flow(loss, network, **options)
    whole = dln.gradient_flow(loss, network, engine="layers", **options)
    pair = dln.gradient_flow(loss, dln.Collapsed.of(network), **options)
    near(thin.final.matrix, pair.final.matrix, 1e-8)
    for a, b in zip(thin.final, whole.final, strict=True):
        near(a, b, 1e-8)
    assert float(whole.defect.max()) < 1e-9


def test_moments_of_unbalanced_layers_stand_still(generator):
    layers = [0.5 * complex_normal(generator, *s) for s in ((5, N), (4, 5), (M, 4))]
    loss = losses.Quadratic(complex_normal(generator, M, N))
    path = dln.gradient_flow(loss, layers, t_end=0.3, rtol=1e-10)
    for a, b in zip(dln.moments(path.final), dln.moments(layers), strict=True):
        near(a, b, 1e-8)


@pytest.mark.parametrize("depth", [2, 3, math.inf])
def test_aligned_singular_values_are_exact(depth, generator):
    s = torch.tensor([0.3, 0.2], dtype=torch.float64)
    target = torch.tensor([1.2, 0.5], dtype=torch.float64)
    u, v = (torch.linalg.qr(complex_normal(generator, d, 2))[0] for d in (M, N))
    start = dln.EndToEnd.of(u * s @ v.mH, depth, rank=2)
    path = dln.gradient_flow(losses.Quadratic(u * target @ v.mH), start, t_end=0.7, rtol=1e-10)
    near(path.final.singular_values, dln.exact.quadratic(s, target, depth, 0.7), 1e-8)


def test_entropic_equilibrium(generator):
    # s e'(s) = (1 - 1/N) [f (d - 1)/2 + f - 1] / beta, and 1 here.
    start = dln.EndToEnd.of(complex_normal(generator, 3, 3), 3)
    loss = losses.Quadratic(torch.zeros(3, 3, dtype=C128))
    path = dln.free_energy_flow(loss, start, beta=2.0, t_end=30.0)
    near(path.final.singular_values, torch.ones(3).double(), 1e-6)
    free = dln.FreeEnergy(loss, 2.0, 3, (3, 3))
    x = start.matrix
    value = dln.free_energy(dln.EndToEnd.of(y := x.clone().requires_grad_(), 3), loss, 2.0)
    assert_close(free.value(x), value.detach(), ops=1e3)
    assert_close(free.gradient(x), torch.autograd.grad(value, y)[0], ops=1e3)


def test_records_are_kept_whole(tmp_path, generator):
    loss = losses.Quadratic(complex_normal(generator, M, N))
    start = dln.Collapsed.random((M, N), 2, 3, dtype=C128, generator=generator, scale=0.5)
    options = {"decay": 0.1, "dense": True, "keep_points": True}
    path = dln.gradient_flow(loss, start, t_end=1.0, **options)
    read = dln.Trajectory.load(path.save(tmp_path / "path"))
    early = dln.gradient_flow(loss, start, t_end=0.33, decay=0.1)
    near(read.at(0.33).final.matrix, early.final.matrix, 1e-5)
    store = tmp_path / "store.npz"
    one, two = (dln.gradient_flow(loss, start, t_end=1.0, store=store) for _ in range(2))
    assert torch.equal(one.final.matrix, two.final.matrix)
    single = dln.Collapsed.random((M, N), 2, 3, dtype=torch.complex64, batch=(3,), scale=0.5)
    batch = dln.gradient_flow(loss, single, t_end=0.5, rtol=1e-4)
    assert batch.final.dtype == torch.complex64
    assert batch.loss.shape[1:] == (3,)


@pytest.mark.parametrize("shapes", [((3, 2), (2, 3), (2, 2)), ((2, 3), (4, 2))])
def test_balancing(shapes, generator):
    layers = [complex_normal(generator, *s) for s in shapes]
    real = [real_form(w) for w in layers]
    for a, b in zip(dln.balancing_velocity(layers), dln.balancing_velocity(real), strict=True):
        near(real_form(a), b, 1e-9)
    for t in (0.3, math.inf):
        moved = dln.balancing_flow(layers, t)
        near(dln.end_to_end(moved), dln.end_to_end(layers), 1e-12)
        for g, h in zip(dln.moments(moved), dln.moments(layers), strict=True):
            near(g, math.exp(-2.0 * t) * h, 1e-12)
        if t == 0.3:
            for a, b in zip(moved, dln.balancing_flow(real, t), strict=True):
                near(real_form(a), b, 1e-7)
    path, other = (dln.kirwan_ness_flow(w, 0.05) for w in (layers, real))
    for a, b in zip(path.final, other.final, strict=True):
        near(real_form(a), b, 1e-6)


def test_what_must_be_real(generator):
    y = complex_normal(generator, M, N)
    p = dln.EndToEnd.of(y, 2)
    for refused in (
        lambda: dln.gradient_flow(losses.Quadratic(y), dln.EndToEnd.of(y.real, 2), t_end=1.0),
        lambda: losses.Quadratic(y).value(y.real),
    ):
        with pytest.raises(TypeError, match="x must be complex like the data"):
            refused()
    for refused in (
        lambda: dln.gradient_flow(losses.Huber(y.real), p, t_end=1.0),
        lambda: losses.Logistic([0], [0], [1.0], (M, N)).value(p),
        lambda: losses.LpNorm(y, 3),
    ):
        with pytest.raises(TypeError, match="must be real"):
            refused()
