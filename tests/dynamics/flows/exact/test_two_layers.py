from __future__ import annotations

import pytest
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry.testing import assert_close
from tests.geometry.realified import C128, complex_normal, real_form

F64 = torch.float64


def integrated(start, y, times):
    """Integrate the layers; return X at the times."""
    (d, n), m = start[0].shape, len(y)

    def velocity(_, q):
        w1, w2 = torch.as_tensor(q).split([d * n, m * d])
        w1, w2 = w1.view(d, n), w2.view(m, d)
        off = y - w2 @ w1
        return torch.cat([(w2.mT @ off).flatten(), (off @ w1.mT).flatten()]).numpy()

    q0 = torch.cat([w.flatten() for w in start]).numpy()
    path = solve_ivp(velocity, (0, times[-1]), q0, "DOP853", times, rtol=1e-12, atol=1e-13)
    columns = [torch.as_tensor(c).split([d * n, m * d]) for c in path.y.T]
    return torch.stack([w2.view(m, d) @ w1.view(d, n) for w1, w2 in columns])


@pytest.mark.parametrize(
    ("widths", "lam"), [((3, 2, 4), 1.5), ((3, 3, 2), -0.8), ((2, 3, 3), 0.0), ((4, 2, 2), 60.0)]
)
def test_two_layers_follow_their_flow(widths, lam, generator):
    n, _, m = widths
    x = torch.randn(m, 2, generator=generator, dtype=F64) @ torch.randn(
        2, n, generator=generator, dtype=F64
    )
    y = torch.randn(m, n, generator=generator, dtype=F64)
    if lam == 0.0:
        x = x * 0.05
    start = dln.lambda_balanced(x, lam, widths)
    t = torch.tensor([0.7, 0.0, 2.5], dtype=F64)

    expected = integrated(start, y, [0.0, 0.7, 2.5])
    found = dln.exact.two_layers(start, y, t)
    # The tolerance of the integrator.
    assert_close(found[[1, 0, 2]], expected, ops=1e5 * (1 + lam), scale=1.0)


def orthogonal(n, generator):
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=F64))[0]


@pytest.mark.parametrize("kind", ["modes", "blocks"])
def test_units_that_never_meet_have_moments_of_their_own(kind, generator):
    """More hidden units than either side has, two equal singular values, a rank below full."""
    m, n, d = 4, 6, 7
    u, v, h = (orthogonal(k, generator) for k in (m, n, d))
    singular = torch.tensor([2.0, 2.0, 1.0, 0.0], dtype=F64)
    y = u @ singular.diag() @ v[:, :m].mT
    first, second = torch.zeros(d, n, dtype=F64), torch.zeros(m, d, dtype=F64)
    if kind == "modes":
        first[range(4), range(4)] = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=F64)
        second[range(4), range(4)] = torch.tensor([0.7, 0.45, 0.2, 0.3], dtype=F64)
        # A unit that the target never reaches.
        first[5, 5] = 0.8
    else:
        for at, lam in ((slice(0, 2), 0.7), (slice(2, 4), -1.1)):
            x = torch.randn(2, 2, generator=generator, dtype=F64)
            first[at, at], second[at, at] = dln.lambda_balanced(x, lam, (2, 2, 2))
    start, times = (h @ first @ v.mT, u @ second @ h.mT), [0.0, 0.5, 3.0]
    found = dln.exact.two_layers(start, y, times)
    assert_close(found, integrated(start, y, times), ops=1e5, scale=1.0)
    many = dln.exact.two_layers([torch.stack([w, w]) for w in start], y, [times])
    assert_close(many[0, :, 1], found)


def test_complex_layers_are_those_of_their_real_form(generator):
    """Layers, target and flow of twice the size; the moment is a multiple of the identity too."""
    x, y = complex_normal(generator, 2, 3), complex_normal(generator, 2, 3)
    start, t = dln.lambda_balanced(x, -0.7, (3, 3, 2)), [0.3, 1.4]
    found = dln.exact.two_layers(start, y, t)
    real = dln.exact.two_layers([real_form(w) for w in start], real_form(y), t)
    assert_close(real_form(found), real, ops=1e4)
    assert found.dtype == C128


def test_long_times_reach_the_target_or_its_best_approximation(generator):
    y = torch.randn(3, 3, generator=generator, dtype=F64)
    x = 0.1 * torch.randn(3, 3, generator=generator, dtype=F64)
    found = dln.exact.two_layers(dln.lambda_balanced(x, 2.0, (3, 3, 3)), y, 1e4)
    assert_close(found, y, ops=1e4)


def test_other_moments_and_depths_are_refused():
    turned = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    with pytest.raises(ValueError, match=r"multiple of the identity, .* units that meet by"):
        dln.exact.two_layers((torch.eye(2), turned), torch.eye(2), 1.0)
    with pytest.raises(ValueError, match="two layers"):
        dln.exact.two_layers((torch.eye(2),), torch.eye(2), 1.0)
    with pytest.raises(ValueError, match="at least 0"):
        dln.exact.two_layers((torch.eye(2), torch.eye(2)), torch.eye(2), -1.0)
