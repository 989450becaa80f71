from __future__ import annotations

import pytest
import torch

from dln_geometry.learning import closed_forms
from dln_geometry.testing import assert_close

F64 = torch.float64
TARGET = (1.5, 0.9, 0.4)


def rotation(d, generator):
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64))[0]


def edge(depth, share):
    """Return the learning rate that is this multiple of the edge of the sharpest mode."""
    return share * 2 / (depth * TARGET[0] ** (2 - 2 / depth))


def network(depth, widths, rho, frames):
    """Return layers with the singular values rho, shape (3,), in these orthogonal frames."""
    layers = []
    for p in range(depth):
        core = torch.zeros(widths[p + 1], widths[p], dtype=F64)
        core[:3, :3] = rho.diag()
        layers.append(frames[p + 1] @ core @ frames[p].mT)
    return layers


def descent(target, lr, like):
    """Return one step of gradient descent on all layers as a map of one vector."""
    sizes = [w.numel() for w in like]

    def loss(v):
        x = None
        for piece, w in zip(v.split(sizes), like, strict=True):
            layer = piece.reshape(w.shape)
            x = layer if x is None else layer @ x
        return (x - target).square().sum() / 2

    return lambda v: v - lr * torch.func.grad(loss)(v)


@pytest.mark.parametrize("share", [1.02, 1.15])
@pytest.mark.parametrize("widths", [(4, 3, 5), (4, 3, 3, 5), (3, 4, 3, 3, 4)], ids=len)
def test_two_steps_on_the_layers_return_with_the_multipliers(widths, share, generator):
    """The map of all layers in arbitrary frames, its Jacobian by automatic differentiation."""
    depth = len(widths) - 1
    phi, lr = torch.tensor(TARGET, dtype=F64), edge(depth, share)
    orbit = closed_forms.period_two_orbit(phi, lr, depth)
    frames = [rotation(d, generator) for d in widths]
    target = frames[-1][:, :3] @ phi.diag() @ frames[0][:, :3].mT
    low, high = (network(depth, widths, x, frames) for x in (orbit.low, orbit.high))
    step = descent(target, lr, low)
    a, b = (torch.cat([w.reshape(-1) for w in x]) for x in (low, high))
    assert_close(step(a), b, ops=1000)
    assert_close(step(b), a, ops=1000)
    jacobian = torch.func.jacrev(step)(b) @ torch.func.jacrev(step)(a)
    found = torch.linalg.eigvals(jacobian)
    for value, count in ((orbit.multiplier[0], 1), (orbit.gap_factor[0], depth - 1)):
        assert int(((found - value).abs() < 1e-9).sum()) >= count
    # Nothing grows: the orbit attracts up to the gauge of the layers.
    assert float(found.abs().max()) < 1 + 1e-9
    x = torch.linalg.svdvals(torch.linalg.multi_dot(high[::-1]))[:3]
    assert_close(x, orbit.end_to_end[1], ops=1000)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_gaps_decay_along_real_iterates_past_the_edge_alone(depth, generator):
    phi, lr = torch.tensor(TARGET, dtype=F64), edge(depth, 1.12)
    orbit = closed_forms.period_two_orbit(phi, lr, depth)
    noise = 1e-3 * torch.randn(depth, 3, generator=generator, dtype=F64)
    w = orbit.low * (1 + noise)
    gaps = []
    for n in range(81):
        if n in (40, 80):
            gaps.append((w.square() - w[0].square())[1:])
        error = w.prod(0) - phi
        w = w - lr * error * w.prod(0) / w
    measured = gaps[1] / gaps[0]
    expected = (orbit.gap_factor[0] ** 20).expand(depth - 1)
    assert torch.allclose(measured[:, 0], expected, rtol=1e-2, atol=0)
    assert torch.allclose(measured[:, 1:], torch.ones_like(measured[:, 1:]), rtol=1e-3, atol=0)
    assert float((w.prod(0)[0] - orbit.end_to_end[:, 0]).abs().min()) < 1e-4
    mean = (orbit.end_to_end - phi).square().sum(0) / 4
    assert_close(orbit.mean_loss, mean, ops=100)


def test_depth_two_is_closed_and_doubles_again_at_root_five():
    for u in (1.01, 5**0.5 - 1 - 1e-6, 5**0.5 - 1 + 1e-6):
        orbit = closed_forms.period_two_orbit(torch.tensor([2.0], dtype=F64), u / 2, 2)
        assert_close(orbit.low * orbit.high, torch.tensor([2 / u], dtype=F64), ops=1e4)
        total = torch.tensor([2 + 6 / u], dtype=F64)
        assert_close((orbit.low + orbit.high).square(), total, ops=1e4)
        assert float(orbit.multiplier) == pytest.approx(7 - 4 * u - 2 * u * u, abs=1e-9)
        assert float(orbit.gap_factor) == pytest.approx(3 - 2 * u, abs=1e-9)
        assert (float(orbit.multiplier) < -1) == (u > 5**0.5 - 1)


def test_small_zero_and_single_precision_targets_rest():
    phi = torch.tensor([[1.0, 0.0], [0.5, 3e-3]])
    orbit = closed_forms.period_two_orbit(phi, 0.4, 3)
    assert torch.equal(orbit.low, orbit.high)
    assert_close(orbit.end_to_end[0], phi, ops=100)
    assert torch.equal(orbit.gap_factor, torch.ones(2, 2))
    assert closed_forms.period_two_orbit(phi, 0.8, 3).low[0, 0] < 1
    with pytest.raises(ValueError, match="depth must be at least 2"):
        closed_forms.period_two_orbit(phi, 0.4, 1)
    with pytest.raises(ValueError, match="nonnegative"):
        closed_forms.period_two_orbit([-1.0], 0.4, 3)
