"""Where the Gibbs measure is infinite: criteria against integrals of the density."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import dln_geometry as dln
from dln_geometry.dynamics import losses
from dln_geometry.dynamics.sampling import falloff

F64 = torch.float64


def told(loss, depth, generator, shape=(2, 2), **options):
    """Tell whether `sample_gibbs` warns."""
    start = dln.Collapsed.random(shape, None, depth, generator=generator, dtype=F64)
    options = {"beta": 2.0, "draws": 2, "burn_in": 2, "generator": generator} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dln.sample_gibbs(loss, start, **options)
    return any("measure is infinite" in str(w.message) for w in caught)


@pytest.mark.parametrize("r", [2, 3])
def test_tail_towards_zero_at_infinite_depth(r, generator):
    """The volume in ``u_r`` with the others fixed: its power of T from the kernel itself."""
    loss, bound = losses.Quadratic(torch.eye(r, dtype=F64)), (r - 1) / (2 * r)
    for kappa in (0.8 * bound, 1.2 * bound, 1.0):
        nu, sizes = 0.5 / kappa, []
        for far in (-60.0, -120.0):
            u = torch.tensor([*(0.7 * k for k in range(r - 1)), far], dtype=F64).flip(0)
            log_a = dln.log_depth_kernel(u.flip(0).exp(), math.inf)
            i, j = torch.triu_indices(r, r, 1)
            gaps = (u[:, None] - u).abs()[i, j].log()
            sizes.append(float((gaps + nu * log_a[i, j]).sum()))
        power = (sizes[1] - sizes[0]) / math.log(2.0)
        infinite = power >= -1.0
        assert infinite == (kappa > bound)
        assert told(loss, math.inf, generator, (r, r), kappa=kappa) == infinite
    assert told(loss, math.inf, generator, (r, r), kappa=0.5 * bound, entropy=False)


def test_losses_that_confine_logarithms_are_not_told(generator):
    steep = losses.from_callable(lambda x: 0.5 * torch.linalg.svdvals(x).log().square().sum(-1))
    assert not told(steep, math.inf, generator)
    assert not told(losses.Quadratic(torch.eye(2, dtype=F64)), 3, generator)


@pytest.mark.parametrize(
    ("depth", "kappa", "entropy"),
    [
        (3, 1.0, True),
        (4, 1.0, True),
        (6, 0.5, True),
        (2, 1.0, False),
        (3, 1.0, False),
        (9, 0.4, True),
    ],
)
def test_completion_of_two_by_two(depth, kappa, entropy, generator):
    """Known diagonal: finite where ``(1-1/N)(4-1/kappa) > 2``."""
    known = losses.Completion([0, 1], [0, 1], [1.0, 0.85], (2, 2))
    infinite = (1 - 1 / depth) * (4 - (1 / kappa if entropy else 0.0)) <= 2
    assert told(known, depth, generator, kappa=kappa, entropy=entropy) == infinite


def test_losses_that_do_not_grow(generator):
    nothing = losses.from_callable(lambda x: 0.0 * x.sum((-2, -1)))
    assert told(nothing, 3, generator)
    assert told(losses.from_callable(lambda x: x.square().sum((-2, -1)).tanh()), 3, generator)


def test_the_power_of_the_falloff_is_that_of_the_volume(generator):
    """``dvol_g / dX`` and the orbit volume at large singular values, from the geometry."""
    for depth, shape, k in ((3, (3, 3), 1), (3, (3, 3), 2), (2.5, (4, 3), 3), (5, (4, 2), 1)):
        nu, values = 0.3, []
        for t in (1e10, 1e12):
            p = dln.EndToEnd.of(torch.randn(shape, generator=generator, dtype=F64), depth)
            spread = torch.linspace(2.0, 1.0, p.rank, dtype=F64)
            spread[:k] *= t
            p = p.replace(s=spread)
            volume = dln.log_volume_density(p) + 2 * nu * dln.entropy(p)
            values.append(float(volume))
        slope = -(values[1] - values[0]) / math.log(1e2)
        assert slope == pytest.approx(falloff(p.depth, nu, tuple(sorted(shape)), k), abs=1e-3)
