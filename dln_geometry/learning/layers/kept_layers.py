"""Steps of layers that an optimiser keeps behind an ordinary matrix, with their momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import EndToEnd, balanced_factors, product
from dln_geometry.geometry.submersion import lift_layers
from dln_geometry.learning.rules import Rule
from dln_geometry.support import Depth


def kept_step(p: Tensor, gradient: Tensor, state: dict[str, Any], depth: Depth, rule: Rule) -> bool:
    """Move the layers in `state`, and p to their product; False if p is zero, where all rest.

    Without layers, or if something else has moved p since, layers are the balanced factors of p
    of the width of its narrower side, and their buffers begin anew.
    """
    dtype = p.dtype if p.dtype.itemsize >= 4 else torch.float32
    x, g = p.flatten(1).to(dtype), gradient.flatten(1).to(dtype)
    layers = [w.to(dtype) for w in state.get("layers", ())]
    # The layers are kept in single precision at least: p is their product, rounded to its type.
    rounding = 2 * torch.finfo(p.dtype).eps + 100 * len(layers) * torch.finfo(dtype).eps
    if not layers or bool((product(layers) - x).abs().max() > rounding * x.abs().max()):
        if not bool(x.any()):
            return False
        point = EndToEnd.of(x, int(depth))
        least = 4 * max(x.shape) * torch.finfo(dtype).eps * point.s[0]
        s = torch.where(point.s > least, point.s, 0.0)
        point = EndToEnd(point.u, s, point.vh, depth, check=False)
        layers = list(balanced_factors(point, widths=min(x.shape)))
        state["buffers"] = []
    named = {str(k): w for k, w in enumerate(layers)}
    slopes = {str(k): d for k, d in enumerate(lift_layers(layers, g))}
    old = {str(k): v.to(dtype) for k, v in enumerate(state["buffers"])}
    moved, velocities = rule.update(slopes, named, old or None)
    state["layers"], state["buffers"] = list(moved.values()), list(velocities.values())
    p.copy_(product(state["layers"]).reshape(p.shape))
    return True


def restore_layers(state: dict[Any, Any], params: Sequence[Tensor], saved: dict[str, Any]) -> None:
    """Put the layers and buffers of a saved state back as they were.

    ``Optimizer.load_state_dict`` rounds them to the type of the parameter.
    """
    numbers = [k for group in saved["param_groups"] for k in group["params"]]
    for k, p in zip(numbers, params, strict=True):
        kept = saved["state"].get(k, {})
        for key in ("layers", "buffers"):
            if key in kept:
                state[p][key] = [w.detach().to(p.device, copy=True) for w in kept[key]]
