"""Networks of the kinds that people train, small, with their forward passes written by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

F64 = torch.float64
# A normalisation without it has exact symmetries.
EPS = 1e-200


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(1 + torch.rand(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * self.gain


class LayerNorm(nn.Module):
    def __init__(self, width, *, bias=True):
        super().__init__()
        self.weight = nn.Parameter(1 + torch.rand(width))
        self.bias = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x):
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS)


class FusedAttention(nn.Module):
    """As in nanoGPT: one matrix for queries, keys and values."""

    def __init__(self, width, heads, *, bias=True):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (
            y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for y in self.c_attn(x).split(c, 2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self, width, heads, *, bias=True):
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(width, bias=bias), LayerNorm(width, bias=bias)
        self.attn = FusedAttention(width, heads, bias=bias)
        self.fc = nn.Linear(width, 2 * width, bias=bias)
        self.proj = nn.Linear(2 * width, width, bias=bias)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.proj(functional.gelu(self.fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, *, tied=True, bias=True, tokens=9, width=4, length=5):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.block, self.ln_f = Block(width, 2, bias=bias), LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, tokens, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.head(self.ln_f(self.block(x)))


def turned(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


class RotaryAttention(nn.Module):
    """As in Llama: rotary embeddings and grouped queries."""

    def __init__(self, width, heads, groups):
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, self.size * groups, bias=False) for _ in range(2))
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x):
        b, t, c = x.shape
        q = self.q(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).view(b, t, self.groups, self.size).transpose(1, 2) for f in (self.k, self.v))
        rates = 10.0 ** -(torch.arange(0, self.size, 2).to(x) / self.size)
        angles = torch.outer(torch.arange(t).to(x), rates).repeat(1, 2)
        q, k = (y * angles.cos() + turned(y) * angles.sin() for y in (q, k))
        k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (k, v))
        scores = q @ k.mT / self.size**0.5
        mask = torch.ones(t, t, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(b, t, c))


class SwiGLU(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Llama(nn.Module):
    def __init__(self, *, tokens=12, width=8, heads=2, groups=1, tied=False):
        super().__init__()
        self.embed, self.head = nn.Embedding(tokens, width), nn.Linear(width, tokens, bias=False)
        self.norm1, self.norm2, self.norm3 = (RMSNorm(width) for _ in range(3))
        self.attention, self.mlp = RotaryAttention(width, heads, groups), SwiGLU(width, 6)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x))


class SeparateAttention(nn.Module):
    def __init__(self, width=4, heads=2, *, fused=False):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (
            f(x).view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.mT / (c // self.heads) ** 0.5).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, c))


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.read, self.out = cell(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.read(x)[0])


class GCN(nn.Module):
    """Message passing over a list of edges."""

    def __init__(self, unit):
        super().__init__()
        self.first, self.second, self.unit = nn.Linear(4, 6), nn.Linear(6, 3), unit

    def forward(self, x, edges):
        def gathered(z):
            return torch.zeros_like(z).index_add(0, edges[1], z[edges[0]])

        return gathered(self.second(self.unit(gathered(self.first(x)))))


@torch.library.custom_op("dln_tests::twist", mutates_args=())
def twist(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


@twist.register_fake
def _(x, w):
    return x @ w


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, g):
    x, w = ctx.saved_tensors
    return g @ w.mT, x.mT @ g


twist.register_autograd(_backward, setup_context=_setup)


class Custom(nn.Module):
    """An operator that the library has never seen."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 2, dtype=F64))
        self.second = nn.Parameter(torch.randn(2, 3, dtype=F64))

    def forward(self, x):
        return torch.ops.dln_tests.twist(twist(x.double(), self.first), self.second)


def _drawn(net, *shapes, tokens=None):
    make = (lambda s: torch.randint(tokens, s)) if tokens else lambda s: torch.randn(s, dtype=F64)
    return net.double(), tuple(make(s) for s in shapes)


def _chain(*layers, rows=8, width=8):
    return _drawn(nn.Sequential(*layers), (rows, width))


def _graph(unit):
    net, (x,) = _drawn(GCN(unit), (9, 4))
    return net, (x, torch.randint(9, (2, 30)))


def _linear(m, n, *, bias=True):
    return nn.Linear(m, n, bias=bias)


MODELS = {
    "rms norm": lambda: _chain(_linear(8, 6, bias=False), RMSNorm(6), _linear(6, 4, bias=False)),
    "layer norm": lambda: _chain(_linear(8, 6), LayerNorm(6), _linear(6, 4)),
    "batch norm": lambda: _chain(_linear(8, 6), nn.BatchNorm1d(6, eps=EPS), _linear(6, 4)),
    "relu": lambda: _chain(_linear(8, 6), nn.ReLU(), _linear(6, 4)),
    "attention": lambda: _drawn(SeparateAttention(), (3, 5, 4)),
    "sdpa": lambda: _drawn(SeparateAttention(fused=True), (3, 5, 4)),
    "swiglu": lambda: _drawn(SwiGLU(4, 6), (8, 4)),
    "lstm": lambda: _drawn(Recurrent(nn.LSTM), (3, 4, 3)),
    "gru": lambda: _drawn(Recurrent(nn.GRU), (3, 4, 3)),
    "gcn": lambda: _graph(nn.ReLU()),
    "linear gcn": lambda: _graph(nn.Identity()),
    "gpt": lambda: _drawn(GPT(), (6, 5), tokens=9),
    "gpt, untied": lambda: _drawn(GPT(tied=False), (6, 5), tokens=9),
    "gpt, no biases": lambda: _drawn(GPT(tied=False, bias=False), (6, 5), tokens=9),
    "llama": lambda: _drawn(Llama(), (8, 5), tokens=12),
    "llama, tied": lambda: _drawn(Llama(tied=True), (8, 5), tokens=12),
}

# 15 rotations, 1 scale, 6 gains; 10 rotations that fix (1, ..., 1), 1 scale, 9 translations,
# 6 gains, 6 shifts, and 4 for the direction that normalised outputs never take.
KNOWN = {"rms norm": 22, "layer norm": 36, "attention": 24, "sdpa": 24, "swiglu": 6, "relu": 6}
