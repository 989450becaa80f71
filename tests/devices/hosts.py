"""Methods of the spaces for geomstats on a pretended device: run in a process with torch inside.

geomstats chooses its backend when it is imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

import dln_geometry as dln
from manifolds import geomstats_dln as host
from tests.devices.pretended import PretendedTensor, pretended, there

G = torch.Generator().manual_seed(4)
F64 = torch.float64


def calls() -> Iterator[tuple[str, Callable[..., Any], list[torch.Tensor]]]:
    """Yield names, methods, and tensors that they take."""
    x, a, b = (torch.randn(3, 3, generator=G, dtype=F64) for _ in "xab")
    x = x + 3 * torch.eye(3)
    metric = host.DepthMetric(host.FullRankEndToEnd(3, 3, equip=False), 3)
    thin = torch.randn(4, 2, generator=G, dtype=F64) @ torch.randn(2, 3, generator=G, dtype=F64)
    fixed = host.FixedRankEndToEnd(4, 3, 2, equip=False)
    layers = torch.stack(dln.random_balanced((3, 3, 3), generator=G, dtype=F64))
    networks = host.BalancedNetworks((3, 3, 3), equip=False)
    v = torch.randn(2, 3, 3, generator=G, dtype=F64)
    yield "belongs", metric._space.belongs, [x]
    yield "projection", metric._space.projection, [x]
    yield "inner product", metric.inner_product, [a, b, x]
    yield "sharp", metric.sharp, [a, x]
    yield "flat", metric.flat, [a, x]
    yield "exponential", metric.exp, [0.1 * a, x]
    yield "rank: belongs", fixed.belongs, [thin]
    yield "rank: tangent", fixed.to_tangent, [torch.ones(4, 3, dtype=F64), thin]
    yield "networks: belongs", networks.belongs, [layers]
    yield "networks: tangent", networks.to_tangent, [v, layers]
    yield "networks: projection", networks.projection, [layers + 0.01 * v]


def main() -> None:
    warnings.simplefilter("ignore")
    for name, method, tensors in calls():
        here = method(*(x.clone() for x in tensors))
        with pretended():
            far = method(*map(there, tensors))
        if not isinstance(far, PretendedTensor):
            raise SystemExit(f"{name}: the result is on the CPU, {type(far).__name__}")
        if not torch.allclose(here.to(F64), far.held.to(F64), rtol=1e-7, atol=1e-9):
            raise SystemExit(f"{name}: other values on the device")
        print(name, flush=True)


if __name__ == "__main__":
    main()
