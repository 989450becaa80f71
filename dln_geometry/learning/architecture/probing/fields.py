"""The directions in which groups move parameters, and whether they change an output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import Part, SymmetricGroup
from dln_geometry.learning.architecture.probing.jacobian import Prober

# Responses are rounding if they are so many times smaller than those of noise in the same entries.
_FLAT = 1e-7
_ROUNDING = 1e-12


def fields_of(prober: Prober, group: SymmetricGroup, params: dict[str, Tensor]) -> Tensor:
    """Return the generators of a group at some parameters, one for each entry of its elements."""
    if group.kind == "translation" and not getattr(group, "folds", ()):
        return torch.cat([indicators(prober, part, params[part.name]) for part in group.first], 1)
    symmetry = group.symmetry(params)
    shape = symmetry.shape(params)
    own = {n: params[n] for n in params if n in prober.offsets}
    like = next(iter(own.values()))
    unit = torch.eye(math.prod(shape), dtype=like.dtype, device=like.device)
    directions = unit.reshape(-1, *shape)
    found = [
        prober.flat(torch.func.vmap(lambda s: symmetry.generated(params, s))(some))
        for some in directions.split(256)
    ]
    return torch.cat(found, 1)


def is_flat(rows: Tensor, fields: Tensor) -> bool:
    """Tell whether rows of a Jacobian show no response to directions, shape (total, count)."""
    response = (rows @ fields).norm(dim=0)
    usual = (rows.square().sum(0) @ fields.square()).sqrt()
    least = _ROUNDING * float(rows.norm()) * fields.norm(dim=0)
    return bool((response <= _FLAT * usual + least).all())


def indicators(prober: Prober, part: Part, like: Tensor) -> Tensor:
    """Return the translations of a part, shape (total, units * rest)."""
    shape = prober.shapes[part.name]
    places = torch.arange(shape.numel(), device=like.device).reshape(shape)
    moved = part.slices(places).movedim(1, 0).reshape(part.block, -1)
    out = like.new_zeros(prober.total, moved.shape[1])
    columns = torch.arange(moved.shape[1], device=like.device).expand_as(moved)
    out[prober.offsets[part.name] + moved, columns] = 1.0
    return out
