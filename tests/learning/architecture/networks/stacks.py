"""Small networks whose parameters hold several maps, tables, exponentials or spare channels."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.learning.architecture.networks.outsiders import Written, free


def combed():
    """Values and gates alternate in one matrix."""

    def forward(s, x):
        h = x @ s.w
        return (h[..., ::2] * torch.sigmoid(h[..., 1::2])) @ s.v

    return Written(forward, w=free(3, 4), v=free(2, 2))


def experts():
    """Each expert has its hidden units, and all share one tensor a layer; softmax gates."""

    def forward(s, x):
        h = functional.relu(torch.einsum("bi,eih->beh", x, s.a))
        return torch.einsum("be,beh,eho->bo", (x @ s.g).softmax(-1), h, s.b)

    return Written(forward, g=free(3, 2), a=free(2, 3, 2), b=free(2, 2, 2))


def heads_first():
    """Weights with the heads in front: gauges of 4 for keys, and for values, of each head."""

    def forward(s, x):
        x = x.unflatten(-1, (4, 3))
        q, k, v = (torch.einsum("btd,hdk->bhtk", x, w) for w in (s.q, s.k, s.v))
        return torch.einsum("bhtk,hkd->btd", (q @ k.mT).softmax(-1) @ v, s.o)

    return Written(forward, q=free(2, 3, 2), k=free(2, 3, 2), v=free(2, 3, 2), o=free(2, 2, 3))


def grouped():
    """Matrices act on the channels of one group: 8 + 4 shifts + 4 rescalings."""
    return nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 4, 1), nn.Conv1d(4, 4, 2, groups=2), nn.ReLU(),
        nn.Conv1d(4, 2, 1), nn.Flatten(),
    )  # fmt: skip


def _ids(x, rows):
    """Return random row numbers that follow from random numbers."""
    return (1000 * x.detach().abs()).long() % rows


def rated():
    """Users and items with biases: 4 of a gauge, 2 + 2 shifts of vectors, 2 of constants."""

    def forward(s, x):
        u, i = _ids(x, 4).unbind(-1)
        return (s.u[u] * s.i[i]).sum(-1) + s.b[u][:, 0] + s.c[i][:, 0] + s.m

    return Written(forward, u=free(4, 2), i=free(4, 2), b=free(4, 1), c=free(4, 1), m=free())


def factorized():
    """A factorization machine of three ids: 1 rotation, 2 shifts, and 1 of constants."""

    def forward(s, x):
        ids = _ids(x, 6)
        v = s.v[ids]
        pairs = (v.sum(1).square() - v.square().sum(1)).sum(-1) / 2
        return s.b + s.w[ids].sum((1, 2)) + pairs

    return Written(forward, v=free(6, 2), w=free(6, 1), b=free())


def modulated_by_offset():
    """Both halves of one layer modulate channels, as 1 + g and as b, which takes shifts back."""

    def forward(s, x):
        g, b = s.f(x[:, :2]).chunk(2, -1)
        return s.o(functional.relu((1 + g) * s.a(x) + b))

    return Written(forward, a=nn.Linear(4, 3), f=nn.Linear(2, 6), o=nn.Linear(3, 2))


def exponential():
    """Half of the outputs are logarithms of sizes: their bias undoes a scaling."""

    def forward(s, x):
        m, v = s.a(x).chunk(2, -1)
        return s.b(m + v.exp() * x[:, :2])

    return Written(forward, a=nn.Linear(4, 4), b=nn.Linear(2, 3))


def scaled_by_exponentials():
    return Written(
        lambda s, x: s.b(torch.tanh(s.a(x) * s.t.exp())),
        a=nn.Linear(4, 3), t=free(3), b=nn.Linear(3, 2),
    )  # fmt: skip


def tied():
    return Written(lambda s, x: (x @ s.w) @ s.w.T, w=free(5, 2))


def unused():
    """Parameters without gradients, as long as the rows that are differentiated at once."""
    return Written(lambda s, x: x @ s.w, w=free(4, 2), u=free(4, 4))


def expanded():
    """Layers read 4 channels that hold 2 numbers and 1: each of their rows has one to spare."""

    def forward(s, x):
        h = s.i(x)
        return s.o(functional.gelu(s.a(h)) * torch.sigmoid(s.b(h))), h.tanh()

    return Written(
        forward, i=nn.Linear(2, 4), a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2)
    )


def gained_affine():
    """A shift passes a gain and a layer after it: 9 of a gauge, 3 gains and 3 shifts."""
    return Written(lambda s, x: s.o(s.a(x) * s.g), a=nn.Linear(4, 3), g=free(3), o=nn.Linear(3, 4))


def normed_by_three():
    """With three channels one rotation fixes (1, 1, 1)."""

    def forward(s, x):
        h = s.a(x)
        h = h - h.mean(-1, keepdim=True)
        return s.o(h / (h.square().mean(-1, keepdim=True) + 1e-200).sqrt() * s.g + s.c)

    return Written(forward, a=nn.Linear(4, 3), g=free(3), c=free(3), o=nn.Linear(3, 2))


def depthwise():
    """One filter a channel, whose groups hold one bias each."""
    return nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 3, 3, padding=1, groups=3), nn.Tanh(), nn.Flatten(),
        nn.Linear(12, 3), nn.Linear(3, 4),
    )  # fmt: skip


def largest_of_layers():
    """4 rescalings; both weights may be shifted by what the reader maps to 0: 10, and 2 biases."""
    return Written(
        lambda s, x: s.o(torch.max(s.a(x), s.b(x))),
        a=nn.Linear(4, 4), b=nn.Linear(4, 4), o=nn.Linear(4, 2),
    )  # fmt: skip


# Network, length of its inputs, and parameters minus the rank of the Jacobian.
STACKS = {
    "combed": (combed, 3, 2),
    "experts": (experts, 3, 7),
    "heads first": (heads_first, 12, 16),
    "grouped": (grouped, 8, 16),
    "rated": (rated, 2, 10),
    "factorized": (factorized, 3, 4),
    "modulated by offset": (modulated_by_offset, 4, 9),
    "exponential": (exponential, 4, 4),
    "scaled by exponentials": (scaled_by_exponentials, 4, 3),
    "tied": (tied, 5, 1),
    "unused": (unused, 4, 16),
    "expanded": (expanded, 2, 12),
    "largest of layers": (largest_of_layers, 4, 16),
    "gained affine": (gained_affine, 4, 15),
    "normed by three": (normed_by_three, 4, 15),
    "depthwise": (depthwise, 12, 12),
}
