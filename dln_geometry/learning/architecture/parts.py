"""Slices of one parameter that the units of a group own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dln_geometry.learning.functional import Tensors
from dln_geometry.support import as_count, shown


@dataclass(frozen=True)
class Part:
    """Slices of one parameter along one axis, one for each unit of a group.

    Unit u owns the indices ``start + u * block, ..., start + (u + 1) * block - 1`` of `axis`. With
    `inner`, each index is a run of so many entries (channels of a flattened image); with `span`, so
    many axes from `axis` on count as one (heads and their entries).

    Parameters
    ----------
    name : str
        Name of the parameter, as in ``named_parameters()``.
    axis, units, block, start, inner, span : int
        Axis (not negative), units, indices of each, first entry, entries of an index, and axes.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> part = learning.Part("weight", axis=1, units=3, block=2)
    >>> part.slices(torch.arange(12.0).reshape(2, 6))[1].tolist()
    [[2.0, 8.0], [3.0, 9.0]]
    """

    name: str
    axis: int
    units: int
    block: int = 1
    start: int = 0
    inner: int = 1
    span: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        for field in ("axis", "units", "block", "start", "inner", "span"):
            least = 0 if field in ("axis", "start") else 1
            object.__setattr__(self, field, as_count(getattr(self, field), field, least))

    @property
    def stop(self) -> int:
        """One past the last entry that a unit owns."""
        return self.start + self.units * self.block * self.inner

    def _require(self, shape: Sequence[int], name: str) -> None:
        """Refuse the shape of a tensor that does not have the part."""
        own = tuple(shape or (1,))[self.axis : self.axis + self.span]
        if len(own) < self.span or self.stop > math.prod(own):
            required = f"at least {self.stop} entries along axis {self.axis}"
            raise ValueError(f"{name} must have {required}, got shape {tuple(shape)}")

    def _along(self, tensor: Tensor) -> Tensor:
        """Return the tensor with its axis first; a view where possible."""
        return tensor.flatten(self.axis, self.axis + self.span - 1).movedim(self.axis, 0)

    def entries(self, tensor: Tensor) -> Tensor:
        """Return what the part is a part of, with all axes of the parameter."""
        return tensor

    def slices(self, tensor: Tensor) -> Tensor:
        """Return the slices of the units, shape (units, block, rest); a view where possible."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensor must be a torch.Tensor, got {shown(tensor)}")
        self._require(tensor.shape, "tensor")
        moved = self._along(tensor)[self.start : self.stop]
        # -1 would be ambiguous for an empty tensor.
        return moved.reshape(self.units, self.block, self.inner * moved[0].numel())

    def replaced(self, tensor: Tensor, slices: Tensor) -> Tensor:
        """Return the tensor with other slices, shape (units, block, rest); nothing in place."""
        moved = self._along(tensor)
        own = slices.reshape(self.stop - self.start, *moved.shape[1:])
        whole = torch.cat([moved[: self.start], own, moved[self.stop :]]).movedim(0, self.axis)
        return whole.reshape(tensor.shape).contiguous()  # a module may ask for a view of it

    def merged(self) -> Part:
        """Return the same indices as one unit."""
        return replace(self, units=1, block=self.units * self.block)

    def divided(self) -> Part:
        """Return the same indices, each a unit."""
        return replace(self, units=self.units * self.block, block=1)

    def check(self, params: Tensors) -> None:
        """Refuse parameters that do not have this part."""
        if not isinstance(params, Mapping):
            raise TypeError(f"params must be a dict of tensors, got {shown(params)}")
        if self.name not in params:
            raise ValueError(f"params must hold {self.name!r}, which a symmetric group names")
        self._require(params[self.name].shape, self.name)
