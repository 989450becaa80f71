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
    if not layers or not _is_product(x, layers, p, state.get("version")):
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
    state["version"] = p._version
    return True


def _is_product(x: Tensor, layers: Sequence[Tensor], p: Tensor, version: int | None) -> bool:
    """Tell whether x, p in the precision of the layers, is their product rounded to the type of p.

    Where nothing that torch counts has written p since its last step, the image of one vector is
    compared: only edits of ``p.data`` are left to be found.
    """
    seen, most, parts = x, x.abs().max(), list(layers)
    if version == p._version:
        signs = torch.frac(torch.arange(1, x.shape[1] + 1, device=x.device) * 0.6180339887498949)
        v = torch.where(signs < 0.5, -1.0, 1.0).to(x.dtype).unsqueeze(-1)
        seen, most, parts = x @ v, most * 2.0 * x.shape[1] ** 0.5, [v, *parts]
    eps = torch.finfo(p.dtype).eps, torch.finfo(x.dtype).eps
    rounding = 2 * eps[0] + 100 * len(layers) * eps[1]
    return bool((product(parts) - seen).abs().max() <= rounding * most)


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
        if kept:
            state[p].pop("version", None)
