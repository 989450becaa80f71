"""The gradient flow against independent routes: layers, the kernel flow of X, exact solutions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm

import dln_geometry as dln
from dln_geometry import exact, losses
from dln_geometry.dynamics import engines
from dln_geometry.ode import integrate
from dln_geometry.testing import assert_close, assert_order

F64 = torch.float64
SPECTRUM = [1.3, 1.3, 0.7, 0.4, 0.2]


def quadratic(generator, shape=(6, 5)):
    return losses.Quadratic(torch.randn(shape, generator=generator, dtype=F64))


def start(generator, depth, rank=5, shape=(6, 5)):
    return dln.Collapsed.random(
        shape, rank, depth, spectrum=SPECTRUM[:rank], generator=generator, dtype=F64
    )


def scipy_flow(velocity, y0, t, rtol=1e-12):
    """Integrate tensors by scipy's DOP853."""
    shapes = [y.shape for y in y0]

    def unpack(flat):
        parts = torch.from_numpy(np.asarray(flat)).split([s.numel() for s in shapes])
        return [part.view(s) for part, s in zip(parts, shapes, strict=True)]

    def rhs(_, flat):
        return torch.cat([v.reshape(-1) for v in velocity(unpack(flat))]).numpy()

    flat = torch.cat([y.reshape(-1) for y in y0]).numpy()
    solution = solve_ivp(rhs, (0, t), flat, method="DOP853", rtol=rtol, atol=1e-14)
    return unpack(solution.y[:, -1])


def layer_velocity(loss):
    """Return the upstairs field by autograd of the product: no formula of ours."""

    def velocity(factors):
        with torch.enable_grad():
            leaves = [w.clone().requires_grad_() for w in factors]
            x = leaves[0]
            for w in leaves[1:]:
                x = w @ x
            grads = torch.autograd.grad(loss.value(x), leaves)
        return [-g for g in grads]

    return velocity


def relative(x, y):
    return float(torch.linalg.matrix_norm(x - y) / torch.linalg.matrix_norm(y))


@pytest.mark.parametrize("depth", range(2, 9))
@pytest.mark.parametrize("rank", [5, 3])
def test_collapsed_flow_is_the_flow_of_the_layers(depth, rank, generator):
    loss, point = quadratic(generator), start(generator, depth, rank)
    widths = (5, *(rank + p % 3 for p in range(depth - 1)), 6)
    factors = point.factors(widths=widths, generator=generator)
    layers = scipy_flow(layer_velocity(loss), factors, 0.7)
    expected = dln.end_to_end(layers)
    for engine in ("spectral", "products"):
        path = dln.gradient_flow(loss, point, t_end=0.7, rtol=1e-11, engine=engine)
        assert relative(path.final.matrix, expected) < 1e-8
        assert float(path.defect.max()) < 1e-8
    # The same from the factors themselves, and by the pair engine of very large depths.
    path = dln.gradient_flow(loss, factors, t_end=0.7, rtol=1e-11)
    assert relative(path.final.matrix, expected) < 1e-8
    pair = engines.PairEngine(loss, point)
    solution = integrate(pair.field, pair.rows(), t_end=0.7, rtol=1e-11, blocks=pair.sizes)
    assert relative(pair.point(solution.y).matrix[0], expected) < 1e-8


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


def test_unbalanced_factors_flow_by_layers_and_keep_their_moments(generator):
    widths = (5, 3, 7, 4, 6)
    factors = [
        0.6 * torch.randn(b, a, generator=generator, dtype=F64)
        for a, b in itertools.pairwise(widths)
    ]
    loss = quadratic(generator)
    path = dln.gradient_flow(loss, factors, t_end=0.6, rtol=1e-11)
    expected = scipy_flow(layer_velocity(loss), factors, 0.6)
    for got, want in zip(path.final, expected, strict=True):
        assert relative(got, want) < 1e-8
    for got, want in zip(dln.moments(path.final), dln.moments(factors), strict=True):
        assert float((got - want).abs().max()) < 1e-9
    assert float(path.defect.max()) < 1e-9
    assert path.depth == 4.0


def test_scalar_unbalanced_level_has_a_closed_metric(generator):
    """Depth 2 with G_1 = g I: dX = -( sqrt(XX^T + g^2/4) E' + E' sqrt(X^TX + g^2/4) )."""
    gap = 0.8
    u, v = (torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=F64)).Q for _ in "uv")
    low = torch.tensor([0.2, 0.5, 0.9, 1.4], dtype=F64)
    factors = (low.diag() @ v.mT, u @ (low.square() + gap).sqrt().diag())
    assert_close(dln.moments(factors)[0], gap * torch.eye(4, dtype=F64), ops=300)
    loss = quadratic(generator, (4, 4))

    def velocity(y):
        x, eye = y[0], torch.eye(4, dtype=F64)
        left = torch.from_numpy(np.real(sqrtm((x @ x.mT + gap**2 / 4 * eye).numpy())))
        right = torch.from_numpy(np.real(sqrtm((x.mT @ x + gap**2 / 4 * eye).numpy())))
        e = loss.gradient(x)
        return [-(left @ e + e @ right)]

    (expected,) = scipy_flow(velocity, [dln.end_to_end(factors)], 0.5, rtol=1e-11)
    path = dln.gradient_flow(loss, factors, t_end=0.5, rtol=1e-11)
    assert relative(dln.end_to_end(path.final), expected) < 1e-8


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


def test_depth_one_is_the_plain_flow_and_raises_the_rank(generator):
    loss = quadratic(generator)
    nothing = dln.EndToEnd.of(torch.zeros(6, 5, dtype=F64), 1)
    zero = dln.gradient_flow(loss, nothing, t_end=0.9, rtol=1e-10)
    assert relative(zero.final.matrix, -math.expm1(-0.9) * loss.target) < 1e-9
    thin = dln.EndToEnd.of(torch.randn(6, 5, generator=generator, dtype=F64), 1, rank=2)
    path = dln.gradient_flow(loss, thin, t_end=0.9, rtol=1e-10)
    expected = loss.target + math.exp(-0.9) * (thin.matrix - loss.target)
    assert relative(path.final.matrix, expected) < 1e-9
    assert isinstance(path.final, dln.EndToEnd)
    same = dln.gradient_flow(loss, [thin.matrix], t_end=0.9, rtol=1e-10)
    assert relative(same.final.matrix, expected) < 1e-9


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
    assert path.points[3].L.shape == (2, 2, 6, 3)
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


@pytest.mark.parametrize("engine", ["spectral", "products"])
def test_error_follows_the_tolerance(engine, generator):
    loss, point = quadratic(generator), start(generator, 5)
    best = dln.gradient_flow(loss, point, t_end=0.5, rtol=1e-13).final.matrix
    tolerances = [1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    paths = [
        dln.gradient_flow(loss, point, t_end=0.5, rtol=r, engine=engine, method="rk5")
        for r in tolerances
    ]
    errors = [relative(path.final.matrix, best) for path in paths]
    assert_order(tolerances, errors, 1.0, tol=0.35)
    assert max(e / r for e, r in zip(errors, tolerances, strict=True)) < 100


@pytest.mark.parametrize("depth", [2, 7, 8, 3.3, 150])
def test_rebalancing_restores_the_invariants_and_keeps_x(depth, generator):
    loss, point = quadratic(generator), start(generator, depth)
    t = 1.5 / depth
    loose = dln.gradient_flow(loss, point, t_end=t, rtol=1e-3, method="rk5")
    kept = dln.gradient_flow(loss, point, t_end=t, rtol=1e-3, method="rk5", rebalance=1e-9)
    assert float(loose.defect.max()) > 1e-9
    assert float(kept.defect.max()) <= 1e-9
    assert kept.stats["corrections"] > 0
    exact_path = dln.gradient_flow(loss, point, t_end=t, rtol=1e-11)
    assert relative(kept.final.matrix, exact_path.final.matrix) < 2e-2


def test_stopping_rules(generator):
    loss, point = quadratic(generator), start(generator, 3)
    path = dln.gradient_flow(loss, point, until={"loss": 1e-9})
    assert path.status == "loss"
    assert float(path.loss[-1]) <= 1e-9 < float(path.loss[-2])
    assert dln.gradient_flow(loss, point, t_end=50.0, until={"steps": 7}).status == "steps"
    assert dln.gradient_flow(loss, point, t_end=1e9, until={"seconds": 0.0}).status == "seconds"
    assert dln.gradient_flow(loss, point, t_end=0.0).status == "t_end"


def test_store_resumes_to_the_same_bits(generator, tmp_path):
    loss, point = quadratic(generator), start(generator, 3)
    whole = dln.gradient_flow(loss, point, t_end=1.0)

    class Killed:
        shape = loss.shape
        calls = 0

        def value(self, x):
            return loss.value(x)

        def gradient(self, x):
            self.calls += 1
            if self.calls == 120:
                raise KeyboardInterrupt
            return loss.gradient(x)

    path = tmp_path / "run.store"

    class Plain(Killed):
        calls = 10**6

    reference = dln.gradient_flow(Plain(), point, t_end=1.0)
    with pytest.raises(KeyboardInterrupt):
        dln.gradient_flow(Killed(), point, t_end=1.0, store=path)
    Killed.gradient = Plain.gradient
    Killed.calls = 10**6
    resumed = dln.gradient_flow(Killed(), point, t_end=1.0, store=path)
    assert torch.equal(resumed.final.L, reference.final.L)
    assert torch.equal(resumed.loss, reference.loss)
    assert relative(resumed.final.matrix, whole.final.matrix) < 1e-8
    with pytest.raises(ValueError, match="store must belong to the same run"):
        dln.gradient_flow(Killed(), point, t_end=1.0, rtol=1e-5, store=path)
    Killed.value = lambda self, x: loss.value(x) + 1.0
    with pytest.raises(ValueError, match="with other loss"):
        dln.gradient_flow(Killed(), point, t_end=1.0, store=path)
    path.write_text("nothing")
    with pytest.raises(ValueError, match="store must be a file written by a run"):
        dln.gradient_flow(Killed(), point, t_end=1.0, store=path)


def test_blow_up_carries_the_trajectory(generator):
    repelling = losses.from_callable(lambda x: -(x.square().sum() ** 2))
    point = start(generator, 2)
    with pytest.raises(dln.FlowError, match="step size must stay above") as caught:
        dln.gradient_flow(repelling, point, t_end=10.0)
    path = caught.value.trajectory
    assert len(path) > 3
    assert bool(torch.isfinite(path.loss).all())
    huge = dln.Collapsed(1e200 * point.L, 1e200 * point.R, 2.0)
    with pytest.raises(ValueError, match="finite at the start"):
        dln.gradient_flow(quadratic(generator), huge, t_end=1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "t_end or until must be given"),
        ({"t_end": -1.0}, ValueError, "t_end must be >= 0"),
        ({"t_end": math.nan}, ValueError, "t_end must be >= 0"),
        ({"t_end": "1"}, TypeError, "t_end must be a number"),
        ({"t_end": math.inf}, ValueError, "until must be given"),
        ({"until": {"los": 1.0}}, ValueError, "until must hold rules among"),
        ({"until": {"loss": -1.0}}, ValueError, "until"),
        ({"until": {"loss": math.nan}}, ValueError, "until"),
        ({"t_end": 1.0, "save_at": [0.5, 0.2]}, ValueError, "save_at"),
        ({"t_end": 1.0, "save_at": [2.0]}, ValueError, "save_at"),
        ({"t_end": 1.0, "engine": "fast"}, ValueError, "engine must be one of"),
        ({"t_end": 1.0, "method": "euler"}, ValueError, "method must be one of"),
        ({"t_end": 1.0, "rtol": 0.0}, ValueError, "rtol"),
        ({"t_end": 1.0, "rebalance": 0.0}, ValueError, "rebalance must be positive"),
    ],
)
def test_bad_options(options, error, message, generator):
    with pytest.raises(error, match=message):
        dln.gradient_flow(quadratic(generator), start(generator, 3), **options)


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


def test_a_stored_run_can_be_continued_further(generator, tmp_path):
    loss, point = quadratic(generator), start(generator, 3)
    store = tmp_path / "run.store"
    first = dln.gradient_flow(loss, point, t_end=1.0, until={"steps": 5}, store=store)
    assert first.status == "steps"
    assert dln.gradient_flow(loss, point, t_end=0.5, store=store).status == "t_end"
    further = dln.gradient_flow(loss, point, t_end=1.0, store=store)
    assert float(further.t[-1]) == 1.0
    whole = dln.gradient_flow(loss, point, t_end=1.0)
    assert relative(further.final.matrix, whole.final.matrix) < 1e-7


def test_progress_reports(generator, capsys):
    loss, point = quadratic(generator), start(generator, 3)
    seen = []
    dln.gradient_flow(
        loss, point, t_end=1.0, progress=lambda fraction, info: seen.append((fraction, info["t"]))
    )
    assert seen[-1] == (1.0, 1.0)
    dln.gradient_flow(loss, point, t_end=1.0, progress=True)
    assert "loss" in capsys.readouterr().out


def test_layers_on_request(generator):
    loss, point = quadratic(generator), start(generator, 4, rank=3)
    pair = dln.gradient_flow(loss, point, t_end=0.5, rtol=1e-10, save_at=5)
    for begin in (point, point.point(), point.factors(widths=4, generator=generator)):
        layers = dln.gradient_flow(loss, begin, t_end=0.5, rtol=1e-10, save_at=5, engine="layers")
        assert isinstance(layers.final, tuple)
        assert relative(dln.end_to_end(layers.final), pair.final.matrix) < 1e-8
        assert float((layers.t - pair.t).abs().max()) == 0.0
    assert pair.t.tolist() == [0.0, 0.125, 0.25, 0.375, 0.5]


def test_a_rule_that_is_never_met_ends(generator):
    """The loss tends to 1 > 1e-8 while X tends to 0."""
    loss = losses.Quadratic(-torch.eye(2, dtype=F64))
    path = dln.gradient_flow(
        loss,
        dln.EndToEnd.of(torch.eye(2, dtype=F64), 2),
        until={"loss": 1e-8, "evaluations": 3000},
    )
    assert path.status == "evaluations"
    assert 3000 <= path.stats["evaluations"] < 10_000


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


def test_a_batch_of_unbalanced_networks_keeps_each_its_moments(generator):
    """Samples that reach the saved times at different steps."""
    scales = torch.tensor([0.2, 1.0, 1.7], dtype=F64)[:, None, None]
    factors = [
        scales * torch.randn(3, b, a, generator=generator, dtype=F64)
        for a, b in itertools.pairwise((5, 4, 3, 6))
    ]
    path = dln.gradient_flow(quadratic(generator), factors, t_end=0.5, rtol=1e-10)
    assert path.defect.shape == (101, 3)
    assert float(path.defect.max()) < 1e-8


def test_a_store_never_mixes_two_grids_or_rules(generator, tmp_path):
    loss = quadratic(generator)
    batch = dln.Collapsed.random(
        (6, 5), 3, 3, scale=0.3, batch=(3,), generator=generator, dtype=F64
    )
    dln.gradient_flow(loss, batch, t_end=1.0, store=tmp_path / "batch")
    with pytest.raises(ValueError, match="other save_at"):
        dln.gradient_flow(loss, batch, t_end=2.0, store=tmp_path / "batch")
    point, store = start(generator, 3), tmp_path / "single"
    first = dln.gradient_flow(loss, point, until={"loss": 1.0}, store=store)
    again = dln.gradient_flow(loss, point, until={"loss": 1.0}, store=store)
    assert torch.equal(first.loss, again.loss)
    tighter = dln.gradient_flow(loss, point, until={"loss": 1e-3}, store=store)
    assert (first.status, tighter.status) == ("loss", "loss")
    assert float(tighter.loss[-1]) <= 1e-3 < float(first.loss[-1])
    with pytest.raises(ValueError, match="t_end must not lie before"):
        dln.gradient_flow(loss, point, t_end=1e-3, store=store)


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


def test_depths_just_above_one_and_exact_zeros(generator):
    x, y = (torch.randn(3, 3, generator=generator, dtype=F64) for _ in "xy")
    loss = losses.Quadratic(y)
    for depth in (1.05, 1.1):
        path = dln.gradient_flow(loss, dln.EndToEnd.of(x, depth), t_end=1.0, rtol=1e-6)
        assert path.status == "t_end"
        assert bool((path.loss.diff() <= 1e-12).all())
    for depth in (1.5, 2, 2.5, 3, 4, 101, 1e6, math.inf):
        zero = dln.EndToEnd.of(torch.diag(torch.tensor([1.0, 0.7, 0.0], dtype=F64)), depth)
        t = 0.1 if math.isinf(depth) else 0.1 / depth
        path = dln.gradient_flow(loss, zero, t_end=t)
        thin = dln.EndToEnd.of(zero.matrix, depth, rank=2)
        other = dln.gradient_flow(loss, thin, t_end=t)
        assert relative(path.final.matrix, other.final.matrix) < 1e-6


def test_very_large_depth_in_single_precision():
    """N-th roots that are 1 up to rounding are never formed."""
    s0, target = torch.tensor([1.0, 1e-2, 1e-4]), torch.tensor([0.5, 0.3, 0.2])
    depth, t = 1e6, 2e-6
    path = dln.gradient_flow(
        losses.Quadratic(torch.diag(target)),
        dln.EndToEnd.of(torch.diag(s0), depth),
        t_end=t,
        rtol=1e-6,
        save_at=[0.0, t],
    )
    assert isinstance(path.final, dln.EndToEnd)
    expected = exact.quadratic(s0, target, depth, t)
    assert_close(path.singular_values[-1] / expected, torch.ones(3), ops=1000)


def test_starts_that_remember_their_making(generator, tmp_path):
    x = start(generator, 3).matrix.requires_grad_()
    loss = quadratic(generator)
    for depth in (1, 3, math.inf):
        point = dln.EndToEnd.of(x, depth)
        path = dln.gradient_flow(loss, point, t_end=0.1, store=tmp_path / str(depth))
        assert not path.final.matrix.requires_grad


def test_no_time_and_no_samples(generator):
    loss = quadratic(generator)
    batch = dln.Collapsed.random(
        (6, 5), 3, 3, scale=0.3, batch=(2,), generator=generator, dtype=F64
    )
    assert dln.gradient_flow(loss, batch, t_end=0).status == ["t_end"] * 2
    empty = dln.Collapsed(batch.L[:0], batch.R[:0], 3)
    with pytest.raises(ValueError, match="at least one sample"):
        dln.gradient_flow(loss, empty, t_end=1.0)


def test_a_loss_that_ceases_to_be_a_number_is_not_recorded(generator):
    """Its gradient stays finite: nothing but the value tells."""
    y = torch.randn(6, 5, generator=generator, dtype=F64)

    class Broken(losses.Quadratic):
        def contract(self, left, right):
            value, *rest = super().contract(left, right)
            return torch.where(value < 1.0, torch.nan, value), *rest

    with pytest.raises(dln.FlowError, match="step size must stay above") as caught:
        dln.gradient_flow(Broken(y), start(generator, 2), t_end=50.0)
    path = caught.value.trajectory
    assert len(path) > 3
    assert float(path.loss.min()) >= 1.0
