"""Cut the units that are off out of a model, in one go or family by family."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dln_geometry.learning.collapse.detection import MirrorFamily
from dln_geometry.learning.collapse.pruning.channels import Call, Channels, channels_of
from dln_geometry.learning.collapse.pruning.cutting import Off, cut_units
from dln_geometry.learning.collapse.pruning.grouped import (
    UNEVEN,
    close_groups,
    evened,
    opened_groups,
)
from dln_geometry.learning.collapse.pruning.silencing import (
    MIXED,
    change_of_outputs,
    outputs_of,
    silenced_units,
    with_biases,
)

Removed = list[tuple[MirrorFamily, tuple[int, ...]]]
Kept = list[tuple[MirrorFamily, tuple[int, ...], str]]


def pruned(model: nn.Module, call: Call) -> tuple[nn.Module, Removed, Kept]:
    """Return a model without the units that are off, those removed, and those kept with the reason.

    The model given, in evaluation mode, is used up.
    """
    expected = outputs_of(model, call)
    bare = [name for name, m in model.named_modules() if getattr(m, "bias", 0) is None]
    # Constants of units go into biases, and units have their share of these.
    with_biases(model)
    groups = opened_groups(model)
    channels = channels_of(model, call)
    off, stay = silenced_units(model, channels, call)
    chosen = [k for k, units in enumerate(off) if units]
    whole, done, why = _attempt(model, channels, off, groups, chosen, call, expected)
    refused: dict[int, str] = {}
    if whole is None:
        accepted: list[int] = []
        for k in chosen:
            trial, units, why = _attempt(
                model, channels, off, groups, [*accepted, k], call, expected
            )
            if trial is None:
                refused[k] = why
            else:
                accepted, whole, done = [*accepted, k], trial, units
        if whole is None:
            close_groups(model, groups)
            whole = model
    removed: Removed = []
    kept: Kept = []
    for k, one in enumerate(channels):
        if done[k]:
            removed.append((one.family, done[k]))
        if k in refused:
            kept.append((one.family, off[k], refused[k]))
        elif left := tuple(sorted(set(off[k]) - set(done[k]))):
            kept.append((one.family, left, UNEVEN))
        if stay[k]:
            kept.append((one.family, stay[k], MIXED))
    for name in bare:
        layer: Any = whole.get_submodule(name)
        if layer.bias is not None and not bool(layer.bias.any()):
            layer.bias = None
    return whole, removed, kept


def _attempt(
    model: nn.Module,
    channels: Sequence[Channels],
    off: Off,
    groups: Mapping[str, int],
    chosen: Sequence[int],
    call: Call,
    expected: Sequence[Tensor],
) -> tuple[nn.Module | None, Off, str]:
    """Return a copy without the units of some families, or `None` and why it cannot be."""
    trial = copy.deepcopy(model)
    own = [units if k in chosen else () for k, units in enumerate(off)]
    done, left = evened(model, channels, own, groups)
    try:
        cut_units(trial, channels, done)
        close_groups(trial, left)
        found = outputs_of(trial, call)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        return None, [() for _ in off], str(error).partition("\n")[0]
    why = change_of_outputs(found, expected)
    return (None, [() for _ in off], why) if why else (trial, done, "")
