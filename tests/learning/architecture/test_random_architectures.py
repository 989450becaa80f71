"""Networks put together at random: whatever is claimed, without an example, must hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from dln_geometry.learning import ChargeMonitor, symmetries_of

F64 = torch.float64
EPS = 1e-15


class Skip(nn.Module):
    """A block and its input, joined in one of several ways."""

    def __init__(self, block, how):
        super().__init__()
        self.block, self.how = block, how

    def forward(self, x):
        y = self.block(x)
        if self.how == "add":
            return x + y
        if self.how == "added twice":
            return y + x + x
        if self.how == "rectified":
            return torch.relu(x + y)
        return x * y if self.how == "product" else x - y


def chosen(rng, options):
    return options[rng.integers(len(options))]


def skip(rng, layer, norm, width):
    block = [layer(width, width)]
    if rng.random() < 0.5:
        block += [nn.ReLU(), layer(width, width)]
    if rng.random() < 0.3:
        block.insert(0, norm(width))
    if rng.random() < 0.3:
        block.append(nn.ReLU())
    hows = ["add", "add", "added twice", "rectified", "product", "difference"]
    return Skip(nn.Sequential(*block), chosen(rng, hows))


def between(rng, width, norm, others):
    return chosen(
        rng,
        [
            nn.ReLU(),
            nn.ReLU(inplace=True),
            nn.LeakyReLU(0.2),
            nn.PReLU(width),
            nn.Tanh(),
            nn.Hardtanh(),
            nn.GELU(),
            nn.Softmax(1),
            nn.Identity(),
            nn.GroupNorm(2, width, eps=EPS),
            norm(width),
            norm(width).eval(),
            *others,
        ],
    )


def matrices(rng):
    norms = [lambda n: nn.BatchNorm1d(n, eps=EPS), lambda n: nn.LayerNorm(n, eps=EPS)]
    norms.append(lambda n: nn.RMSNorm(n, eps=EPS))
    return nn.Linear, norms, [], [], (6,)


def images(rng):
    def layer(m, n):
        mode = chosen(rng, ["zeros", "circular"])
        return nn.Conv2d(m, n, 3, padding=1, padding_mode=mode, bias=rng.random() < 0.7)

    norms = [lambda n: nn.BatchNorm2d(n, eps=EPS), lambda n: nn.InstanceNorm2d(n, eps=EPS)]
    pools = [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(5), nn.MaxPool2d(5)]
    grouped = [nn.Conv2d(4, 4, 3, padding=1, groups=g) for g in (2, 4)]
    softmax = nn.Sequential(grouped[0], nn.Softmax(1))
    return layer, norms, [*grouped, softmax], [chosen(rng, pools), nn.Flatten()], (3, 5, 5)


def random_network(kind, rng, generator):
    layer, norms, others, end, shape = kind(rng)
    width = 4
    body = [layer(shape[0], width)]
    for _ in range(rng.integers(1, 6)):
        which, norm = rng.random(), chosen(rng, norms)
        if which < 0.3:
            body.append(layer(width, 4))
            width = 4
        elif which < 0.7:
            body.append(between(rng, width, norm, others))
        else:
            body.append(skip(rng, layer, norm, width))
    net = nn.Sequential(*body, *end, nn.Linear(width, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) / 2)
    return net, torch.randn((7, *shape), generator=generator, dtype=F64)


@pytest.mark.parametrize("kind", [matrices, images])
def test_claims_about_random_networks_hold(kind, rng, generator):
    claims = 0
    for _ in range(60):
        with torch.random.fork_rng():
            net, x = random_network(kind, rng, generator)
        params = {name: p.detach() for name, p in net.named_parameters()}

        def outputs(at, net=net, x=x):
            # Running statistics would move along.
            buffers = {name: b.clone() for name, b in net.named_buffers()}
            with torch.no_grad():
                return functional_call(net, (at, buffers), (x,)).log_softmax(-1)

        base = outputs(params)
        for group in symmetries_of(net, loss="cross_entropy"):
            moved = outputs(group.act(params, group.random_element(params, generator)))
            # Epsilons and gauges leave some; what is no symmetry answers at order one.
            assert float((moved - base).norm()) < 1e-6 * (1 + float(base.norm())), (net, group)
            claims += 1
    assert claims > 100


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}])
def test_laws_of_random_networks_are_exact(momentum, rng, generator):
    for _ in range(12):
        with torch.random.fork_rng():
            net, x = random_network(matrices, rng, generator)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.003, weight_decay=0.02, **momentum)
        monitor = ChargeMonitor(net, optimizer, loss="cross_entropy", every=5, window=5)
        for _ in range(10):
            optimizer.zero_grad()
            y = torch.randint(3, (7,), generator=generator)
            functional.cross_entropy(net(x), y).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        for line in monitor.report():
            assert line.worst < 1e-11, (net, line)
