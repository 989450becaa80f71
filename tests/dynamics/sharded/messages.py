"""What an evaluation of a flow sends and multiplies."""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from dln_geometry import sharded
from dln_geometry.dynamics.flows import sharded_engine
from tests.dynamics.sharded import cases

SHAPE, RANK, DEPTHS = (160, 120), 4, (1.0, 2.0, 2.5, math.inf)
LOSSES = {"dense": cases.quadratic(*SHAPE), "sparse": cases.completion(*SHAPE)}


def counted(mesh):
    """Return bytes by kind, messages and products of one evaluation."""
    found = {}
    for name, loss in LOSSES.items():
        cut = sharded.distribute(loss, mesh)
        for depth in DEPTHS:
            point = sharded.distribute(cases.start(*SHAPE, RANK, depth), mesh)
            engine = sharded_engine(cut, point, "auto", False, None)
            y = engine.rows()
            before = dict(engine.ranks.traffic)
            with FlopCounterMode(display=False) as counter:
                engine.field(y.new_zeros(1), y, torch.empty_like(y))
            sent = {k: x - before.get(k, 0) for k, x in engine.ranks.traffic.items()}
            found[name, depth] = sent, counter.get_total_flops()
    return found
