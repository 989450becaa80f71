"""A field repeated by numpy is the field that torch evaluates, or torch evaluates it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dln_geometry.ode import (
    METHODS,
    BlockNorms,
    ExplicitStepper,
    RepeatedStepper,
    Tape,
    TapeError,
    integrate,
)
from dln_geometry.testing import assert_close

PLACES = torch.tensor([[0, 2], [1, 1]])


def products(t, y, out):
    """Write products of matrices, of batches and of entries, in all the ways of writing."""
    a, d = y[:, :9].view(-1, 3, 3), out[:, :9].view(-1, 3, 3)
    torch.neg(torch.baddbmm(a, a, a.mT, beta=0.5, alpha=-0.3), out=d)
    d.add_(a @ a, alpha=0.1).mul_(0.9).sub_(a.transpose(1, 2))
    sums = torch.zeros(len(y), 3, dtype=y.dtype)
    sums.add_(a.sum(-1)).addcmul_(a[:, 0], a[:, 1], value=-0.2)
    sums[:, PLACES[0]] = 0.5 * a[:, PLACES[0], PLACES[1]]
    torch.addcmul(sums, a[:, 2], a[:, :, 2], out=out[:, 9:])
    out[:, 9:].div_(1.0 + torch.linalg.vector_norm(a, dim=(1, 2)).unsqueeze(-1))
    return torch.cat((torch.stack((a.amax((1, 2)), a[:, 0, 0] * t), 1), a[:, 1, :2].clone()), 1)


def functions(t, y, out):
    """Write functions of entries, and choices among them."""
    s = y.square() + 0.1
    parts = [s.sqrt(), s.rsqrt(), s.log(), torch.expm1(-s), s.log1p(), torch.tanh(y), 1.0 - s**1.3]
    total = sum(torch.where(y > 0, x, -x) for x in parts)
    total = torch.maximum(total, y).clamp(-3.0, 3.0) + y.abs().clamp_min(0.2) * torch.sign(y)
    total = total.masked_fill((y >= 2.0) | ~torch.isfinite(y), 0.0) - torch.exp(-s).flip(-1)
    out.copy_(total.reciprocal().minimum(y))
    return torch.atleast_2d(torch.prod(s, -1)).mT


def decompositions(t, y, out):
    """Write the root of a matrix by its eigenvalues, and its polar factor."""
    a = y[:, :9].view(-1, 3, 3)
    c, q = torch.linalg.eigh(a @ a.mT)
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    out[:, :9] = ((q * c.unsqueeze(-2) ** 0.25) @ q.mT + u @ vh).flatten(1)
    out[:, 9:] = s
    return s


def by_a_number(t, y, out):
    """Take another way where the first entry grows past a half."""
    out.copy_(-y if bool(y[0, 0] < 0.5) else torch.cos(y))


def unknown(t, y, out):
    """Call what a tape does not know."""
    torch.special.erf(y, out=out)


def unseen(t, y, out):
    """Write behind the back of torch."""
    hidden = torch.empty_like(y)
    np.sin(y.numpy(), out=hidden.numpy())
    out.copy_(hidden)


FIELDS = (products, functions, decompositions, by_a_number, unknown, unseen)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_repeated_step_is_the_step(field, dtype, generator):
    for batch in (1, 4):
        y = torch.randn(batch, 12, generator=generator, dtype=dtype)
        given = METHODS["rk8"], field, y, BlockNorms([9, 3])
        plain, repeated = ExplicitStepper(*given), RepeatedStepper(*given)
        t, h = np.linspace(0.1, 0.3, batch), np.linspace(0.02, 0.05, batch)
        for _ in range(3):
            field(torch.zeros(batch, dtype=dtype), y, plain.f)
            repeated.f.copy_(plain.f)
            norms, again = plain.step(t, h, y), repeated.step(t, h, y)
            assert_close(repeated.y_new, plain.y_new, ops=1000)
            assert_close(repeated.f_new, plain.f_new, ops=1e4)
            scale = float(norms[0][:2].max())
            assert_close(again[0], norms[0], ops=1e4, scale=scale)
            if plain.obs_new is not None:
                assert_close(repeated.obs_new, plain.obs_new, ops=1e4)
            y = torch.randn(batch, 12, generator=generator, dtype=dtype)


def test_a_steady_run_counts_and_ends_as_the_other(generator):
    y0 = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    runs = [
        integrate(products, y0, t_end=0.4, steady=steady, stop={"low": (0, -9.0)})
        for steady in (False, True)
    ]
    assert_close(runs[1].y, runs[0].y, ops=1e4)
    assert runs[0].stats["evaluations"] == runs[1].stats["evaluations"]


def test_large_states_keep_their_calls_apart(generator):
    y0 = torch.randn(700, 12, generator=generator, dtype=torch.float64)
    given = METHODS["rk5"], products, y0, BlockNorms([12])
    plain, repeated = ExplicitStepper(*given), RepeatedStepper(*given)
    for stepper in (plain, repeated):
        products(torch.zeros(700, dtype=y0.dtype), y0, stepper.f)
        stepper.step(np.zeros(700), np.full(700, 0.02), y0)
    assert_close(repeated.y_new, plain.y_new, ops=1000)
    assert_close(repeated.f_new, plain.f_new, ops=1e4)


def test_a_tape_refuses_what_it_cannot_repeat():
    x, before = torch.ones(3), torch.ones(3)

    def change():
        before.add_(1.0)

    for function in (lambda: torch.special.erf(x), lambda: torch.equal(x, before), change):
        with pytest.raises(TapeError), Tape(x):
            function()


@pytest.mark.parametrize("field", [products, functions])
def test_calls_for_the_slope_leave_observables_out(field, generator):
    y, t = torch.randn(2, 12, generator=generator, dtype=torch.float64), torch.ones(2)
    out = torch.empty_like(y)
    with Tape(t, y) as tape:
        seen = field(t, y, out)
    calls = tape.calls_for(out)
    assert len(calls) < len(tape.calls)
    before = seen.clone()
    y.copy_(torch.randn(y.shape, generator=generator, dtype=y.dtype))
    for f, arguments in calls:
        f(*arguments)
    wanted = torch.empty_like(y)
    field(t, y, wanted)
    assert_close(out, wanted, ops=1000)
    assert torch.equal(seen, before)
    assert tape.reads(y)
    assert tape.reads(t) == (field is products)
