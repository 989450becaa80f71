from __future__ import annotations

import math

import pytest
import torch
from scipy import optimize
from torch.func import grad, hessian

import dln_geometry as dln
from dln_geometry.learning import flatten, unflatten
from dln_geometry.learning.closed_forms import (
    branch_end,
    decayed_singular_values,
    global_switch,
)
from dln_geometry.learning.motion import (
    hessian_product,
)
from tests.learning.closed_forms.routes import (
    F64,
    as_params,
    upstairs,
)


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_decayed_network_is_stationary_at_the_closed_form(depth, generator):
    """The general machinery on the same rectangular network: its gradient vanishes there."""
    widths = (4, *(3 + p % 2 for p in range(depth - 1)), 3)
    phi = torch.tensor([2.0, 1.1, 0.9], dtype=F64)
    gamma = 0.8 * float(branch_end(phi, depth)[2])
    target = dln.Collapsed.random((3, 4), 3, 2, spectrum=phi, generator=generator, dtype=F64).matrix
    u, _, vh = torch.linalg.svd(target, full_matrices=False)
    s = decayed_singular_values(phi, gamma, depth)
    point = dln.EndToEnd.of(u @ torch.diag(s) @ vh, depth)
    layers = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    total = upstairs(lambda x: 0.5 * (x - target).square().sum(), widths, gamma)
    params = as_params(layers)
    assert flatten(grad(total)(params)).abs().max() < 1e-13
    h = hessian(lambda x: total(unflatten(x, params)))(flatten(params))
    # A minimum, degenerate along the orbit of the hidden rotations alone.
    values = torch.linalg.eigvalsh(h)
    orbit = sum(d * 3 - 6 for d in widths[1:-1])
    assert values[0] > -1e-12
    assert (values < 1e-9).sum() == orbit


def radial(depth, s, phi, generator):
    """A network at one learned mode: parameters, and the unit direction that scales the mode."""
    widths = (3, *(2 + p % 2 for p in range(depth - 1)), 2)
    u, v = (torch.randn(d, generator=generator, dtype=F64) for d in (2, 3))
    outer = torch.outer(u / u.norm(), v / v.norm())
    point = dln.EndToEnd.of(s * outer, depth, rank=1)
    layers = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    along = {name: w / w.norm() / math.sqrt(depth) for name, w in as_params(layers).items()}
    return widths, as_params(layers), along, lambda x: 0.5 * (x - phi * outer).square().sum()


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_the_learned_branch_ends_where_the_hessian_says(depth, generator):
    """At a fold the square of the vanishing eigenvalue is linear in gamma: its root is the end."""
    phi = 1.7
    end = float(branch_end(phi, depth))
    gammas, squares = [], []
    for distance in (1e-6, 2e-6):
        gamma = end * (1 - distance)
        s = decayed_singular_values(torch.tensor(phi, dtype=F64), gamma, depth)
        widths, params, along, loss = radial(depth, s, phi, generator)
        total = upstairs(loss, widths, gamma)
        assert flatten(grad(total)(params)).abs().max() < 1e-8
        image = hessian_product(total, params)(along)
        curvature = float(flatten(image) @ flatten(along))
        assert (flatten(image) - curvature * flatten(along)).norm() < 1e-8
        gammas.append(gamma)
        squares.append(curvature**2)
    slope = (squares[1] - squares[0]) / (gammas[1] - gammas[0])
    root = gammas[0] - squares[0] / slope
    assert abs(root / end - 1) < 1e-6
    assert float(decayed_singular_values(phi, end * (1 + 1e-5), depth)) == 0


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_the_global_switch_is_where_the_losses_cross(depth, generator):
    phi = 1.7

    def difference(gamma):
        s = decayed_singular_values(torch.tensor(phi, dtype=F64), gamma, depth)
        widths, params, _, loss = radial(depth, s, phi, torch.Generator().manual_seed(1))
        return float(upstairs(loss, widths, gamma)(params)) - phi**2 / 2

    end = float(branch_end(torch.tensor(phi, dtype=F64), depth))
    root = optimize.brentq(difference, 1e-3 * end, end * (1 - 1e-9), xtol=1e-12)
    assert abs(root / float(global_switch(torch.tensor(phi, dtype=F64), depth)) - 1) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("branch", ["learned", "global"])
@pytest.mark.parametrize("depth", [1, 1.4, 2, 2.7, 5, math.inf])
def test_decayed_singular_values_minimise_at_every_depth(depth, branch, dtype):
    """Against a scan of the loss; at infinite depth, up to a divergent constant."""
    phi, gamma = torch.tensor([3.0, 1.0, 0.2, 0.0], dtype=dtype), 0.3
    s = decayed_singular_values(phi, gamma, depth, branch=branch)
    assert s.dtype == dtype
    grid = torch.linspace(1e-6, 3.5, 400_001, dtype=F64)
    for target, value in zip(phi.tolist(), s.tolist(), strict=True):
        if depth == math.inf:
            energy = 0.5 * (grid - target) ** 2 + gamma * grid.log()
        else:
            energy = 0.5 * (grid - target) ** 2 + depth * gamma / 2 * grid ** (2 / depth)
        inner = (energy[1:-1] < energy[:-2]) & (energy[1:-1] <= energy[2:])
        minima = grid[1:-1][inner]
        learned = float(minima[-1]) if len(minima) else 0.0
        if branch == "global" and learned:
            at = float(energy[1:-1][inner][-1])
            learned = learned if at < 0.5 * target**2 and depth != math.inf else 0.0
        assert abs(value - learned) < 2e-5


@pytest.mark.parametrize("depth", [2, 2.7, 5])
def test_thresholds_are_where_the_values_vanish(depth):
    phi = torch.tensor([3.0, 0.2], dtype=F64)
    for branch, threshold in (("learned", branch_end), ("global", global_switch)):
        for k, gamma in enumerate(threshold(phi, depth).tolist()):
            below, above = (
                decayed_singular_values(phi, gamma * (1 + e), depth, branch=branch)[k]
                for e in (-1e-9, 1e-9)
            )
            assert below > 0
            assert above == 0
    near_two = global_switch(phi, 2 + 1e-9), branch_end(phi, 2 + 1e-9)
    assert all(torch.allclose(x, phi, rtol=1e-7) for x in near_two)


def test_singular_values_without_decay_are_the_target():
    phi = torch.tensor([3.0, 0.0])
    for depth in (1, 2, 3, math.inf):
        assert torch.equal(decayed_singular_values(phi, 0.0, depth), phi)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g, v: branch_end([-1.0], 3), ValueError, "nonnegative"),
        (lambda g, v: global_switch([1.0], 0.5), ValueError, "depth must be"),
        (lambda g, v: decayed_singular_values([1.0], -1.0, 3), ValueError, "non-negative"),
        (
            lambda g, v: decayed_singular_values([1.0], 1.0, 3, branch="best"),
            ValueError,
            "branch must be",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    g, v = [torch.eye(2)], [torch.ones(2, 3), torch.ones(4, 2)]
    with pytest.raises(error, match=message):
        call(g, v)
