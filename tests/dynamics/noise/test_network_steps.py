from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry.dynamics.noise import Gaussians, NetworkSteps, Thermostat, network_start
from dln_geometry.testing import assert_close, assert_mean
from tests.dynamics.noise.routes import BETA, F64, KAPPA, Cliff


def _layers(widths, rank, generator, chains=None):
    spectrum = torch.tensor([1.4, 1.0, 0.5], dtype=F64)[:rank]
    layers = dln.random_balanced(
        widths, rank=rank, spectrum=spectrum, generator=generator, dtype=F64
    )
    return layers if chains is None else [w.expand(chains, *w.shape).clone() for w in layers]


def _step(layers, h, generator, kappa, loss=None):
    path = dln.langevin(
        loss, layers, beta=BETA, kappa=kappa, t_end=h, dt=h, generator=generator, upstairs=True
    )
    return path.final


@pytest.mark.parametrize(
    ("widths", "rank"), [((3, 3, 3, 3), 3), ((4, 3, 5, 3, 3), 2), ((3, 4, 2), 2)], ids=str
)
def test_noise_is_tangent_with_the_covariance_of_both_parts(widths, rank, generator):
    """``2h/beta`` times the vertical projector plus kappa times the horizontal one."""
    chains, h = 6000, 1e-8
    layers = _layers(widths, rank, generator)
    moved = _step([w.expand(chains, *w.shape) for w in layers], h, generator, KAPPA)
    sizes = [w.numel() for w in layers]
    basis = torch.eye(sum(sizes), dtype=F64).split(sizes, -1)
    basis = [b.reshape(-1, *w.shape) for b, w in zip(basis, layers, strict=True)]

    def projector(project):
        # Layer by layer, one direction of the ambient space at a time.
        rows = [project(layers, [b[k] for b in basis]) for k in range(sum(sizes))]
        return torch.stack([torch.cat([v.flatten() for v in row]) for row in rows])

    covariance = 2 / BETA * (projector(dln.vertical) + KAPPA * projector(dln.horizontal))
    v = torch.cat([(a - b).flatten(1) for a, b in zip(moved, layers, strict=True)], 1) / math.sqrt(
        h
    )
    samples = v.unsqueeze(-1) * v.unsqueeze(-2)
    error = (samples.mean(0) - covariance).abs()
    # What is normal to the manifold moves by h at most.
    assert bool((error < 5 * samples.std(0) / chains**0.5 + 100 * math.sqrt(h)).all())


class Mirrored(Gaussians):
    """Gaussians with their signs turned."""

    def draw(self, shape, like, scale):
        return -super().draw(shape, like, scale)


@pytest.mark.parametrize(("widths", "rank"), [((3, 3, 3), 3), ((4, 3, 5, 3), 2)], ids=str)
def test_mean_motion_is_normal_to_the_manifold(widths, rank, generator):
    """The mean of Brownian motion on a submanifold moves by half the mean curvature vector."""
    chains, h = 20000, 1e-4
    layers = _layers(widths, rank, generator)
    many = [w.expand(chains, *w.shape) for w in layers]
    point, frames, _ = network_start(many, None)
    drive = Thermostat(None, 2.0, 1.0, True)
    ends = []
    for kind in (Gaussians, Mirrored):
        stepper = NetworkSteps(drive, kind(torch.Generator().manual_seed(1)), len(layers))
        ends.append(stepper.point(stepper.advance((point.s, *frames), h, 0)))
    drift = [((a + b) / 2 - w) / h for a, b, w in zip(*ends, layers, strict=True)]
    mean = [d.mean(0) for d in drift]
    along = dln.tangent(layers, mean)
    error = math.sqrt(sum(float(d.var(0).sum()) for d in drift) / chains)
    assert math.sqrt(sum(float(a.square().sum()) for a in along)) < 2 * error + 10 * math.sqrt(h)
    # A drift that is wrong would be of the size of that of X.
    point = dln.Collapsed.of(layers).point()
    assert 2 * error + 10 * math.sqrt(h) < 0.3 * float(dln.entropy_gradient(point).norm())


@pytest.mark.parametrize(("widths", "rank"), [((3, 3, 3, 3), 3), ((4, 3, 5, 3, 3), 2)], ids=str)
def test_layers_stay_balanced_and_of_their_rank(widths, rank, generator):
    layers = _layers(widths, rank, generator, chains=5)
    loss = dln.losses.Quadratic(torch.randn(widths[-1], widths[0], generator=generator, dtype=F64))
    path = dln.langevin(
        loss, layers, beta=BETA, kappa=KAPPA, t_end=0.5, dt=0.02, generator=generator, upstairs=True
    )
    assert bool(dln.is_balanced(path.final, rtol=1e-10).all())
    assert [w.shape for w in path.final] == [w.shape for w in layers]
    s = torch.linalg.svdvals(dln.end_to_end(path.final))
    assert_close(s[..., :rank], path.singular_values[-1], ops=1000)
    assert path.loss.shape == (26, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [1.0, KAPPA])
@pytest.mark.parametrize(("widths", "rank"), [((3, 3, 3, 3), 3), ((4, 3, 4, 3), 2)], ids=str)
def test_products_have_the_law_downstairs(widths, rank, kappa, generator):
    chains, options = (
        2500,
        {"beta": BETA, "kappa": kappa, "t_end": 0.3, "dt": 0.01, "save_at": [0.3]},
    )
    loss = dln.losses.Quadratic(torch.randn(widths[-1], widths[0], generator=generator, dtype=F64))
    layers = _layers(widths, rank, generator, chains)
    up = dln.langevin(loss, layers, generator=generator, upstairs=True, **options)
    down = dln.langevin(
        loss, dln.Collapsed.of(layers), generator=generator, widths=widths, **options
    )
    for a, b in (
        (up.singular_values[-1], down.singular_values[-1]),
        (up.loss[-1:].T, down.loss[-1:].T),
    ):
        for k in range(a.shape[-1]):
            assert stats.ks_2samp(a[:, k], b[:, k]).pvalue > 1e-3


@pytest.mark.slow
def test_projected_noise_is_isotropic_noise_and_a_drift(generator):
    """Noise a across, b along the orbits: isotropic a and ``-(a^2 - b^2) grad log vol``."""
    chains, widths = 2500, (3, 3, 3, 3)
    layers = _layers(widths, 3, generator, chains)
    loss = dln.losses.Quadratic(torch.randn(3, 3, generator=generator, dtype=F64))
    options = {"t_end": 0.3, "dt": 0.01, "save_at": [0.3], "generator": generator, "upstairs": True}
    projected = dln.langevin(loss, layers, beta=BETA, kappa=KAPPA, **options)
    # Isotropic noise of beta/kappa brings kappa/beta grad S: the rest comes with the loss.
    energy = dln.FreeEnergy(loss, BETA / (1 - KAPPA), 3, (3, 3))
    isotropic = dln.langevin(energy, layers, beta=BETA / KAPPA, kappa=1.0, **options)
    for k in range(3):
        a, b = (path.singular_values[-1][:, k] for path in (projected, isotropic))
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.slow
def test_gauge_noise_alone_moves_products_along_the_entropy(generator):
    """Random upstairs, deterministic in the limit downstairs: ``kappa = 0``."""
    chains, t = 300, 0.3
    layers = _layers((3, 3, 3, 3), 3, generator, chains)
    loss = dln.losses.Quadratic(torch.zeros(3, 3, dtype=F64))
    options = {"beta": BETA, "kappa": 0.0, "t_end": t, "save_at": [t]}
    exact = dln.langevin(loss, dln.Collapsed.of([w[0] for w in layers]), **options).singular_values[
        -1
    ]
    spread = []
    for dt in (0.02, 0.01):
        path = dln.langevin(loss, layers, dt=dt, generator=generator, upstairs=True, **options)
        s = path.singular_values[-1]
        assert float((s.mean(0) - exact).abs().max()) < 4 * float(s.std(0).max()) / chains**0.5 + dt
        spread.append(float(s.std(0).mean()))
    # What is random about X at step h has the variance h.
    assert 1.2 < spread[0] / spread[1] < 1.7


def test_without_entropy_there_is_no_noise_along_the_orbits(generator):
    chains, h = 4000, 1e-8
    layers = _layers((3, 3, 3), 3, generator)
    path = dln.langevin(
        None,
        [w.expand(chains, 3, 3) for w in layers],
        beta=BETA,
        entropy=False,
        t_end=h,
        dt=h,
        generator=generator,
        upstairs=True,
    )
    v = [(a - b) / math.sqrt(h) for a, b in zip(path.final, layers, strict=True)]
    along = torch.stack([torch.cat(dln.vertical(layers, [a[k] for a in v])) for k in range(50)])
    assert float(along.abs().max()) < 100 * math.sqrt(h)
    assert_mean(sum(a.square().sum((-2, -1)) for a in v), 2 / BETA * 9)


def test_points_start_in_the_canonical_gauge(generator):
    p = dln.Collapsed.random((4, 3), 2, 3, generator=generator, dtype=F64)
    path = dln.brownian_motion(
        p,
        t_end=0.1,
        dt=0.02,
        generator=generator,
        upstairs=True,
        widths=3,
        chains=4,
        keep_points=True,
    )
    assert_close(dln.end_to_end(path.points[0]), p.matrix.expand(4, -1, -1))
    assert [tuple(w.shape) for w in path.final] == [(4, 3, 3), (4, 3, 3), (4, 4, 3)]


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ([torch.eye(2), 2 * torch.eye(2)], {}, "start must be balanced, got moments"),
        ([torch.eye(2)], {}, "start must have at least two layers"),
        ([torch.eye(2), torch.eye(2)], {"widths": 2}, "widths must be those of the factors"),
        (dln.EndToEnd.of(torch.eye(2), 2.7), {}, "depth must be a finite integer"),
        (dln.EndToEnd.of(torch.eye(2), 3, normalized=True), {}, "metric without 1/N upstairs"),
        ([torch.eye(2), torch.eye(2)], {"increments": torch.zeros(2, 2, 2)}, "without upstairs"),
    ],
)
def test_bad_input(start, options, message, generator):
    with pytest.raises(ValueError, match=message):
        dln.brownian_motion(start, t_end=0.1, dt=0.1, generator=generator, upstairs=True, **options)


def test_a_step_that_is_too_large_warns_upstairs_too(generator):
    loss = dln.losses.Quadratic(100 * torch.eye(3, dtype=F64))
    layers = _layers((3, 3, 3, 3), 3, generator)
    with pytest.warns(UserWarning, match="dt = 0.5 is too large .* take a smaller dt"):
        dln.langevin(loss, layers, beta=9.0, t_end=1.0, dt=0.5, generator=generator, upstairs=True)


def test_the_chains_that_diverge_upstairs_are_named(generator):
    start = [torch.eye(2, dtype=F64).expand(3, 2, 2)] * 3
    with pytest.raises(dln.FlowError, match="in sample 1 of 3") as caught:
        dln.langevin(
            Cliff(1), start, beta=9.0, t_end=1.0, dt=0.1, generator=generator, upstairs=True
        )
    assert caught.value.trajectory.status == ["unfinished", "failed", "unfinished"]
