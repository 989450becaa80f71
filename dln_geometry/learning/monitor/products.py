"""Inner products of parameters, gradients and buffers, as the charges of a training loop need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import Part

__all__ = ["Products", "Snapshot", "StepOptions", "wide_dtype"]


@dataclass(frozen=True)
class StepOptions:
    """The options of one parameter group of ``torch.optim.SGD``, as they are in one step."""

    lr: Any
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> StepOptions:
        """Read the options of a parameter group, which a scheduler may have changed."""
        return cls(
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
        )


class Products:
    """Which sums of products are wanted: over a whole parameter, or one for each row of an axis.

    All sums stand in one vector, parameter after parameter.

    Parameters
    ----------
    parts : iterable of Part
        The parts that sums are needed for.
    params : dict of str to Tensor
        The parameters, for their shapes.
    """

    def __init__(self, parts: Iterable[Part], params: Mapping[str, Tensor]) -> None:
        parts = list(parts)
        divided = {
            (p.name, p.axis) for p in parts if p.units > 1 or p.block < params[p.name].shape[p.axis]
        }
        self.keys = sorted(divided)
        # A parameter that is read as a whole alone takes one number and the fastest pass.
        rowed = {name for name, _ in divided}
        self.whole = sorted({p.name for p in parts} - rowed)
        self._offset: dict[tuple[str, int | None], int] = {}
        total = len(self.whole)
        self._offset.update({(name, None): k for k, name in enumerate(self.whole)})
        self._lines = [name for name, axis in self.keys if axis == 0]
        self._columns = [(name, axis) for name, axis in self.keys if axis != 0]
        self.keys = [*((name, 0) for name in self._lines), *self._columns]
        for name, axis in self.keys:
            self._offset[name, axis] = total
            total += params[name].shape[axis]
        self.total = total
        self._rows = {(name, axis): params[name].shape[axis] for name, axis in self.keys}
        self.device = next(iter(params.values())).device
        self.dtype = wide_dtype(self.device)
        self._together = len({p.device for p in params.values()}) == 1

    def indices(self, part: Part) -> Tensor:
        """Return the places of the sums that make up each unit, shape (units, sums of a unit)."""
        if (part.name, None) in self._offset:
            return torch.tensor([[self._offset[part.name, None]]])
        axis = part.axis
        if (part.name, axis) not in self._offset:
            # Whole, of a parameter whose rows are wanted along another axis.
            axis = next(a for name, a in self.keys if name == part.name)
            count = self._rows[part.name, axis]
            return self._offset[part.name, axis] + torch.arange(count).reshape(1, count)
        start = self._offset[part.name, axis] + part.start
        return start + torch.arange(part.units * part.block).reshape(part.units, part.block)

    def squares(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the sums of squares, shape (total,), in double precision where there is one."""
        # Few operations: in small networks they take longer than the sums. What is still to be
        # squared stands before the others.
        pieces: list[Tensor] = []
        if self.whole:
            found = [t for t in map(tensors.get, self.whole) if t is not None]
            norms = torch._foreach_norm(found) if found else ()
            if len(found) < len(self.whole):
                left = iter(norms)
                norms = [
                    self._zeros(()) if tensors.get(name) is None else next(left)
                    for name in self.whole
                ]
            pieces.append(torch.stack([self._here(n) for n in norms]))
        for name in self._lines:
            x = tensors.get(name)
            if x is None:
                x = self._zeros((self._rows[name, 0],))
            # Over one axis: several are slow, whatever their strides.
            line = x if x.ndim == 1 else torch.linalg.vector_norm(x.flatten(1), dim=1)
            pieces.append(self._here(line))
        values = torch.cat(pieces).to(self.dtype).square_()
        if not self._columns:
            return values
        sums = [values]
        for key in self._columns:
            x = tensors.get(key[0])
            if x is None:
                sums.append(self._zeros((self._rows[key],)))
            else:
                sums.append(self._here(_row_sums(x.square(), key[1])))
        return torch.cat(sums)

    def dots(
        self, first: Mapping[str, Tensor | None], second: Mapping[str, Tensor | None]
    ) -> Tensor:
        """Return the sums of products of two sets of tensors, as `squares` does."""
        pieces: list[Tensor] = []
        for name in self.whole:
            x, y = first.get(name), second.get(name)
            if x is None or y is None:
                pieces.append(self._zeros((1,)))
            else:
                pieces.append(self._wide(torch.dot(x.reshape(-1), y.reshape(-1))).reshape(1))
        products: dict[str, Tensor] = {}
        for key in self.keys:
            name = key[0]
            x, y = first.get(name), second.get(name)
            if x is None or y is None:
                pieces.append(self._zeros((self._rows[key],)))
                continue
            if name not in products:
                products[name] = x * y
            pieces.append(self._wide(_row_sums(products[name], key[1])))
        return torch.cat(pieces)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _wide(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self.dtype)

    def _here(self, x: Tensor) -> Tensor:
        return x if self._together else x.to(self.device)


def _row_sums(x: Tensor, axis: int | None) -> Tensor:
    """Return the sums over all axes but one; along the fast strides, one axis at a time."""
    if x.ndim == 1:
        return x
    if axis == 0:
        return x.flatten(1).sum(1)
    x = x.sum(0)
    return x if x.ndim == 1 else _row_sums(x, (axis or 0) - 1)


class Snapshot:
    """Parameters, gradients and buffers at one moment of a step; sums are taken once.

    The kinds are "q" (parameters), "g" (gradients of what is minimised), "v" (buffers of the
    momentum) and "d" (gradients with decay).
    """

    def __init__(
        self,
        products: Products,
        params: Mapping[str, Tensor],
        state: Mapping[Any, Mapping[str, Any]],
        options: Mapping[str, StepOptions],
    ) -> None:
        self.products = products
        self.options = options
        self._tensors: dict[str, dict[str, Tensor | None]] = {}
        self._params = params
        self._state = state
        self._sums: dict[tuple[str, str], Tensor] = {}

    def tensors(self, kind: str) -> dict[str, Tensor | None]:
        """Return the tensors of one kind by the names of the parameters."""
        if kind not in self._tensors:
            self._tensors[kind] = {name: self._made(kind, name) for name in self._params}
        return self._tensors[kind]

    def _made(self, kind: str, name: str) -> Tensor | None:
        if kind == "q":
            return self._params[name].detach()
        if kind == "v":
            parameter = self._params[name]
            return (
                self._state[parameter].get("momentum_buffer") if parameter in self._state else None
            )
        gradient, options = self._params[name].grad, self.options[name]
        if gradient is None:
            return None
        gradient = -gradient if options.maximize else gradient
        if kind == "g" or not options.weight_decay:
            return gradient
        return gradient.add(self._params[name].detach(), alpha=options.weight_decay)

    def sums(self, first: str, second: str) -> Tensor:
        """Return the sums of products of two kinds, in the order of `Products`."""
        key = (first, second)
        if key not in self._sums:
            if first == second:
                self._sums[key] = self.products.squares(self.tensors(first))
            else:
                self._sums[key] = self.products.dots(self.tensors(first), self.tensors(second))
        return self._sums[key]


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the type that charges are kept in: double, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
