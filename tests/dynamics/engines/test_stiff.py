"""The Jacobians of all engines, the restored states, and stiff flows of small matrices."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from dln_geometry.dynamics import engines
from dln_geometry.ode import Parts, differences
from dln_geometry.testing import assert_close
from tests.dynamics.flows.routes import F64, quadratic, relative

RAZIN_COHEN = losses.Completion(
    [0, 1, 1], [1, 0, 1], torch.tensor([1.0, 1.0, 0.0], dtype=F64), (2, 2)
)


def engine_of(name, generator, batch=(3,)):
    loss = quadratic(generator)
    x = torch.randn(*batch, 6, 5, generator=generator, dtype=F64)
    depth = {"plain": 1, "pair": 150, "core": math.inf, "spectral": 2.6, "even": 6}.get(name, 3)
    point = dln.EndToEnd.of(x, depth)
    pair = dln.Collapsed.of(point)
    makes = {
        "plain": lambda: engines.PlainEngine(loss, x),
        "spectral": lambda: engines.SpectralEngine(loss, pair),
        "even": lambda: engines.EvenEngine(loss, pair),
        "products": lambda: engines.ProductEngine(loss, pair, True),
        "pair": lambda: engines.PairEngine(loss, point),
        "core": lambda: engines.CoreEngine(loss, pair),
        "thin": lambda: engines.ThinEngine(loss, pair.factors()),
        "layered": lambda: engines.LayeredEngine(loss, factors, True),
        "moments": lambda: engines.MomentEngine(factors),
    }
    factors = [
        torch.randn(*batch, *shape, generator=generator, dtype=F64)
        for shape in ((3, 5), (4, 3), (6, 4))
    ]
    return makes[name]()


def whole(jacobian):
    return jacobian.whole if isinstance(jacobian, Parts) else jacobian


NAMES = (*("plain", "spectral", "even", "products", "pair", "core", "thin", "layered", "moments"),)


@pytest.mark.parametrize("batch", [(), (2, 2)])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_jacobians_are_those_of_differences(name, batch, generator):
    engine = engine_of(name, generator, batch)
    y = engine.rows()
    if name != "moments":
        engine.decay = torch.rand(len(y), generator=generator, dtype=F64)
    t = torch.rand(len(y), generator=generator, dtype=F64)
    expected = differences(engine.field, t, y)
    got = whole(engine.jacobian(t, y))
    assert float((got - expected).norm() / expected.norm()) < 1e-8
    assert engine._differentiates


@torch.no_grad()
def test_jacobians_of_losses_that_cannot_be_differentiated_are_differences(generator):
    class Opaque:
        def value(self, x):
            return 0.25 * x.detach().pow(4).sum((-2, -1))

        def gradient(self, x):
            return x.detach().pow(3)

    pair = dln.Collapsed.random((3, 3), 3, 3, generator=generator, dtype=F64)
    engine = engines.ProductEngine(Opaque(), pair)
    y, t = engine.rows(), torch.zeros(1, dtype=F64)
    assert_close(engine.jacobian(t, y), differences(engine.field, t, y), ops=100)
    assert not engine._differentiates


@pytest.mark.parametrize("name", ["spectral", "spectral below 2", "pair", "core"])
@torch.no_grad()
def test_jacobians_exist_at_equal_singular_values(name, generator):
    loss = quadratic(generator)
    q = torch.linalg.qr(torch.randn(6, 5, generator=generator, dtype=F64))[0]
    depth = {"spectral": 5.6, "spectral below 2": 1.4, "pair": 150, "core": math.inf}[name]
    point = dln.EndToEnd.of(0.7 * q, depth)
    kinds = {"pair": engines.PairEngine, "core": engines.CoreEngine}
    engine = kinds.get(name, engines.SpectralEngine)(loss, dln.Collapsed.of(point))
    y, t = engine.rows(), torch.zeros(1, dtype=F64)
    expected = differences(engine.field, t, y)
    got = whole(engine.jacobian(t, y))
    assert engine._differentiates
    assert float((got - expected).norm() / expected.norm()) < 1e-8


@pytest.mark.parametrize("name", ["spectral", "even", "products", "pair", "core"])
@torch.no_grad()
def test_states_that_cross_no_rank_drop_stay(name, generator):
    engine = engine_of(name, generator)
    y = engine.rows()
    moved = y * (1 + 1e-6 * torch.randn(y.shape, generator=generator, dtype=F64))
    moved[0, 0] = math.nan
    back = engine.restored(y, moved)
    assert bool(torch.isnan(back[0]).any())
    assert torch.equal(back[1:], moved[1:])


@torch.no_grad()
def test_pairs_of_depth_two_are_balanced_again(generator):
    pair = dln.Collapsed.random((6, 5), 5, 2, batch=(3,), generator=generator, dtype=F64)
    engine = engines.EvenEngine(quadratic(generator), pair)
    y = engine.rows()
    moved = y * (1 + 1e-6 * torch.randn(y.shape, generator=generator, dtype=F64))
    back = engine.restored(y, moved)
    assert float(engine.point(moved).defect().max()) > 1e-8
    assert float(engine.point(back).defect().max()) < 1e-13
    gap = engine.point(back).matrix - pair.matrix
    assert float(gap.norm() / pair.matrix.norm()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 4), (4, 3), (3, 4)], ids=str)
def test_balanced_pairs_stay_on_their_side_step_after_step(shape, generator):
    """Their columns turn at every step, by turns of determinant -1 too."""
    options = {"batch": (16,), "generator": generator, "dtype": F64}
    pair = dln.Collapsed.random(shape, min(shape), 2, **options)
    engine = engines.EvenEngine(losses.Quadratic(torch.zeros(shape, dtype=F64)), pair)
    y = engine.rows()
    for _ in range(5):
        moved = y * (1 + 1e-6 * torch.randn(y.shape, generator=generator, dtype=F64))
        back = engine.restored(y, moved)
        gap = engine.point(back).matrix - engine.point(moved).matrix
        assert float(gap.norm() / pair.matrix.norm()) < 1e-5
        y = back


@torch.no_grad()
def test_layers_between_frames_are_balanced_again(generator):
    engine = engine_of("thin", generator)
    y = engine.rows()
    moved = y * (1 + 1e-6 * torch.randn(y.shape, generator=generator, dtype=F64))
    back = engine.restored(y, moved)
    obs = engine.field(torch.zeros(len(y), dtype=F64), back, torch.empty_like(y))
    assert float(engine.defect(back, obs).max()) < 1e-12
    assert_close(dln.end_to_end(engine.split(back)), dln.end_to_end(engine.split(moved)), ops=1000)


@pytest.mark.parametrize("depth", [2, 3, 4, 5.5, math.inf])
@torch.no_grad()
def test_a_step_across_a_rank_drop_is_turned_back(depth):
    s = torch.tensor([[2.0, 1e-9]], dtype=F64)
    eye = torch.eye(2, dtype=F64)[None]
    near = dln.Collapsed.of(dln.EndToEnd(eye, s, eye, depth))
    mirrored = dln.Collapsed.of(dln.EndToEnd(eye * torch.tensor([1.0, -1.0]), s, eye, depth))
    make = {3: engines.ProductEngine, 4: engines.EvenEngine, math.inf: engines.CoreEngine}
    kind = make.get(depth, engines.SpectralEngine)
    a, b = kind(RAZIN_COHEN, near), kind(RAZIN_COHEN, mirrored)
    if depth == math.inf:
        y, y_new = (torch.diag_embed(w).reshape(1, 4) for w in (s, s * torch.tensor([1.0, -1.0])))
    else:
        y, y_new = a.rows(), b.rows()
    back = a.point(a.restored(y, y_new)).matrix[0]
    assert float(torch.linalg.det(back)) > 0


@pytest.mark.parametrize("depth", [2, 3, 4, math.inf])
def test_completion_runs_to_small_losses_on_the_branch_of_positive_determinants(depth):
    """Razin, Cohen, 2005.06398: X_00 grows for ever where det X > 0."""
    start = dln.Collapsed.of(dln.EndToEnd.of(0.01 * torch.eye(2, dtype=F64), depth))
    path = dln.gradient_flow(RAZIN_COHEN, start, until={"loss": 1e-4}, rtol=1e-6)
    assert path.status == "loss"
    assert path.stats["by_method"]["rodas"] > 0
    x = path.final.matrix
    assert float(torch.linalg.det(x)) > -1e-9
    assert float(x[0, 0]) > 50
    assert path.stats["evaluations"] < 40_000


@pytest.mark.slow
def test_the_branch_is_kept_where_the_determinant_decays_below_rounding():
    """At depth 2 det X falls exponentially while X_00 grows like the root of the loss."""
    start = dln.Collapsed.of(dln.EndToEnd.of(0.01 * torch.eye(2, dtype=F64), 2))
    path = dln.gradient_flow(RAZIN_COHEN, start, until={"loss": 1e-9}, rtol=1e-6)
    x = path.final.matrix
    assert path.status == "loss"
    assert float(path.t[-1]) > 1e12
    assert float(torch.linalg.det(x)) >= -1e-9
    assert float(x[0, 0]) > 20_000
    assert path.stats["evaluations"] < 100_000


def test_implicit_and_explicit_flows_agree(generator):
    loss = losses.Quadratic(torch.randn(3, 2, generator=generator, dtype=F64))
    for depth in (1, 2, 2.7, 3, 4, math.inf):
        x = torch.randn(2, 3, 2, generator=generator, dtype=F64)
        point = dln.EndToEnd.of(x, depth)
        start = point if depth == 1 else dln.Collapsed.of(point)
        options = {"t_end": 0.5, "rtol": 1e-8}
        explicit = dln.gradient_flow(loss, start, method="rk8", **options)
        implicit = dln.gradient_flow(loss, start, method="rodas", **options)
        gap = implicit.final.matrix - explicit.final.matrix
        assert float(gap.norm() / explicit.final.matrix.norm()) < 1e-5


def test_kirwan_ness_flow_takes_it_where_it_is_stiff(generator):
    layers = [torch.randn(2, 2, generator=generator, dtype=F64) * k for k in (3.0, 0.2, 2.0)]
    path = dln.kirwan_ness_flow(layers, t_end=1e4, rtol=1e-6)
    assert "rodas" in path.stats["by_method"]
    assert relative(dln.end_to_end(path.final), dln.end_to_end(layers)) < 1e-4


def test_a_run_bound_by_stiffness_says_so(monkeypatch):
    module = importlib.import_module("dln_geometry.ode.integrate")
    monkeypatch.setattr(module, "MOST_EVALUATIONS", 3000)
    start = dln.Collapsed.of(dln.EndToEnd.of(0.01 * torch.eye(2, dtype=F64), 3))
    with pytest.warns(UserWarning, match='bound by stiffness.*method="rodas"'):
        dln.gradient_flow(RAZIN_COHEN, start, until={"loss": 1e-9}, method="rk5")


def stiff_start(depth=3):
    return dln.Collapsed.of(dln.EndToEnd.of(0.01 * torch.eye(2, dtype=F64), depth))


def test_a_stored_run_of_it_continues_to_the_same_bits(tmp_path):
    options = {"rtol": 1e-5, "save_at": [0.0, 10.0, 300.0]}
    whole_run = dln.gradient_flow(RAZIN_COHEN, stiff_start(), t_end=1e3, **options)
    store = tmp_path / "run"
    until = {"evaluations": whole_run.stats["evaluations"] - 300}
    dln.gradient_flow(RAZIN_COHEN, stiff_start(), t_end=1e3, until=until, store=store, **options)
    again = dln.gradient_flow(RAZIN_COHEN, stiff_start(), t_end=1e3, store=store, **options)
    assert again.stats["by_method"] == whole_run.stats["by_method"]
    assert whole_run.stats["by_method"]["rodas"] > 300
    assert torch.equal(again.final.L, whole_run.final.L)
    assert torch.equal(again.loss, whole_run.loss)


def test_monitors_observables_and_dense_output_follow_it():
    def corner(point):
        return point.matrix[..., 0, 0]

    path = dln.gradient_flow(
        RAZIN_COHEN,
        stiff_start(),
        t_end=1e2,
        rtol=1e-5,
        save_at=[0.0, 20.0, 100.0],
        monitor=lambda point: (corner(point) - 3.0).abs(),
        observe={"corner": corner},
        dense=True,
        method="rodas",
    )
    assert set(path.stats["by_method"]) == {"rodas"}
    assert float(path.observed["corner"][-1]) > float(path.observed["corner"][1]) > 1.0
    assert float(path.monitored.best) < 1.0
    assert abs(float(corner(path.final)) - 3.0) == float(path.monitored.best)
    other = dln.gradient_flow(
        RAZIN_COHEN, stiff_start(), t_end=33.0, rtol=1e-8, save_at=[0.0], method="rk8"
    )
    assert relative(path.at(33.0).final.matrix, other.final.matrix) < 1e-4


@pytest.mark.parametrize("depth", [2, 3, 4, math.inf])
def test_implicit_and_explicit_flows_agree_under_decay(depth):
    start = dln.Collapsed.of(dln.EndToEnd.of(torch.eye(2, dtype=F64) + 0.1, depth))
    options = {"t_end": 2.0, "rtol": 1e-8, "save_at": [0.0], "decay": 1e-3}
    implicit = dln.gradient_flow(RAZIN_COHEN, start, method="rodas", **options)
    explicit = dln.gradient_flow(RAZIN_COHEN, start, method="rk8", **options)
    assert relative(implicit.final.matrix, explicit.final.matrix) < 1e-6


@torch.no_grad()
def test_a_determinant_below_rounding_comes_back_to_the_side_of_the_start():
    """At depth 2 the second singular value underflows; a sign that rounding made must not stay."""
    engine = engines.SpectralEngine(RAZIN_COHEN, stiff_start(2))
    s, eye = torch.tensor([9.0, 1e-14], dtype=F64), torch.eye(2, dtype=F64)
    beyond = dln.EndToEnd(eye * torch.tensor([1.0, -1.0]), s, eye, 2)
    y = engine.join(*(getattr(dln.Collapsed.of(beyond), n)[None] for n in ("L", "R")))
    back = engine.point(engine.restored(y, y)).matrix[0]
    assert float(torch.linalg.det(back)) > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["spectral", "even", "products", "pair", "core", "thin"])
def test_the_distance_of_states_is_that_of_their_points(name, generator):
    """What only turns the columns of a pair is no move."""
    engine = engine_of(name, generator)
    y = engine.rows()
    near = y * (1 + 1e-6 * torch.randn(y.shape, generator=generator, dtype=F64))
    gap = (near - y).norm(dim=-1)
    assert bool((engine.shift(y, near) <= gap * (1 + 1e-6)).all())
    pair = dln.Collapsed.random((5, 4), 4, 2, batch=(3,), generator=generator, dtype=F64)
    two = engines.SpectralEngine(quadratic(generator, (5, 4)), pair)
    y = two.rows()
    q = torch.linalg.qr(torch.randn(3, 4, 4, generator=generator, dtype=F64))[0]
    turned = two.join(*(x @ q for x in two.split(y)))
    assert float(two.shift(y, turned).max()) < 1e-13
    assert_close(two.shift(y, 1.1 * turned), 0.1 * y.norm(dim=-1), ops=300)


@torch.no_grad()
def test_a_sign_that_flips_is_an_error_of_the_step():
    """A pair whose turned column is large moved by more than any tolerance."""
    eye, s = torch.eye(3, dtype=F64)[None], torch.tensor([[2.0, 1.0, 0.5]], dtype=F64)
    pair = dln.Collapsed.of(dln.EndToEnd(eye, s, eye, 2))
    engine = engines.SpectralEngine(losses.Quadratic(torch.zeros(3, 3, dtype=F64)), pair)
    y = engine.rows()
    left, right = engine.split(y)
    other = engine.join(torch.cat((left[..., :-1], -left[..., -1:]), -1), right)
    assert_close(engine.shift(y, other), torch.tensor([2 * 0.5**0.5], dtype=F64), ops=300)
