"""What the tests of architectures share."""

from __future__ import annotations

import torch
from torch.func import functional_call

CE = "cross_entropy"


def outputs(net, params, x):
    """Return what cross entropy sees, over several batches if there are any."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        return functional_call(net, params, (x,)).log_softmax(-1)


def parameters(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def found(groups):
    """Return kinds, units and names, for comparison with what is written down."""
    return {(g.kind, g.units, g.names) for g in groups}
