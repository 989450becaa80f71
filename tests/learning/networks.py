"""Networks of the usual kinds, small, for the tests of what architectures have."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from dln_geometry.learning import DeepLinear

# Nothing: in double precision it is lost in every variance.
EPS = 1e-200


class Attention(nn.Module):
    """Two blocks of attention, normalised before, with a residual stream."""

    def __init__(self, width=6, heads=2, classes=3, layers=2, tokens=9):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens, mask=None):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        if mask is not None:
            x = x * mask
        return self.head(self.norm(x).mean(-2))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Residual(nn.Module):
    """A convolutional block with batch norm and a skip connection."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels, eps=EPS)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(y)))


def mlp():
    return nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.LeakyReLU(0.2), nn.Linear(6, 4)
    )


def layer_norm_mlp():
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.LayerNorm(8, eps=EPS),
        nn.ReLU(),
        nn.Linear(8, 6),
        nn.LayerNorm(6, eps=EPS),
        nn.Tanh(),
        nn.Linear(6, 4),
    )


def batch_norm_mlp():
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8, eps=EPS),
        nn.ReLU(),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.BatchNorm1d(6, eps=EPS),
        nn.Linear(6, 4),
    )


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6, eps=EPS),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(6),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def group_norm_net():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.GroupNorm(3, 6, eps=EPS),
        nn.SiLU(),
        nn.Conv2d(6, 4, 3, bias=False),
        nn.InstanceNorm2d(4, eps=EPS, affine=True),
        nn.ReLU(),
        nn.Conv2d(4, 8, 1, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def weight_norm_net():
    return nn.Sequential(
        weight_norm(nn.Linear(5, 7)),
        nn.ReLU(),
        weight_norm(nn.Linear(7, 6)),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


def linear_net():
    return nn.Sequential(
        nn.Linear(5, 7),
        nn.Linear(7, 6, bias=False),
        nn.Identity(),
        nn.Linear(6, 4),
        nn.ReLU(),
        DeepLinear((4, 5, 3, 4), generator=torch.Generator().manual_seed(1)),
    )


def prelu_net():
    return nn.Sequential(
        nn.Linear(5, 7), nn.PReLU(7), nn.Linear(7, 4), nn.RMSNorm(4, eps=EPS), nn.LogSoftmax(-1)
    )


def encoder_net():
    layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True, layer_norm_eps=EPS)
    return nn.Sequential(
        nn.Linear(5, 6), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    )


def conv1d_net():
    return nn.Sequential(
        nn.ConvTranspose1d(2, 5, 3),
        nn.ReLU(),
        nn.Conv1d(5, 4, 3),
        nn.BatchNorm1d(4, eps=EPS),
        nn.Softplus(),
        nn.MaxPool1d(2),
        nn.Flatten(1),
        nn.Linear(12, 3),
    )


def _normal(*shape):
    return lambda g: torch.randn(shape, generator=g, dtype=torch.float64)


# Network, its input, and the number of classes.
NETWORKS = {
    "mlp": (mlp, _normal(9, 5)),
    "layer norm": (layer_norm_mlp, _normal(9, 5)),
    "batch norm": (batch_norm_mlp, _normal(9, 5)),
    "convolution": (conv_net, _normal(5, 2, 8, 8)),
    "group norm": (group_norm_net, _normal(5, 2, 8, 8)),
    "weight norm": (weight_norm_net, _normal(9, 5)),
    "linear": (linear_net, _normal(9, 5)),
    "prelu": (prelu_net, _normal(9, 5)),
    "attention": (Attention, lambda g: torch.randint(9, (6, 5), generator=g)),
    "encoder": (encoder_net, _normal(4, 6, 5)),
    "conv1d": (conv1d_net, _normal(5, 2, 6)),
}


def build(name, generator, dtype=torch.float64):
    """Return a network with generic parameters, in training mode, and an input."""
    make, draw = NETWORKS[name]
    # The constructors of torch draw from the global generator, whose state is put back.
    with torch.random.fork_rng():
        net = make()
    net = net.to(dtype)
    with torch.no_grad():
        for key, p in net.named_parameters():
            z = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            # Units that are never active, or always, have more symmetries than the architecture.
            thin = 0.1 * z if key.endswith("bias") else 1 + 0.2 * z
            p.copy_(z / p[0].numel() ** 0.5 if p[0].numel() > 1 else thin)
    x = draw(generator)
    return net, x.to(dtype) if x.is_floating_point() else x


class Conv1D(nn.Module):
    """A linear layer with its weight transposed, as GPT-2 of transformers has it."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.ones(nf))

    def forward(self, x):
        shape = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(shape)
