"""Isometries O into named tensors: slots on axes, pieces on tensors, terms of several pieces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import as_count, shown


@dataclass(frozen=True, eq=False)
class Slot:
    """A linear map along one axis of a tensor: ``frame (x) I_b`` on s units of b rows each.

    `axis` is negative, `index` (int64, shape (s, b)) holds the rows, and `frame` orthonormal
    columns, shape (s, k); `None` is the identity.
    """

    axis: int
    index: Tensor
    frame: Tensor | None

    @property
    def size(self) -> int:
        """Number of coordinates along the axis."""
        s, b = self.index.shape
        return (s if self.frame is None else self.frame.shape[1]) * b

    def like(self, x: Tensor) -> Slot:
        """Return the slot on the device and with the precision of a tensor."""
        frame = None if self.frame is None else self.frame.to(x)
        return Slot(self.axis, self.index.to(x.device), frame)

    def pull(self, x: Tensor) -> Tensor:
        """Return the coordinates of `x` along the axis."""
        rows = x.movedim(self.axis, -1).index_select(-1, self.index.reshape(-1).to(x.device))
        if self.frame is not None:
            rows = rows.unflatten(-1, self.index.shape)
            rows = torch.einsum("...sb,sk->...kb", rows, self.frame.to(x)).flatten(-2)
        return rows.movedim(-1, self.axis)

    def push(self, c: Tensor, length: int) -> Tensor:
        """Return the tensor with `length` rows along the axis that has these coordinates."""
        rows = c.movedim(self.axis, -1)
        if self.frame is not None:
            rows = rows.unflatten(-1, (self.frame.shape[1], self.index.shape[1]))
            rows = torch.einsum("...kb,sk->...sb", rows, self.frame.to(c)).flatten(-2)
        index = self.index.reshape(-1).to(c.device)
        whole = rows.new_zeros(*rows.shape[:-1], length).index_add(-1, index, rows)
        return whole.movedim(-1, self.axis)


@dataclass(frozen=True, eq=False)
class Piece:
    """The part of an isometry that acts on one tensor: `weight` times a slot on some of its axes.

    `dense`, shape (number of entries, k), is the matrix itself and replaces the slots.
    """

    name: str
    shape: tuple[int, ...]
    slots: tuple[Slot, ...] = ()
    weight: float = 1.0
    dense: Tensor | None = None

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        if self.dense is not None:
            return self.dense.shape[1]
        return math.prod(self._sizes())

    def _sizes(self) -> list[int]:
        sizes = list(self.shape)
        for slot in self.slots:
            sizes[slot.axis] = slot.size
        return sizes

    def like(self, x: Tensor) -> Piece:
        """Return the part on the device and with the precision of a tensor."""
        dense = None if self.dense is None else self.dense.to(x)
        return replace(self, slots=tuple(slot.like(x) for slot in self.slots), dense=dense)

    def pull(self, x: Tensor) -> Tensor:
        """Return ``O^T x``, shape (..., k), for `x` of shape (..., *shape)."""
        for slot in self.slots:
            x = slot.pull(x)
        x = x.reshape(*x.shape[: x.ndim - len(self.shape)], -1)
        if self.dense is not None:
            x = x @ self.dense.to(x)
        return x if self.weight == 1.0 else self.weight * x

    def push(self, c: Tensor) -> Tensor:
        """Return ``O c``, shape (..., *shape), for `c` of shape (..., k)."""
        if self.dense is not None:
            c = c @ self.dense.to(c).mT
        x = (c if self.weight == 1.0 else self.weight * c).reshape(*c.shape[:-1], *self._sizes())
        for slot in reversed(self.slots):
            x = slot.push(x, self.shape[slot.axis])
        return x


# Parts that share their coordinates: O^T q is the sum over the parts.
Term = tuple[Piece, ...]
# By name, pairs of an axis, counted from the end, and positions, shape (d, b): rows of d units.
Layout = dict[str, list[tuple[int, Tensor]]]


def as_layout(axes: Any, params: Mapping[str, Tensor]) -> tuple[Layout, int]:
    """Return the layout for the `axes` of `Mirror.permutation`, and the number of units."""
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(f"axes must be a non-empty mapping from names to axes, got {axes!r}")
    layout: Layout = {}
    for name, value in axes.items():
        tensor = named(params, name)
        for entry in value if isinstance(value, list) else [value]:
            axis, positions = entry if isinstance(entry, tuple) else (entry, None)
            axis = _as_axis(axis, tensor.ndim, name)
            length, what = tensor.shape[axis], f"positions of {name!r}"
            index = torch.arange(length, device="cpu")
            if positions is not None:
                index = as_places(positions, length, what)
            if index.ndim > 2:
                raise ValueError(f"{what} must have shape (d,) or (d, b), got {tuple(index.shape)}")
            index = index if index.ndim == 2 else index.reshape(-1, 1)
            layout.setdefault(name, []).append((axis - tensor.ndim, index))
        if len({axis for axis, _ in layout[name]}) < len(layout[name]):
            raise ValueError(f"axes of {name!r} must be distinct, got {value!r}")
    counts = {name: [len(index) for _, index in entries] for name, entries in layout.items()}
    distinct = {count for several in counts.values() for count in several}
    if len(distinct) > 1:
        raise ValueError(f"axes must all have the same number of units, got {counts}")
    return layout, distinct.pop()


def terms_of_units(
    layout: Layout, params: Mapping[str, Tensor], units: Tensor, frame: Tensor | None
) -> list[Term]:
    """Return the terms of the reflection ``I - 2 F F^T`` of the units, on each of their axes.

    The frame F, shape (s, k), combines the s `units`. A tensor with units on several axes changes
    its sign in the span of F on an odd number of axes, times the complement on the others.
    """
    terms: list[Term] = []
    for name, entries in layout.items():
        shape = tuple(params[name].shape)
        inside = [Slot(axis, index[units], frame) for axis, index in entries]
        if len(entries) == 1:
            terms.append((Piece(name, shape, tuple(inside)),))
            continue
        choices = [[slot, *_complement(slot, shape[slot.axis])] for slot in inside]
        for choice in itertools.product(*choices):
            # The first slot of each choice is the inside.
            if sum(slot is first for slot, first in zip(choice, inside, strict=True)) % 2:
                terms.append((Piece(name, shape, choice),))
    return terms


def named(params: Mapping[str, Tensor], name: Any) -> Tensor:
    """Return the parameter of a name, a real floating tensor."""
    if not isinstance(params, Mapping):
        raise TypeError(
            f"params must be a mapping of names to tensors, got {type(params).__name__}"
        )
    if not isinstance(name, str):
        raise TypeError(f"names of parameters must be strings, got {shown(name)}")
    if name not in params:
        raise ValueError(f"params must hold {name!r}, got {', '.join(map(repr, params)) or 'none'}")
    tensor = params[name]
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"params[{name!r}] must be a real floating tensor, got {what}")
    return tensor


def _complement(slot: Slot, length: int) -> list[Slot]:
    """Return the non-empty slots of the orthogonal complement of a slot."""
    found = []
    if slot.frame is not None and slot.frame.shape[1] < slot.frame.shape[0]:
        basis = torch.linalg.qr(slot.frame, mode="complete").Q[:, slot.frame.shape[1] :]
        found.append(Slot(slot.axis, slot.index, basis))
    rest = torch.ones(length, dtype=torch.bool, device="cpu")
    rest[slot.index.reshape(-1)] = False
    if bool(rest.any()):
        found.append(Slot(slot.axis, rest.nonzero(), None))
    return found


def _as_axis(axis: Any, ndim: int, name: str) -> int:
    number = as_count(axis, f"axis of {name!r}", -ndim)
    if number >= ndim:
        raise ValueError(f"axis of {name!r} must lie between 0 and {ndim - 1}, got {axis}")
    return number % ndim


def as_places(places: Any, count: int, name: str) -> Tensor:
    """Return one or more distinct integers below `count`, in the shape in which they are given."""
    try:
        index = torch.as_tensor(places, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be integers, got {places!r}") from None
    if index.numel() == 0:
        raise ValueError(f"{name} must be one or more, got none")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {index.dtype}")
    index = index.to(torch.int64).cpu()
    outside = index[(index < 0) | (index >= count)]
    if outside.numel():
        raise ValueError(f"{name} must lie between 0 and {count - 1}, got {int(outside[0])}")
    if index.unique().numel() < index.numel():
        raise ValueError(f"{name} must be distinct, got {index.tolist()}")
    return index
