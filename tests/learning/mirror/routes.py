"""Networks with the mirrors that they have, for the tests of mirrors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import functionalize
from dln_geometry.learning.mirror import Mirror

F64 = torch.float64
HIDDEN = {"0.weight": 0, "0.bias": 0, "2.weight": 1}


def fill(net, generator, dtype=F64):
    net = net.to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            z = torch.randn(p.shape, generator=generator, dtype=dtype)
            p.copy_(z / p[0].numel() ** 0.5 if p.ndim > 1 else 0.5 + 0.4 * z)
    return net


def mlp(generator, unit=nn.Tanh, dtype=F64):
    net = fill(nn.Sequential(nn.Linear(5, 6), unit(), nn.Linear(6, 3)), generator, dtype)
    x = torch.randn(9, 5, generator=generator, dtype=dtype)
    y = torch.randn(9, 3, generator=generator, dtype=dtype)
    return functionalize(net, functional.mse_loss, (x, y))


def conv(generator):
    """A convolution with batch norm and pooling, whose channels are flattened into features."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    x = torch.randn(7, 2, 6, 6, generator=generator, dtype=F64)
    y = torch.randint(3, (7,), generator=generator)
    return functionalize(fill(net, generator), functional.cross_entropy, (x, y))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def attention(generator):
    x = torch.randn(6, 5, 8, generator=generator, dtype=F64)
    y = torch.randint(3, (6,), generator=generator)
    return functionalize(fill(Block(), generator), functional.cross_entropy, (x, y))


def linear_chain(generator, depth=3, width=4):
    widths = (5, *[width] * (depth - 1), 3)
    params = {
        f"w{p}": torch.randn(widths[p], widths[p - 1], generator=generator, dtype=F64) / 2
        for p in range(1, depth + 1)
    }
    a = torch.randn(3, 5, generator=generator, dtype=F64)

    def loss(q):
        x = q["w1"]
        for p in range(2, depth + 1):
            x = q[f"w{p}"] @ x
        return (x - a).sin().square().sum()

    return loss, params


def mirrors(name, generator):
    """Yield a loss, its parameters, and mirrors that it has."""
    if name == "mlp":
        loss, params = mlp(generator)
        yield loss, params, Mirror.permutation(params, HIDDEN, 1, 4)
        yield loss, params, Mirror.permutation(params, HIDDEN, [0, 2], [5, 3])
        yield loss, params, Mirror.permutation(params, HIDDEN, 0, 3, sign=-1.0)
        yield loss, params, Mirror.rescaling(params, HIDDEN, [2, 4])
    elif name == "convolution":
        loss, params = conv(generator)
        features = torch.arange(16).reshape(4, 4)
        channels = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0}
        axes = {**channels, "5.weight": (1, features)}
        yield loss, params, Mirror.permutation(params, axes, 0, 3)
        # A normalisation does not see the scale before it, but the sign: it comes out again.
        before = {"0.weight": 0, "0.bias": 0, "1.weight": 0}
        yield loss, params, Mirror.rescaling(params, before, 1)
    elif name == "attention":
        loss, params = attention(generator)
        query, key = torch.arange(8), torch.arange(8) + 8
        pairs = torch.stack([query, key], -1)
        inside = {"attention.in_proj_weight": (0, pairs), "attention.in_proj_bias": (0, pairs)}
        yield loss, params, Mirror.rescaling(params, inside, 5)
        values = torch.arange(16, 24)[:4]
        outside = {
            "attention.in_proj_weight": (0, values), "attention.in_proj_bias": (0, values),
            "attention.out_proj.weight": (1, range(4)),
        }  # fmt: skip
        n = torch.randn(4, generator=generator, dtype=F64)
        yield loss, params, Mirror.rotation(params, outside, n)
        heads = torch.arange(24).reshape(3, 2, 4).movedim(1, 0).reshape(2, 12)
        rows = {"attention.in_proj_weight": (0, heads), "attention.in_proj_bias": (0, heads)}
        columns = {"attention.out_proj.weight": (1, torch.arange(8).reshape(2, 4))}
        yield loss, params, Mirror.permutation(params, {**rows, **columns}, 0, 1)
    else:
        loss, params = linear_chain(generator)
        n = torch.randn(4, generator=generator, dtype=F64)
        yield loss, params, Mirror.gauge(params, "w1", "w2", n)
        frame = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=F64)).Q
        yield loss, params, Mirror.gauge(params, "w2", "w3", frame)


NETWORKS = ("mlp", "convolution", "attention", "chain")


def matrix(mirror, params):
    """Return O as a matrix on the concatenated parameters."""
    columns = mirror.embed(torch.eye(mirror.dimension, dtype=F64))
    return torch.cat(
        [
            columns[name].flatten(1).mT
            if name in columns
            else torch.zeros(q.numel(), mirror.dimension, dtype=F64)
            for name, q in params.items()
        ]
    )
