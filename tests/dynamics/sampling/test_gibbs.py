from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry.geometry.metric import thin_svd
from dln_geometry.testing import assert_close, assert_mean
from tests.dynamics.noise.routes import F64, Ridge


def start_at(shape, rank, depth, generator, chains=(), dtype=F64):
    options = {"generator": generator, "dtype": dtype, "batch": chains}
    return dln.Collapsed.random(shape, rank, depth, **options)


@pytest.mark.parametrize(
    ("shape", "rank", "depth", "beta", "kappa", "entropy", "exact"),
    [
        # d^2 kappa/beta, and with entropy the dimension of the balanced manifold at kappa = 1.
        ((2, 2), 2, 3, 1.4, 0.6, False, 4 * 0.6 / 1.4),
        ((2, 2), 2, 3, 1.0, 1.0, True, 6.0),
        ((3, 3), 3, 4, 2.5, 1.0, True, 7.2),
        ((4, 3), 3, 2.7, 1.7, 0.8, False, 12 * 0.8 / 1.7),
        ((3, 4), 3, 2.7, 1.7, 0.8, False, 12 * 0.8 / 1.7),
        ((4, 3), 2, 3, 1.3, 1.0, False, 10 / 1.3),
        ((2, 5), 2, 3, 1.3, 1.0, True, dln.balanced_dimension((5, 2, 2, 2), 2) / 1.3),
        ((3, 5), 2, 3, 1.3, 1.0, True, dln.balanced_dimension((5, 3, 3, 3), 2) / 1.3),
    ],
    ids=str,
)
def test_exact_moments(shape, rank, depth, beta, kappa, entropy, exact, generator):
    start = start_at(shape, rank, depth, generator, (150,))
    path = dln.sample_gibbs(
        Ridge(depth),
        start,
        beta=beta,
        kappa=kappa,
        entropy=entropy,
        draws=120,
        thin=3,
        burn_in=250,
        generator=generator,
    )
    assert 0.45 < path.stats["acceptance"] < 0.7
    rho2 = depth * (path.singular_values ** (2 / depth)).sum(-1)
    # Chains are independent; within each the draws are averaged.
    assert_mean(rho2.mean(0), exact)
    # Half of |rho|^2 over the temperature has the law of a sum of squares.
    last = beta / kappa * rho2[-1]
    assert stats.kstest(last, stats.chi2(exact * beta / kappa).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_it_agrees_with_langevin_and_passes_through_det_zero(generator):
    """A loss that is no function of the singular values, at generic kappa and beta."""
    loss = dln.losses.Quadratic(torch.tensor([[0.6, -0.2], [0.1, 0.3]], dtype=F64))
    start = start_at((2, 2), 2, 3, generator, (1500,))
    options = {"beta": 2.3, "kappa": 0.7, "generator": generator}
    exact = dln.sample_gibbs(loss, start, draws=1, burn_in=300, **options)
    signs = torch.linalg.det(exact.final.matrix).sign()
    assert 0.02 < float((signs < 0).double().mean()) < 0.98
    walked = dln.langevin(loss, start, t_end=6.0, dt=0.02, save_at=[6.0], **options)
    assert stats.ks_2samp(exact.loss[-1], walked.loss[-1]).pvalue > 1e-3
    for k in range(2):
        a, b = (path.singular_values[-1][:, k] for path in (exact, walked))
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(
    ("shape", "rank", "depth", "kappa", "entropy"),
    [((2, 2), 2, 3, 0.8, True), ((3, 2), 2, 2.5, 0.8, False), ((3, 2), 1, 3, 1.2, True),
     ((2, 4), 2, 2, 1.0, True), ((2, 2), 2, math.inf, 0.9, True)],
)  # fmt: skip
def test_exact_moments_of_complex_matrices(shape, rank, depth, kappa, entropy, generator):
    deep = math.isinf(depth)
    start = start_at(shape, rank, depth, generator, (120,), torch.complex128)
    path = dln.sample_gibbs(
        LogRidge() if deep else Ridge(depth), start, beta=1.3, kappa=kappa, entropy=entropy,
        draws=60, thin=2, burn_in=150, generator=generator,
    )  # fmt: skip
    assert 0.45 < path.stats["acceptance"] < 0.7
    exact = dln.thermodynamics.partition_function(
        (lambda s: 0.5 * s.log().square().sum(-1)) if deep else None, shape, depth, beta=1.3,
        kappa=kappa, entropy=entropy, rank=rank, field="complex",
    )  # fmt: skip
    assert_mean(path.loss.mean(0), exact.energy)
    heat = (1.3 / kappa) ** 2 * (path.loss - exact.energy).square()
    assert_mean(heat.mean(0), exact.heat_capacity)
    assert path.final.dtype == torch.complex128


class LogRidge:
    """``1/2 sum (log s)^2``: at infinite depth H is a Gaussian symmetric matrix."""

    def value(self, x):
        return 0.5 * torch.linalg.svdvals(x).log().square().sum(-1)

    def gradient(self, x):
        raise AssertionError("samplers contract")

    def contract(self, left, right):
        u, s, vh = thin_svd(left, right.mH, left.shape[-1])
        slope = (s.log() / s).unsqueeze(-1)
        value = 0.5 * s.log().square().sum(-1)
        return value, u @ (slope * (vh @ right)), vh.mH @ (slope * (u.mH @ left))


@pytest.mark.parametrize(("shape", "rank"), [((3, 3), 3), ((4, 3), 2), ((2, 3), 1)])
def test_infinite_depth_is_a_gaussian_of_logarithms(shape, rank, generator):
    """``beta/kappa sum (log s)^2`` is chi^2 of the r(r+1)/2 entries; the spaces stand still."""
    beta, kappa = 1.7, 0.6
    start = start_at(shape, rank, math.inf, generator)
    many = dln.Collapsed(*(x.expand(300, *x.shape) for x in (start.L, start.R)), math.inf)
    path = dln.sample_gibbs(
        LogRidge(), many, beta=beta, kappa=kappa, entropy=False, draws=40, thin=2, burn_in=200,
        generator=generator,
    )  # fmt: skip
    assert 0.45 < path.stats["acceptance"] < 0.75
    squares = beta / kappa * path.singular_values.log().square().sum(-1)
    freedom = rank * (rank + 1) / 2
    assert_mean(squares.mean(0), freedom)
    assert stats.kstest(squares[-1], stats.chi2(freedom).cdf).pvalue > 1e-3
    u, v = start.point().u, start.point().vh
    x = path.final.matrix
    assert_close(u @ (u.mT @ x @ v.mT) @ v, x, ops=1000)


@pytest.mark.slow
def test_infinite_depth_agrees_with_langevin(generator):
    """With entropy and a loss that is no function of the singular values.

    Angles relax at rates of kappa/beta/2: that takes t = 30.
    """
    target = torch.tensor([[0.6, -0.2], [0.1, 0.3]], dtype=F64)

    class Tilted(LogRidge):
        def value(self, x):
            return super().value(x) + 0.5 * (x - target).square().sum((-2, -1))

        def contract(self, left, right):
            value, gr, gl = super().contract(left, right)
            g = left @ right.mT - target
            return value + 0.5 * g.square().sum((-2, -1)), gr + g @ right, gl + g.mT @ left

        def evaluate(self, x):
            eye = torch.eye(2, dtype=x.dtype).expand_as(x)
            value, gr, _ = self.contract(x, eye)
            return value, gr

    start = start_at((2, 2), 2, math.inf, generator, (1000,))
    options = {"beta": 2.3, "kappa": 0.7, "generator": generator}
    exact = dln.sample_gibbs(Tilted(), start, draws=1, burn_in=300, **options)
    walked = dln.langevin(
        Tilted(), start, t_end=30.0, dt=0.2, save_at=[30.0], method="splitting", **options
    )
    assert stats.ks_2samp(exact.loss[-1], walked.loss[-1]).pvalue > 1e-3
    for k in range(2):
        a, b = (path.singular_values[-1][:, k] for path in (exact, walked))
        assert stats.ks_2samp(a, b).pvalue > 1e-3


def test_burn_in_thinning_and_repetition(generator, tmp_path):
    loss, start = Ridge(3), start_at((3, 2), 2, 3, generator, (4,))
    options = {"beta": 1.0, "draws": 10, "thin": 2, "burn_in": 20}
    first, second = (
        dln.sample_gibbs(
            loss, start, generator=torch.Generator().manual_seed(3), store=store, **options
        )
        for store in (None, tmp_path / "chain.pt")
    )
    assert torch.equal(first.singular_values, second.singular_values)
    assert first.t.tolist() == list(range(22, 42, 2))
    assert isinstance(first.final, dln.Collapsed)
    assert first.stats["steps"] == 40
    fixed = dln.sample_gibbs(
        loss, start, dt=0.3, generator=generator, keep_points=True, **{**options, "burn_in": 0}
    )
    other = start_at((3, 2), 2, 3, generator, (4,))
    again = {"generator": generator, "store": tmp_path / "chain.pt", **options}
    for change in ({"start": other}, {"loss": dln.losses.Quadratic(torch.eye(3, 2, dtype=F64))},
                   {"widths": 4}):  # fmt: skip
        with pytest.raises(ValueError, match="store must belong to the same run"):
            dln.sample_gibbs(**{"loss": loss, "start": start, **again, **change})
    assert fixed.stats["dt"] == pytest.approx(0.3)
    assert_close(fixed.points[-1].singular_values(), fixed.singular_values[-1], ops=1000)
    single = dln.sample_gibbs(
        loss, start_at((3, 2), 2, 3, generator, dtype=torch.float32), generator=generator, **options
    )
    assert single.singular_values.shape == (10, 2)
    assert single.singular_values.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kappa": 0.0}, ValueError, "kappa must be positive"),
        ({"beta": -1.0}, ValueError, "beta must be positive"),
        ({"draws": 0}, ValueError, "draws must be at least 1"),
        ({"draws": 1.5}, TypeError, "draws must be an integer"),
        ({"thin": 0}, ValueError, "thin must be at least 1"),
        ({"burn_in": 0}, ValueError, "dt must be given where there is no burn_in"),
        ({"dt": 0.0}, ValueError, "dt must be positive"),
        ({"start": torch.eye(2)}, TypeError, "start must be a Collapsed"),
        ({"start": dln.EndToEnd.of(torch.zeros(2, 2), math.inf)}, ValueError, "positive singular"),
        ({"start": dln.EndToEnd.of(torch.zeros(2, 2), 3)}, ValueError, "positive singular values"),
        ({"generator": 0.5}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_bad_input(options, error, message, generator):
    good = {
        "loss": dln.losses.Quadratic(torch.eye(2)),
        "start": dln.EndToEnd.of(torch.eye(2), 3),
        "beta": 1.0,
        "draws": 2,
        "generator": generator,
    }
    with pytest.raises(error, match=message):
        dln.sample_gibbs(**{**good, **options})


def test_a_loss_that_is_not_finite_says_so(generator):
    loss = dln.losses.from_callable(lambda x: torch.log(x[0, 0]))
    start = dln.EndToEnd.of(-torch.eye(2), 3)
    with pytest.raises(ValueError, match="loss must be finite with a finite gradient at the start"):
        dln.sample_gibbs(loss, start, beta=1.0, draws=2, generator=generator)
