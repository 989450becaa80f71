from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dln_geometry import learning
from dln_geometry.testing import assert_close

F64 = torch.float64


def problem(generator, width):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 2)).double()
    x, y = (torch.randn(17, n, generator=generator, dtype=F64) for n in (5, 2))
    loss, params = learning.functionalize(net, nn.functional.mse_loss, (x, y))
    dense = torch.func.hessian(lambda v: loss(learning.unflatten(v, params)))
    return net, loss, params, (x, y), dense(learning.flatten(params))


@pytest.mark.parametrize("width", [4, 34], ids=["dense", "lanczos"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loader_with_unequal_batches_has_the_spectrum_of_all_data(width, reduction, generator):
    net, loss, params, (x, y), hessian = problem(generator, width)
    loader = DataLoader(TensorDataset(x, y), batch_size=9, shuffle=True)
    if reduction == "sum":
        loss, params = learning.functionalize(
            net, lambda out, t: nn.functional.mse_loss(out, t, reduction="sum"), (x, y)
        )
        hessian = hessian * y.numel()
    found = learning.hessian_spectrum(
        loss, params, loader, top=3, bottom=2, reduction=reduction, generator=0, steps=25, probes=4
    )
    values = torch.linalg.eigvalsh(hessian)
    assert torch.allclose(found.top, values[-3:].flip(0), rtol=1e-8, atol=0)
    assert torch.allclose(found.bottom, values[:2], rtol=1e-6, atol=1e-9 * float(values[-1]))
    assert float(found.weights.sum()) == pytest.approx(1.0)
    bound = 1e-9 * float(values.abs().sum()) + 4 * found.trace_error
    assert abs(found.trace - float(values.sum())) <= bound
    for value, vector in zip(found.top, found.vectors, strict=True):
        v = learning.flatten(vector)
        assert float((hessian @ v - value * v).norm()) < 1e-5 * float(value)
    # The second moment, too: |H|^2 / p.
    second = float((found.weights * found.nodes.square()).sum())
    assert second == pytest.approx(float(values.square().mean()), rel=1e-9 if width == 4 else 0.5)
    grid = torch.linspace(-1, 2, 4001, dtype=F64) * float(values[-1])
    assert float(torch.trapezoid(found.density(grid), grid)) == pytest.approx(1.0, abs=1e-6)


def test_quadrature_is_exact_where_the_space_is_exhausted(generator):
    """Three different eigenvalues: three steps know them, and random signs their shares."""
    levels = torch.tensor([1.0, 2.0, -3.0], dtype=F64).repeat_interleave(100)
    found = learning.hessian_spectrum(
        lambda p: (levels * p["q"].square()).sum() / 2,
        {"q": torch.ones(300, dtype=F64)},
        top=0,
        probes=2,
        generator=1,
    )
    assert_close(found.nodes.sort().values, torch.tensor([-3.0, -3, 1, 1, 2, 2]), ops=1e4)
    # Squares of signs are 1: shares and trace are exact for a diagonal matrix.
    assert_close(found.weights, torch.full((6,), 1 / 6, dtype=F64), ops=1e4)
    assert found.trace == pytest.approx(0.0, abs=1e-9)


def test_data_that_end_and_too_many_values_are_refused(generator):
    _, loss, params, batch, _ = problem(generator, 4)
    with pytest.raises(TypeError, match="many times"):
        learning.hessian_spectrum(loss, params, iter([batch]))
    with pytest.raises(ValueError, match="at least one batch"):
        learning.hessian_spectrum(loss, params, [])
    with pytest.raises(ValueError, match="top must be at most"):
        learning.hessian_spectrum(loss, params, top=1000)
    with pytest.raises(ValueError, match="reduction"):
        learning.hessian_spectrum(loss, params, reduction="none")


@pytest.mark.parametrize("count", [3, 300])
def test_batches_that_are_no_numbers_are_refused(count):
    def loss(params, batch):
        return (params["q"].square() * batch).sum()

    params = {"q": torch.ones(count, dtype=torch.float64)}
    data = [torch.tensor(1.0), torch.tensor(float("nan"))]
    for call in (
        lambda: learning.hessian_spectrum(loss, params, data),
        lambda: learning.sharpness(lambda p: loss(p, data[1]), params),
        lambda: learning.hessian_product(lambda p: loss(p, data[1]), params),
    ):
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity in that of 'q'"):
            call()
