"""Keep the symmetric groups that do not change the output of a module on an example."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dln_geometry.learning.architecture.groups import SymmetricGroup

# Largest response to a group relative to that to a random direction: the epsilon of a normalisation
# makes far less than this of a true symmetry.
_ALLOWED = 0.05
_SIZE = 0.1


def confirmed(
    module: nn.Module, groups: Sequence[SymmetricGroup], example_input: Any, *, logits: bool
) -> list[SymmetricGroup]:
    """Return the groups that do not change the output of a module.

    A random element of each moves the parameters, in double precision; the output must change far
    less than after a random step of the same length in the same parameters. With `logits`, the
    mean over the last axis (or the second) is ignored.
    """
    if not groups:
        return []
    clone = copy.deepcopy(module).double()
    arguments = tuple(
        a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in example_input
    )
    params = {name: p.detach() for name, p in clone.named_parameters()}
    generator = torch.Generator().manual_seed(0)

    def outputs(at: dict[str, Tensor]) -> Tensor:
        buffers = {name: b.clone() for name, b in clone.named_buffers()}
        # fork_rng restores the generators: dropout draws the same mask every time.
        with torch.random.fork_rng(), torch.no_grad():
            value = functional_call(clone, (at, buffers), arguments)
        found = _float_tensors(value)
        return torch.cat([(_without_shift(t) if logits else t).flatten() for t in found])

    base = outputs(params)
    kept = []
    for group in groups:
        element = group.random_element(params, generator)
        if isinstance(element, tuple):
            element = tuple(_SIZE * a for a in element)
        elif group.kind != "permutation":
            element = _SIZE * element
        moved = group.act(params, element)
        chance = dict(params)
        for name in group.names:
            step = moved[name] - params[name]
            noise = torch.randn(step.shape, generator=generator, dtype=step.dtype).to(step.device)
            chance[name] = params[name] + noise * (step.norm() / noise.norm().clamp(min=1e-300))
        response, reference = ((outputs(at) - base).norm() for at in (moved, chance))
        if bool(response <= _ALLOWED * reference + 1e-12 * base.norm()):
            kept.append(group)
    return kept


def _float_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [t for item in value for t in _float_tensors(item)]
    return []


def _without_shift(t: Tensor) -> Tensor:
    """Subtract the mean over the classes, on the second axis and on the last."""
    if t.ndim > 2:
        t = t - t.mean(1, keepdim=True)
    return t - t.mean(-1, keepdim=True) if 0 < t.ndim < 4 else t
