"""Small networks that people write, each with a kind of symmetry that follows from no module."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class Written(nn.Module):
    """Parts by name, and a function of them and of the arguments."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args):
        return self.function(self, *args)


def free(*shape):
    return nn.Parameter(torch.randn(shape))


def joined():
    """Layers beside each other: matrices act on both as on one."""
    return Written(
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], -1)),
        a=nn.Linear(4, 3), b=nn.Linear(4, 2), c=nn.Linear(5, 3),
    )  # fmt: skip


def joined_with_input():
    return Written(
        lambda s, x: s.d(torch.tanh(s.c(torch.cat([s.a(x), s.b(x), x], -1)))),
        a=nn.Linear(4, 3), b=nn.Linear(4, 2), c=nn.Linear(9, 5), d=nn.Linear(5, 3),
    )  # fmt: skip


def joined_twice():
    def forward(s, x):
        y = torch.cat([x, functional.relu(s.a(x))], 1)
        return s.h(torch.cat([y, functional.relu(s.b(y))], 1))

    return Written(forward, a=nn.Linear(3, 2), b=nn.Linear(5, 2), h=nn.Linear(7, 2))


def adapted():
    return Written(
        lambda s, x: s.h(functional.relu(s.w(x) + s.b(s.a(x)))),
        w=nn.Linear(4, 5), a=nn.Linear(4, 2, bias=False), b=nn.Linear(2, 5, bias=False),
        h=nn.Linear(5, 2),
    )  # fmt: skip


def modulated():
    """Channels are scaled and shifted by functions of the same condition."""
    return Written(
        lambda s, x: s.o(functional.relu(s.g(x[:, :2]) * s.a(x) + s.b(x[:, :2]))),
        a=nn.Linear(4, 3), g=nn.Linear(2, 3), b=nn.Linear(2, 3), o=nn.Linear(3, 2),
    )  # fmt: skip


def gained():
    """The head has fewer outputs than the stream, and gains stand before it."""
    return Written(
        lambda s, x: s.h(x + s.g * s.b(functional.gelu(s.a(x)))),
        a=nn.Linear(4, 3), b=nn.Linear(3, 4), g=free(4), h=nn.Linear(4, 2),
    )  # fmt: skip


def from_zero():
    """The gain of a residual branch is a number."""
    return Written(
        lambda s, x: s.h(x + s.g * s.b(functional.gelu(s.a(x)))),
        a=nn.Linear(4, 3), b=nn.Linear(3, 4), g=free(), h=nn.Linear(4, 5),
    )  # fmt: skip


def flattened():
    """Groups of channels, each with several entries in the flattened image."""
    return nn.Sequential(
        nn.Unflatten(1, (4, 4)), nn.Conv1d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(8, 3)
    )


def unflattened():
    return nn.Sequential(
        nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.ConvTranspose1d(2, 3, 2), nn.ReLU(),
        nn.ConvTranspose1d(3, 1, 2),
    )  # fmt: skip


def contracted():
    """Attention whose weights have one axis for heads and one for their entries."""

    def forward(s, x):
        x = x.unflatten(-1, (4, 5))
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (s.q, s.k, s.v))
        return torch.einsum("bhtk,hkd->btd", (q @ k.mT).softmax(-1) @ v, s.o)

    return Written(forward, q=free(5, 2, 3), k=free(5, 2, 3), v=free(5, 2, 3), o=free(2, 3, 5))


def on_spheres():
    return Written(
        lambda s, x: (
            s.t.exp()
            * functional.linear(
                functional.normalize(s.a(x), dim=-1), functional.normalize(s.w, dim=-1)
            )
        ),
        a=nn.Linear(4, 3), w=free(5, 3), t=free(),
    )  # fmt: skip


def narrow():
    """What one bottleneck maps to 0 is seen through several layers."""
    return nn.Sequential(
        nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 5)
    )


def pooled():
    return nn.Sequential(
        nn.Unflatten(1, (2, 8)), nn.Conv1d(2, 3, 3, padding=1), nn.AvgPool1d(2),
        nn.Conv1d(3, 3, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip


def attending():
    """Attention of a graph: the vectors are longer than the rank of what they read."""

    def forward(s, x):
        h = s.w(x.unflatten(-1, (4, 3)))
        e = (h * s.a).sum(-1)[:, :, None] + (h * s.b).sum(-1)[:, None, :]
        return s.o(functional.elu(functional.leaky_relu(e, 0.2).softmax(-1) @ h))

    return Written(forward, w=nn.Linear(3, 4, bias=False), a=free(4), b=free(4), o=nn.Linear(4, 2))


def spectral():
    return nn.Sequential(spectral_norm(nn.Linear(4, 5)), nn.GELU(), nn.Linear(5, 3))


def normed_weights():
    """Directions of 5 rows and 3 hidden units, whose rescaling passes the next weights' norm."""

    def forward(s, x):
        y = functional.relu(functional.linear(x, s.g * functional.normalize(s.v, dim=1), s.c))
        return functional.linear(y, s.h * functional.normalize(s.w, dim=1))

    return Written(forward, v=free(3, 4), g=free(3, 1), c=free(3), w=free(2, 3), h=free(2, 1))


def offset_gains():
    """A gain that is written 1 + g: 3 rotations, 1 scale and 3 gains."""

    def forward(s, x):
        y = s.a(x)
        return s.b(y * (y.square().mean(-1, keepdim=True) + 1e-200).rsqrt() * (1 + s.g))

    return Written(forward, a=nn.Linear(4, 3, bias=False), b=nn.Linear(3, 3, bias=False), g=free(3))


def squared():
    """What makes a unit, times 2, is undone by a quarter of what reads it."""
    return Written(lambda s, x: s.b(s.a(x).square()), a=nn.Linear(4, 3), b=nn.Linear(3, 2))


def adapted_by_one():
    """The smallest adapter: 1 scale, 4 shifts of what it reads and 5 of what it makes, less one."""
    return Written(
        lambda s, x: s.h(torch.tanh(s.w(x) + s.b(s.a(x)))),
        w=nn.Linear(4, 5), a=nn.Linear(4, 1, bias=False), b=nn.Linear(1, 5, bias=False),
        h=nn.Linear(5, 2),
    )  # fmt: skip


def mixed_tokens():
    """A bias of all channels alike is one of the tokens that are mixed."""
    return Written(
        lambda s, x: s.h(torch.tanh(s.a((x.unflatten(-1, (3, 2)) + s.g).mT)).flatten(1)),
        a=nn.Linear(3, 2), g=free(2), h=nn.Linear(4, 2),
    )  # fmt: skip


def through_one():
    """Beside 3 rescalings, a scale and a shift of the one unit."""
    return nn.Sequential(
        nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1), nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)
    )


def widened():
    """Three units that hold two numbers: what maps them may change, if its bias does too."""
    return nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3), nn.Linear(3, 4))


def gained_before_relu():
    """The gain may move to the layer after the units, and shifts pass it."""
    return Written(
        lambda s, x: s.h(x + s.g * s.b(functional.relu(s.a(x)))),
        a=nn.Linear(4, 3), b=nn.Linear(3, 4), g=free(1), h=nn.Linear(4, 2),
    )  # fmt: skip


def largest_of_two():
    """Both of a pair may be shifted by what the reader maps to 0, for each input apart."""
    return Written(
        lambda s, x: s.h(s.a(x).unflatten(-1, (3, 2)).amax(-1)),
        a=nn.Linear(4, 6),
        h=nn.Linear(3, 2),
    )


def shared_values():
    """Two heads read the same values, whose bias passes both."""

    def forward(s, x):
        x = x.unflatten(-1, (3, 2))
        v = s.v(x)
        heads = [(r * x @ x.mT).softmax(-1) @ v for r in (1, -1)]
        return s.o(torch.cat(heads, -1))

    return Written(forward, v=nn.Linear(2, 2), o=nn.Linear(4, 3))


def asked_by_one_token():
    """The query of the first token is one vector, and a bias takes back what that token carries."""

    def forward(s, x):
        x = torch.cat([s.c.expand(x.shape[0], 1, 3), s.e(x.unflatten(-1, (2, 2)))], 1)
        a = (s.q(x[:, :1]) @ s.k(x).mT).softmax(-1) @ s.v(x)
        return s.h(torch.tanh(x + s.o(a))[:, 0])

    return Written(
        forward, c=free(1, 1, 3), e=nn.Linear(2, 3), q=nn.Linear(3, 2), k=nn.Linear(3, 2),
        v=nn.Linear(3, 2), o=nn.Linear(2, 3), h=nn.Linear(3, 2),
    )  # fmt: skip


# Network, length of its inputs, and parameters minus the rank of the Jacobian.
OUTSIDERS = {
    "joined": (joined, 4, 28),
    "joined with input": (joined_with_input, 4, 50),
    "joined twice": (joined_twice, 3, 4),
    "adapted": (adapted, 4, 23),
    "modulated": (modulated, 4, 9),
    "gained": (gained, 4, 14),
    "from zero": (from_zero, 4, 5),
    "flattened": (flattened, 16, 12),
    "unflattened": (unflattened, 4, 7),
    "contracted": (contracted, 20, 36),
    "on spheres": (on_spheres, 4, 9),
    "narrow": (narrow, 8, 89),
    "pooled": (pooled, 16, 27),
    "attending": (attending, 12, 2),
    "spectral": (spectral, 4, 1),
    "normed weights": (normed_weights, 4, 8),
    "offset gains": (offset_gains, 4, 7),
    "squared": (squared, 4, 3),
    "adapted by one": (adapted_by_one, 4, 9),
    "mixed tokens": (mixed_tokens, 6, 1),
    "through one": (through_one, 4, 5),
    "widened": (widened, 4, 16),
    "gained before ReLU": (gained_before_relu, 4, 14),
    "largest of two": (largest_of_two, 4, 10),
    "shared values": (shared_values, 6, 6),
    "asked by one token": (asked_by_one_token, 4, 31),
}
