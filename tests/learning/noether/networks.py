"""Networks with their symmetries, for the laws of discrete steps."""

from __future__ import annotations

import torch
from torch import nn

from dln_geometry.learning.symmetry import (
    Rescale,
    Scale,
    Symmetry,
    Translation,
)


def perceptron(generator):
    model = nn.Sequential(
        nn.Linear(5, 7), nn.LayerNorm(7, eps=0), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(),
        nn.Linear(6, 4),
    )  # fmt: skip
    symmetries = [
        Scale(["0.weight", "0.bias"]),
        Translation("0.weight", axis=0),
        Translation("0.bias", torch.ones(7)),
        Rescale(["1.weight", "1.bias"], "3.weight", axes=(0, 1)),
        Rescale(["3.weight", "3.bias"], "5.weight", axes=(0, 1)),
        Translation("5.weight", axis=0),
        Translation("5.bias", torch.ones(4)),
    ]
    return model, (24, 5), symmetries


def convolutions(generator):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=0), nn.ReLU(),
        nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, eps=0), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    symmetries = [
        Scale("0.weight", axis=0),
        Translation("0.bias", torch.tensor([1.0, -2.0, 0.0, 0.5])),
        Rescale(["1.weight", "1.bias"], "3.weight", axes=(0, 1)),
        Scale("3.weight", axis=0),
        Rescale(["4.weight", "4.bias"], "7.weight", axes=(0, 1)),
        Translation("7.weight", axis=0),
    ]
    return model, (24, 2, 6, 6), symmetries


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.MultiheadAttention(6, 2, batch_first=True) for _ in "12")
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in "12")
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        for block, norm in zip(self.blocks, self.norms, strict=True):
            y = norm(x)
            x = x + block(y, y, y, need_weights=False)[0]
        return self.head(x.mean(1))


def queries_and_keys(block):
    """The gauge of every head, which torch keeps in one matrix: ``e^S Q``, ``e^{-S^T} K``."""
    weight, bias = f"blocks.{block}.in_proj_weight", f"blocks.{block}.in_proj_bias"

    def action(p, s):
        m = torch.stack([torch.matrix_exp(s), torch.matrix_exp(-s.mT)])
        w = torch.cat([p[weight], p[bias].unsqueeze(1)], 1).reshape(3, 2, 3, 7)
        w = torch.cat([m @ w[:2], w[2:]]).reshape(18, 7)
        return {weight: w[:, :6], bias: w[:, 6]}

    return Symmetry(action, shape=(2, 3, 3), degree=1)


def values_and_outputs(block):
    weight, bias = f"blocks.{block}.in_proj_weight", f"blocks.{block}.in_proj_bias"
    out = f"blocks.{block}.out_proj.weight"

    def action(p, s):
        w = torch.cat([p[weight], p[bias].unsqueeze(1)], 1)
        v = (torch.matrix_exp(s) @ w[12:].reshape(2, 3, 7)).reshape(6, 7)
        o = p[out].reshape(6, 2, 1, 3) @ torch.matrix_exp(-s)
        w = torch.cat([w[:12], v])
        return {weight: w[:, :6], bias: w[:, 6], out: o.reshape(6, 6)}

    return Symmetry(action, shape=(2, 3, 3), degree=1)


def attention(generator):
    keys = torch.zeros(18)
    keys[6:12] = torch.randn(6, generator=generator)
    symmetries = [
        queries_and_keys(0),
        values_and_outputs(1),
        # A softmax does not see what is added to every key.
        Translation("blocks.0.in_proj_bias", keys),
        Translation("head.weight", axis=0),
    ]
    return Attention(), (8, 3, 6), symmetries
