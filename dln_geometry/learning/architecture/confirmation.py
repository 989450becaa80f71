"""Try symmetric groups on a module: its output must stay as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dln_geometry.learning.architecture.groups import SymmetricGroup

__all__ = ["confirmed"]

# A symmetry up to the epsilon of a normalisation answers far less than a chance direction does.
_ALLOWED = 0.05
_SIZE = 0.1


def confirmed(
    module: nn.Module,
    groups: Sequence[SymmetricGroup],
    example_input: tuple[Any, ...],
    *,
    logits: bool,
) -> list[SymmetricGroup]:
    """Return the groups that leave the output of a module where it is.

    Each is tried by a random element, in double precision, against a random direction of the same
    length in the same parameters.

    Parameters
    ----------
    module : Module
        Not changed; random numbers of its forward pass (dropout) are the same in every try.
    groups : sequence of SymmetricGroup
        What is claimed.
    example_input : tuple
        Positional arguments of the module.
    logits : bool
        Whether a common shift of the last axis (or the second) does not count.
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
        # The same random numbers every time, and the generators as they were afterwards.
        with torch.random.fork_rng(), torch.no_grad():
            value = functional_call(clone, (at, buffers), arguments)
        found = _tensors(value)
        if logits:
            found = [_without_shift(t) for t in found]
        return torch.cat([t.flatten() for t in found])

    base = outputs(params)
    kept = []
    for group in groups:
        element = group.random_element(params, generator)
        if group.kind != "permutation":
            element = (
                tuple(_SIZE * a for a in element) if isinstance(element, tuple) else _SIZE * element
            )
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


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [t for item in value for t in _tensors(item)]
    return []


def _without_shift(t: Tensor) -> Tensor:
    """Remove what is common to all classes, on the second axis or on the last."""
    if t.ndim > 2:
        t = t - t.mean(1, keepdim=True)
    return t - t.mean(-1, keepdim=True) if 0 < t.ndim < 4 else t
