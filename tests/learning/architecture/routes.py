"""What the tests of architectures share."""

from __future__ import annotations

import math

import torch
from torch.func import functional_call

from dln_geometry.learning import Family

CE = "cross_entropy"


def outputs(net, params, x):
    """Return what cross entropy sees, over several batches if there are any."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        return functional_call(net, params, (x,)).log_softmax(-1)


def parameters(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def by_graph(groups):
    """Return the groups that follow from the graph, without those that linear algebra finds."""
    return [g for g in groups if not isinstance(g, Family)]


def found(groups):
    """Return kinds, units and names, for comparison with what is written down."""
    return {(g.kind, g.units, g.names) for g in groups}


def rank_of(function, params):
    """Return the rank of the derivative of the outputs in all parameters."""
    jacobian = torch.func.jacrev(function)(params)
    rows = torch.cat([j.reshape(-1, params[n].numel()) for n, j in jacobian.items()], 1)
    s = torch.linalg.svdvals(rows)
    return int((s > 1e-9 * s[0]).sum())


def claimed_directions(groups, params, generator):
    """Return how many directions the continuous groups span."""
    directions = []
    for group in (g for g in groups if g.kind != "permutation"):
        symmetry = group.symmetry(params)
        for _ in range(math.prod(symmetry.shape(params))):
            s = torch.randn(symmetry.shape(params), generator=generator, dtype=torch.float64)
            field = symmetry.field(params, s)
            directions.append(torch.cat([field[n].flatten() for n in params]))
    return int(torch.linalg.matrix_rank(torch.stack(directions))) if directions else 0
