"""A loss and random models for the tests of collapse."""

from __future__ import annotations

import torch


def wave(out):
    """A loss that sees every output, with no symmetry of its own."""
    z = out.flatten()
    return (z + torch.arange(z.numel(), dtype=z.dtype).sin()).sin().square().mean()


def shaken(net, generator):
    """Return a model in evaluation mode with random parameters and statistics, in place."""
    kind = {"generator": generator, "dtype": torch.float64}
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, **kind) / 2)
        for b in net.buffers():
            if b.is_floating_point():
                b.copy_(1 + torch.rand(b.shape, **kind))
    return net.double().eval()
