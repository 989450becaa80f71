"""Short runs of every kind of start."""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry import losses


def flows(generator):
    y = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    loss = losses.Quadratic(y)
    collapsed = dln.Collapsed.random((5, 4), 3, 3, generator=generator, dtype=torch.float64)
    batch = dln.Collapsed.random((5, 4), 3, math.inf, batch=(2,), generator=generator)
    return [
        dln.gradient_flow(loss, collapsed, t_end=0.4, keep_points=True),
        dln.gradient_flow(loss, batch, t_end=0.4),
        dln.gradient_flow(loss, [torch.ones(3, 4), torch.eye(5, 3)], t_end=0.4),
        dln.gradient_flow(loss, dln.EndToEnd.of(y * 0.5, 1), t_end=0.4),
    ]


def tensors(point):
    if isinstance(point, dln.Collapsed):
        return (point.L, point.R)
    if isinstance(point, dln.EndToEnd):
        return (point.u, point.s, point.vh)
    return point


def short_run():
    return dln.Trajectory(t=torch.arange(3.0), final=torch.eye(2), stats={"steps": 2}, depth=1.0)
