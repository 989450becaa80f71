"""Channels in groups: those of grouped convolutions stay alike, those of group norms go together.

A grouped convolution is the convolution of all channels whose weight is zero between the groups.
Written so, its inputs and outputs are units like others. It has groups again if as many inputs and
as many outputs are left in each, where whole groups may go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from dln_geometry.learning.collapse.pruning.channels import Channels
from dln_geometry.learning.collapse.pruning.cutting import is_depthwise
from dln_geometry.learning.layers import CONVOLUTIONS

UNEVEN = "the groups of a convolution must stay alike"


def opened_groups(model: nn.Module) -> dict[str, int]:
    """Write grouped convolutions as dense ones, in place; return their numbers of groups."""
    weights = [id(p) for m in model.modules() for p in m._parameters.values() if p is not None]
    found = {}
    modules: dict[str, Any] = dict(model.named_modules())
    for name, module in modules.items():
        if type(module) not in CONVOLUTIONS or module.groups == 1 or is_depthwise(module):
            continue
        old = module.weight
        if weights.count(id(old)) > 1:
            continue
        blocks = list(old.detach().chunk(module.groups))
        inner = blocks[0].shape[1]
        dense = old.new_zeros(old.shape[0], module.groups * inner, *old.shape[2:])
        for k, block in enumerate(blocks):
            rows = slice(k * len(block), (k + 1) * len(block))
            dense[rows, k * inner : (k + 1) * inner] = block
        module.weight = nn.Parameter(dense, requires_grad=old.requires_grad)
        found[name], module.groups = module.groups, 1
    return found


def close_groups(model: nn.Module, groups: Mapping[str, int]) -> None:
    """Write these convolutions in groups again, in place."""
    for name, count in groups.items():
        module: Any = model.get_submodule(name)
        old: Tensor = module.weight
        n, m = (size // count for size in old.shape[:2])
        blocks = [old.detach()[k * n : (k + 1) * n, k * m : (k + 1) * m] for k in range(count)]
        module.weight = nn.Parameter(torch.cat(blocks), requires_grad=old.requires_grad)
        module.groups = count
        sides = (old.shape[0], old.shape[1])
        turned = isinstance(module, _ConvTransposeNd)
        module.in_channels, module.out_channels = sides if turned else sides[::-1]


def evened(
    model: nn.Module,
    channels: Sequence[Channels],
    off: Sequence[tuple[int, ...]],
    groups: Mapping[str, int],
) -> tuple[list[tuple[int, ...]], dict[str, int]]:
    """Return those units of `off` that may go together, and the groups that are left."""
    chosen = [set(units) for units in off]
    left = dict(groups)
    news = True
    while news:
        news = False
        for name, count in groups.items():
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            kept = [_kept(channels, chosen, f"{name}.weight", k, weight.shape[k]) for k in (0, 1)]
            sums = [mask.reshape(count, -1).sum(1) for mask in kept]
            alive = (sums[0] > 0) | (sums[1] > 0)
            left[name] = int(alive.sum())
            for axis, own in enumerate(sums):
                short = (alive & (own < own.max())).nonzero()[:, 0].tolist()
                for group in short:
                    missing = int(own.max() - own[group])
                    width = weight.shape[axis] // count
                    span = range(group * width, (group + 1) * width)
                    _restore(channels, chosen, f"{name}.weight", axis, span, missing)
                news = news or bool(short)
                if short:
                    break
    return [tuple(sorted(units)) for units in chosen], left


def whole_groups(model: nn.Module, one: Channels, units: set[int]) -> set[int]:
    """Return the units that fill groups of the group normalisations that they go through."""
    for name, (_, positions) in one.family.axes.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, nn.GroupNorm):
            continue
        full = torch.zeros(module.num_channels, dtype=torch.bool, device="cpu")
        full[positions[sorted(units)].flatten()] = True
        full = full.reshape(module.num_groups, -1).all(1)
        group_of = positions // (module.num_channels // module.num_groups)
        units = {k for k in units if bool(full[group_of[k]].all())}
    return units


def _kept(
    channels: Sequence[Channels], chosen: Sequence[set[int]], name: str, axis: int, size: int
) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool, device="cpu")
    for one, units in zip(channels, chosen, strict=True):
        own, positions = one.family.axes.get(name, (-1, None))
        if own == axis and units:
            mask[positions[sorted(units)].flatten()] = False
    return mask


def _restore(
    channels: Sequence[Channels],
    chosen: Sequence[set[int]],
    name: str,
    axis: int,
    span: range,
    missing: int,
) -> None:
    """Let so many units stay that have an entry in the span."""
    for one, units in zip(channels, chosen, strict=True):
        own, positions = one.family.axes.get(name, (-1, None))
        if own != axis:
            continue
        for unit in sorted(units):
            inside = sum(k in span for k in positions[unit].tolist())
            if inside and missing > 0:
                units.discard(unit)
                missing -= inside
