"""Networks put together at random, with example inputs: whatever is claimed must hold."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from dln_geometry.learning import symmetries_of, symmetry_coverage
from tests.learning.architecture.networks import models

F64 = torch.float64
WIDTH = 4


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 6), nn.Linear(3, WIDTH)
        self.gate = gate

    def forward(self, x):
        a, b = self.first(x).chunk(2, -1)
        return self.second(self.gate(a) * b)


class Skip(nn.Module):
    def __init__(self, norm, inner, *, after):
        super().__init__()
        self.norm, self.inner, self.after = norm, inner, after

    def forward(self, x):
        return self.norm(x + self.inner(x)) if self.after else x + self.inner(self.norm(x))


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


class Mixed(nn.Module):
    """A convolution over the sequence, with one filter for each channel or for groups."""

    def __init__(self, groups):
        super().__init__()
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.mix(x.mT).mT


class Joined(nn.Module):
    def __init__(self, unit):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 2)
        self.out, self.unit = nn.Linear(5, WIDTH), unit

    def forward(self, x):
        return self.out(self.unit(torch.cat([self.one(x), self.two(x)], -1)))


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        return x * self.gain


class Network(nn.Module):
    """Tokens or vectors, random layers, and a head, which may be the embedding."""

    def __init__(self, rng):
        super().__init__()
        self.embed = nn.Embedding(7, WIDTH)
        self.place = nn.Parameter(torch.randn(5, WIDTH)) if rng.random() < 0.5 else None
        body = [layer(rng) for _ in range(rng.integers(1, 4))]
        if rng.random() < 0.3:
            body.append(body[0])
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(WIDTH, 7, bias=rng.random() < 0.5)
        if rng.random() < 0.3:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x if self.place is None else x + self.place
        return self.head(self.body(x))


def chosen(rng, options):
    return options[rng.integers(len(options))]()


def norm(rng):
    return chosen(
        rng,
        [
            lambda: models.LayerNorm(WIDTH),
            lambda: models.LayerNorm(WIDTH, bias=False),
            lambda: models.RMSNorm(WIDTH),
            nn.Identity,
        ],
    )


def unit(rng):
    units = [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity, nn.LeakyReLU, nn.Sigmoid]
    return chosen(rng, units)


def layer(rng, *, inside=False):
    bias = rng.random() < 0.6
    options = [
        lambda: nn.Linear(WIDTH, WIDTH, bias=bias),
        lambda: nn.Sequential(nn.Linear(WIDTH, 5, bias=bias), unit(rng), nn.Linear(5, WIDTH)),
        lambda: Gated(chosen(rng, [nn.SiLU, nn.Sigmoid, nn.Identity, nn.ReLU])),
        lambda: models.SeparateAttention(WIDTH, 2, fused=rng.random() < 0.5),
        lambda: models.FusedAttention(WIDTH, 2, bias=bias),
        lambda: models.RotaryAttention(WIDTH, 2, 1),
        lambda: Recurrent(chosen(rng, [lambda: nn.GRU, lambda: nn.LSTM, lambda: nn.RNN])),
        lambda: Mixed(chosen(rng, [lambda: 1, lambda: 2, lambda: WIDTH])),
        lambda: Joined(unit(rng)),
        Gain,
    ]
    if not inside:
        skip = lambda: Skip(norm(rng), layer(rng, inside=True), after=rng.random() < 0.5)  # noqa: E731
        options += [skip] * 6 + [lambda: norm(rng), lambda: unit(rng)]
    return chosen(rng, options)


def check_claims(count, rng, generator):
    claims = 0
    for _ in range(count):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(int(rng.integers(2**31)))
            net = Network(rng).double()
        tokens = torch.randint(7, (6, 5), generator=generator)
        # A row of the embedding that no token reads would be free.
        tokens.view(-1)[:7] = torch.arange(7)
        groups = symmetries_of(net, tokens)
        params = {
            n: p.detach() + 0.3 * torch.randn(p.shape, generator=generator, dtype=F64)
            for n, p in net.named_parameters()
        }
        other = torch.randint(7, (9, 5), generator=generator)

        def outputs(at, net=net, other=other):
            with torch.no_grad():
                return functional_call(net, at, (other,))

        base = outputs(params)
        for group in groups:
            element = group.random_element(params, generator)
            if group.kind != "permutation":
                element = (
                    tuple(0.3 * a for a in element) if isinstance(element, tuple) else 0.3 * element
                )
            change = outputs(group.act(params, element)) - base
            # Gains near 0 lose some digits; what is no symmetry answers at order one.
            assert float(change.norm()) < 1e-7 * float(base.norm()), (net, group)
            claims += 1
    return claims


# Recurrent layers and tied weights are not traced.
@pytest.mark.filterwarnings("ignore:not everything could be traced", "ignore:symmetries that")
def test_claims_about_random_networks_hold(rng, generator):
    assert check_claims(6, rng, generator) > 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not everything could be traced", "ignore:symmetries that")
def test_claims_about_many_random_networks_hold(rng, generator):
    count = int(os.environ.get("DLN_ARCHITECTURES", "10"))
    assert check_claims(count, rng, generator) > 2 * count


@pytest.mark.filterwarnings("ignore:not everything could be traced")
def test_a_failure_elsewhere_is_told():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3, dtype=F64))

        def forward(self, x):
            if bool((self.weight != 1).any()):
                raise RuntimeError("weights must be 1")
            return functional.relu(x @ self.weight)

    report = symmetry_coverage(Picky(), torch.randn(4, 3, dtype=F64, generator=torch.Generator()))
    assert report.true is None
    assert "weights must be 1" in report.reason
    assert "weights must be 1" in str(report)


def test_what_is_too_large_for_a_rank_is_probed_and_told(generator):
    net = nn.Sequential(nn.Linear(200, 120), nn.ReLU(), nn.Linear(120, 2)).double()
    report = symmetry_coverage(net, torch.randn(9, 200, dtype=F64, generator=generator))
    assert "24362 parameters are too many for the rank" in report.reason
    # One rescaling for each hidden unit.
    assert report.found == 120
    assert report.bounds[0] == 120 < report.bounds[1]
