"""The gradient flow against independent routes: the kernel flow of X, exact solutions."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import exact, losses
from dln_geometry.dynamics.flows import collapsed_engine
from dln_geometry.testing import assert_close
from tests.dynamics.flows.routes import F64, SPECTRUM, quadratic, relative, scipy_flow, start


@pytest.mark.parametrize("depth", [1.5, 2.7, 3.0, 50.0, 1000.0, math.inf])
@pytest.mark.parametrize("rank", [5, 3])
def test_collapsed_flow_is_the_kernel_flow_of_x(depth, rank, generator):
    loss, point = quadratic(generator), start(generator, depth, rank)
    t = 0.5 if math.isinf(depth) else 0.5 / depth

    def velocity(y):
        p = dln.EndToEnd.of(y[0], depth, rank=rank)
        return [-dln.cometric(p, loss.gradient(y[0]))]

    (expected,) = scipy_flow(velocity, [point.matrix], t)
    path = dln.gradient_flow(loss, point, t_end=t, rtol=1e-11)
    assert relative(path.final.matrix, expected) < 1e-8
    if math.isinf(depth):
        frozen = point.point()
        moved = path.final.matrix
        assert_close(frozen.u @ (frozen.u.mT @ moved), moved, ops=1000)
        assert_close((moved @ frozen.vh.mT) @ frozen.vh, moved, ops=1000)


@pytest.mark.parametrize("depth", [2, 3, 5.5])
def test_singular_value_equations_agree(depth, generator):
    """The equations of s, U and V, integrated away from crossings."""
    loss = quadratic(generator, (4, 4))
    point = dln.Collapsed.random(
        (4, 4), 4, depth, spectrum=[2.0, 1.2, 0.6, 0.2], generator=generator, dtype=F64
    )

    def velocity(y):
        u, s, v = y
        e = u.mT @ loss.gradient((u * s) @ v.mT) @ v
        low = s ** (2 / depth)
        gap = low[None, :] - low[:, None]
        gap.fill_diagonal_(1.0)
        left = -(s[None, :] * e + s[:, None] * e.mT) / gap
        right = -(s[:, None] * e + s[None, :] * e.mT) / gap
        left.fill_diagonal_(0.0)
        right.fill_diagonal_(0.0)
        return [u @ left, -depth * s ** (2 - 2 / depth) * e.diagonal(), v @ right]

    p = point.point()
    u, s, v = scipy_flow(velocity, [p.u, p.s, p.vh.mT.contiguous()], 0.05)
    path = dln.gradient_flow(loss, point, t_end=0.05, rtol=1e-12)
    assert relative(path.final.matrix, (u * s) @ v.mT) < 1e-8
    assert_close(path.singular_values[-1], s.sort(descending=True).values, ops=1e8)


@pytest.mark.parametrize("depth", [1, 2, 2.7, 3, 4, 150, math.inf])
def test_aligned_quadratic_flow_is_the_exact_solution(depth, generator):
    u, v = (torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64)).Q for _ in "uv")
    s0 = torch.tensor([0.9, 0.5, 0.3, 0.1], dtype=F64)
    target = torch.tensor([2.0, 0.7, 0.05, 1.0], dtype=F64)
    t = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=F64) / (1 if math.isinf(depth) else depth)
    point = dln.EndToEnd.of((u * s0) @ v.mT, depth)
    loss = losses.Quadratic((u * target) @ v.mT)
    path = dln.gradient_flow(loss, point, t_end=float(t[-1]), save_at=t, rtol=1e-11)
    expected = exact.quadratic(s0, target, depth, t).sort(-1, descending=True).values
    assert float((path.singular_values - expected).abs().max()) < 1e-8


def test_single_output_flow(generator):
    """One output: dw = -|w|^{2-2/N} ( grad + (N-1) Pr_w grad )."""
    depth = 3.0
    loss = quadratic(generator, (1, 5))
    x = torch.randn(1, 5, generator=generator, dtype=F64)

    def velocity(y):
        w, g = y[0], loss.gradient(y[0])
        along = (g * w).sum() / w.square().sum() * w
        return [-(w.norm() ** (2 - 2 / depth)) * (g + (depth - 1) * along)]

    (expected,) = scipy_flow(velocity, [x], 0.4)
    path = dln.gradient_flow(loss, dln.EndToEnd.of(x, depth), t_end=0.4, rtol=1e-11)
    assert relative(path.final.matrix, expected) < 1e-8


def test_global_rate_bound_and_gradient_norm(generator):
    depth = 3
    y = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=F64)).Q * 2.0
    x0 = y + 0.1 * torch.randn(5, 5, generator=generator, dtype=F64)
    loss = losses.Quadratic(y)
    c = 2.0 - float(torch.linalg.matrix_norm(x0 - y))
    path = dln.gradient_flow(loss, dln.EndToEnd.of(x0, depth), t_end=0.3, until={"gradient": 1e-6})
    bound = path.loss[0] * torch.exp(-2 * depth * c ** (2 - 2 / depth) * path.t)
    assert bool((path.loss <= bound * (1 + 1e-6)).all())
    # sqrt(-dE/dt) = sqrt(<G, A G>) is what the rule watches.
    for name in ("spectral", "products"):
        g = loss.gradient(x0)
        stop = float((g * dln.cometric(dln.EndToEnd.of(x0, depth), g)).sum().sqrt())
        for factor, status in ((1.001, "gradient"), (0.999, "steps")):
            run = dln.gradient_flow(
                loss,
                dln.EndToEnd.of(x0, depth),
                until={"gradient": factor * stop, "steps": 0},
                engine=name,
            )
            assert run.status == status


def test_depth_one_is_the_plain_flow_of_the_matrices_of_a_rank(generator):
    loss = quadratic(generator)
    nothing = dln.EndToEnd.of(torch.zeros(6, 5, dtype=F64), 1)
    zero = dln.gradient_flow(loss, nothing, t_end=0.9, rtol=1e-10)
    assert relative(zero.final.matrix, -math.expm1(-0.9) * loss.target) < 1e-9
    thin = dln.EndToEnd.of(torch.randn(6, 5, generator=generator, dtype=F64), 1, rank=2)
    expected = loss.target + math.exp(-0.9) * (thin.matrix - loss.target)
    for begin in (dln.EndToEnd.of(thin.matrix, 1), [thin.matrix]):
        path = dln.gradient_flow(loss, begin, t_end=0.9, rtol=1e-10)
        assert relative(path.final.matrix, expected) < 1e-9
        assert isinstance(path.final, dln.Network if isinstance(begin, list) else dln.EndToEnd)

    def projected(y):
        p, g = dln.EndToEnd.of(y[0], 1, rank=2), loss.gradient(y[0])
        left = torch.eye(6, dtype=F64) - p.u @ p.u.mT
        right = torch.eye(5, dtype=F64) - p.vh.mT @ p.vh
        return [left @ g @ right - g]

    kept = dln.gradient_flow(loss, thin, t_end=0.9, rtol=1e-10)
    (wanted,) = scipy_flow(projected, [thin.matrix], 0.9)
    assert relative(kept.final.matrix, wanted) < 1e-7
    assert kept.final.rank == kept.singular_values.shape[-1] == 2


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_layers_end_as_the_layers_of_the_flow_whatever_their_numbers(depth, generator):
    loss = quadratic(generator)
    widths = (5, *(3 + p % 2 for p in range(depth - 1)), 6)
    layers = dln.random_balanced(
        widths, rank=min(3, *widths), generator=generator, dtype=F64, batch=(2,)
    )
    if depth == 1:
        layers = [torch.randn(2, 6, 5, generator=generator, dtype=F64)]
    path = dln.gradient_flow(loss, layers, t_end=0.4, rtol=1e-10, keep_points=True)
    whole = dln.gradient_flow(loss, layers, t_end=0.4, rtol=1e-10, engine="layers")
    shaken = [w * (1.001 if p == 0 else 1.0) for p, w in enumerate(layers)]
    off = dln.gradient_flow(loss, shaken, t_end=0.4)
    for run in (path, whole, off):
        assert isinstance(run.final, dln.Network)
    for w, v in zip(path.final, whole.final, strict=True):
        assert relative(w[1], v[1]) < 1e-8
    assert isinstance(path.points[0], dln.Network)
    for w, v in zip(path.points[0], layers, strict=True):
        assert relative(w[1], v[1]) < 1e-12
    if depth > 1:
        asked = dln.gradient_flow(loss, layers, t_end=0.4, rtol=1e-10, engine="spectral")
        assert [w.shape for w in asked.final] == [w.shape for w in layers]
        assert relative(asked.final.matrix[0], path.final.matrix[0]) < 1e-8


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 2.5, 200, math.inf])
def test_a_batch_is_its_runs(depth, generator):
    loss = quadratic(generator)
    scales = torch.tensor([[0.1], [1.0], [2.0]], dtype=F64) * torch.tensor(SPECTRUM, dtype=F64)
    batch = dln.Collapsed.random((6, 5), 5, depth, spectrum=scales, generator=generator, dtype=F64)
    t = 0.6 if math.isinf(depth) else 0.6 / depth
    path = dln.gradient_flow(loss, batch, t_end=t, save_at=[0.0, t / 3, t], rtol=1e-11)
    assert path.singular_values.shape == (3, 3, 5)
    assert path.status == ["t_end"] * 3
    for k in range(3):
        one = dln.Collapsed(batch.L[k], batch.R[k], batch.depth)
        single = dln.gradient_flow(loss, one, t_end=t, save_at=[0.0, t / 3, t], rtol=1e-11)
        assert relative(path.final.matrix[k], single.final.matrix) < 1e-8
        assert_close(path.loss[:, k], single.loss, ops=1e7)


def test_batch_of_networks_and_of_entries(generator):
    factors = dln.random_balanced(
        (5, 6, 4, 6), batch=(2, 2), scale=0.5, rank=3, generator=generator, dtype=F64
    )
    rows, cols = torch.tensor([0, 1, 2, 5, 3]), torch.tensor([0, 3, 4, 1, 3])
    loss = losses.Completion(rows, cols, torch.randn(5, generator=generator, dtype=F64), (6, 5))
    path = dln.gradient_flow(loss, factors, t_end=2.0, keep_points=True)
    assert path.loss.shape == (101, 2, 2)
    assert path.final.matrix.shape == (2, 2, 6, 5)
    assert len(path.points) == 101
    assert path.points[3][2].shape == (2, 2, 6, 4)
    dense = losses.from_callable(
        lambda x: 0.5 * (x[loss.rows, loss.cols] - loss.values).square().sum()
    )
    again = dln.gradient_flow(dense, factors, t_end=2.0)
    assert relative(again.final.matrix[1, 0], path.final.matrix[1, 0]) < 1e-6


def test_float32_follows_float64(generator):
    loss, point = quadratic(generator), start(generator, 3)
    fine = dln.gradient_flow(loss, point, t_end=0.5)
    coarse = dln.Collapsed(point.L.float(), point.R.float(), point.depth)
    path = dln.gradient_flow(loss, coarse, t_end=0.5, rtol=1e-6)
    assert path.final.L.dtype == torch.float32
    assert path.loss.dtype == torch.float32
    assert relative(path.final.matrix.double(), fine.final.matrix) < 1e-5


def test_bad_starts(generator):
    loss = quadratic(generator)
    with pytest.raises(ValueError, match="6 x 5"):
        dln.gradient_flow(loss, start(generator, 3, rank=3, shape=(5, 5)), t_end=1.0)
    with pytest.raises(TypeError, match="start must be a sequence"):
        dln.gradient_flow(loss, "start", t_end=1.0)
    with pytest.raises(ValueError, match="must chain"):
        dln.gradient_flow(loss, [torch.ones(3, 5), torch.ones(6, 4)], t_end=1.0)
    with pytest.raises(TypeError, match="loss must have the methods"):
        dln.gradient_flow("loss", start(generator, 3), t_end=1.0)
    with pytest.raises(ValueError, match="integer depth"):
        dln.gradient_flow(loss, start(generator, 2.5), t_end=1.0, engine="products")


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 2.5, math.inf, "layers"])
def test_losses_with_leading_dimensions(depth, generator):
    """Targets (2, 2) with one start, a start (1,), and starts (2, 2)."""
    y = torch.randn(2, 2, 6, 5, generator=generator, dtype=F64)
    point = start(generator, 3 if depth == "layers" else depth)
    engine = "layers" if depth == "layers" else "auto"
    t = 0.2 if depth == "layers" or math.isinf(depth) else 0.6 / depth
    options = {"t_end": t, "save_at": [0.0, t], "rtol": 1e-10, "engine": engine}

    def matrix(final):
        return dln.end_to_end(final) if isinstance(final, tuple) else final.matrix

    single = dln.gradient_flow(losses.Quadratic(y[1, 0]), point, **options)
    for batch in ((), (1,), (2, 2)):
        held = dln.Collapsed(
            point.L.expand(*batch, -1, -1), point.R.expand(*batch, -1, -1), point.depth
        )
        path = dln.gradient_flow(losses.Quadratic(y), held, **options)
        assert path.loss.shape == (2, 2, 2)
        assert relative(matrix(path.final)[1, 0], matrix(single.final)) < 1e-8
    one = dln.gradient_flow(losses.Quadratic(y[1, :1]), point, **options)
    assert relative(matrix(one.final)[0], matrix(single.final)) < 1e-8
    three = dln.Collapsed(point.L.expand(3, -1, -1), point.R.expand(3, -1, -1), point.depth)
    with pytest.raises(ValueError, match="loss must fit starts"):
        dln.gradient_flow(losses.Quadratic(y), three, **options)


@pytest.mark.parametrize("depth", [1.5, 3, 150])
def test_the_normalized_metric_is_n_times_slower(depth, generator):
    loss = quadratic(generator)
    x = start(generator, 3).matrix
    plain = dln.EndToEnd.of(x, depth)
    slow = dln.EndToEnd.of(x, depth, normalized=True)
    times = torch.tensor([0.0, 0.05, 0.2], dtype=F64)
    fast = dln.gradient_flow(loss, plain, t_end=0.2, save_at=times, rtol=1e-11)
    path = dln.gradient_flow(
        loss, slow, t_end=0.2 * depth, save_at=times * depth, rtol=1e-11, keep_points=True
    )
    assert_close(path.singular_values, fast.singular_values, ops=1e5)
    assert_close(path.t, times * depth)
    assert path.final.normalized
    assert path.points[0].normalized
    g = loss.gradient(x)
    assert_close(dln.cometric(dln.Collapsed.of(slow), g), dln.cometric(slow, g), ops=1000)
    norm = float((g * dln.cometric(slow, g)).sum().sqrt())
    for factor, status in ((1.001, "gradient"), (0.999, "steps")):
        rules = {"gradient": factor * norm, "steps": 0}
        assert dln.gradient_flow(loss, slow, until=rules).status == status


def test_starts_that_remember_their_making(generator, tmp_path):
    x = start(generator, 3).matrix.requires_grad_()
    loss = quadratic(generator)
    for depth in (1, 3, math.inf):
        point = dln.EndToEnd.of(x, depth)
        path = dln.gradient_flow(loss, point, t_end=0.1, store=tmp_path / str(depth))
        assert not path.final.matrix.requires_grad


@pytest.mark.parametrize(
    ("depth", "name", "kind"),
    [
        (1.5, "auto", "SpectralEngine"),
        (2, "products", "SpectralEngine"),
        (3, "auto", "ProductEngine"),
        (3, "spectral", "SpectralEngine"),
        (8, "auto", "EvenEngine"),
        (8, "spectral", "SpectralEngine"),
        (100, "auto", "EvenEngine"),
        (101, "auto", "PairEngine"),
        (101, "products", "ProductEngine"),
        (math.inf, "auto", "CoreEngine"),
    ],
)
def test_engines_by_depth_and_wish(depth, name, kind, generator):
    engine = collapsed_engine(quadratic(generator), start(generator, depth), name)
    assert type(engine).__name__ == kind
    assert engine.depth == depth
