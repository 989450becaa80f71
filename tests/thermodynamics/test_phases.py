"""Phase diagrams against closed thresholds."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.thermodynamics import partition_function, phase_diagram


def half_square(s):
    return 0.5 * s.square().sum(-1)


def test_the_rank_falls_at_the_closed_threshold():
    depths = [2, 3, 3.5, 5]
    table = phase_diagram(sizes=[3, 6], depths=depths, betas=1.3, integrals=False).squeeze("beta")
    for d in (3, 6):
        for n in depths:
            falls = (n - 1) * d / 2 * math.log(d / (d - 1)) > math.log(n)
            assert int(table["rank"].sel(size=d, depth=n)) == d - falls


def test_clusters_occur():
    table = phase_diagram(sizes=6, depths=6, betas=1.0, integrals=False)
    assert table["clusters"].item() == 3


def test_equal_values_are_unstable_beyond_their_threshold(generator):
    """``N > 5 - 6/d`` under the ridge, by second derivatives of the free energy."""
    d, beta = 4, 1.7
    for depth, stable in ((3.4, True), (3.6, False)):
        lam = ((d - 1) * (1 - 1 / depth) / (2 * beta)) ** 0.5

        def free_energy(x, depth=depth):
            point = dln.EndToEnd(torch.eye(d).double(), x**depth, torch.eye(d).double(), depth)
            return 0.5 * depth * x.square().sum() - dln.entropy(point) / beta

        hessian = torch.autograd.functional.hessian(
            free_energy, torch.full((d,), lam, dtype=torch.float64)
        )
        values = torch.linalg.eigvalsh(hessian)
        assert bool(values[-1] > 0)
        assert bool(values[0] > 0) == stable


def test_entropic_equilibrium_of_the_quadratic_loss():
    """``s^2 = (d-1)(N-1)/(2 beta N)``."""
    table = phase_diagram(half_square, sizes=4, depths=2.5, betas=[0.6, 1.7], integrals=False)
    largest = table["largest"].squeeze()
    for beta in (0.6, 1.7):
        exact = 3 * 1.5 / (2 * beta * 2.5)
        assert largest.sel(beta=beta).item() ** 2 == pytest.approx(exact, rel=1e-6)
    assert float(table["spread"].max()) < 1e-4


def test_integrals_are_those_of_the_partition_function():
    table = phase_diagram(half_square, sizes=2, depths=[2, 3], betas=[0.7, 2.0], kappa=0.8)
    assert dict(table.sizes) == {"size": 1, "depth": 2, "beta": 2}
    found = partition_function(half_square, (2, 2), 3, beta=2.0, kappa=0.8)
    for name in ("log_z", "energy", "heat_capacity", "entropy"):
        assert float(table[name].sel(size=2, depth=3, beta=2.0)) == getattr(found, name)


def test_errors_of_the_phase_diagram():
    axes = {"sizes": 2, "depths": 2, "betas": 1.0}
    with pytest.raises(ValueError, match="loss must be a function of the singular values"):
        phase_diagram(dln.losses.Quadratic(torch.ones(2, 2)), **axes)
    with pytest.raises(ValueError, match="depths must be finite"):
        phase_diagram(**{**axes, "depths": math.inf})
    with pytest.raises(ValueError, match="betas must hold"):
        phase_diagram(**{**axes, "betas": []})
