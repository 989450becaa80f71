"""Inner products of parameters, gradients and buffers, from which the charges follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture import Part


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
        return cls(*_read_options(group))


_read_options = itemgetter(*StepOptions.__dataclass_fields__)


class Products:
    """Sums of products over a whole parameter, or one for each row of an axis.

    All sums stand in one vector: whole parameters, then rows of the first axis, then of others.
    """

    def __init__(self, parts: Iterable[Part], params: Mapping[str, Tensor]) -> None:
        parts = list(parts)
        divided = sorted({
            (p.name, p.axis) for p in parts if p.units > 1 or p.block < params[p.name].shape[p.axis]
        })  # fmt: skip
        # A parameter that is only read as a whole takes one number and the fastest pass.
        self._whole = sorted({p.name for p in parts} - {name for name, _ in divided})
        self._lines = [name for name, axis in divided if axis == 0]
        self._columns = [key for key in divided if key[1] != 0]
        keys = [*((name, 0) for name in self._lines), *self._columns]
        # Number of sums of each parameter and axis, in their order; axis None is the whole one.
        self._rows: dict[tuple[str, int | None], int] = {(name, None): 1 for name in self._whole}
        self._rows.update({(name, axis): params[name].shape[axis] for name, axis in keys})
        starts = accumulate(self._rows.values(), initial=0)
        self._offset = dict(zip(self._rows, starts, strict=False))
        self.device = next(iter(params.values())).device
        self.dtype = wide_dtype(self.device)
        self._together = len({p.device for p in params.values()}) == 1

    def indices(self, part: Part) -> Tensor:
        """Return the places of the sums that make up each unit, shape (units, sums of a unit)."""
        key: tuple[str, int | None] = part.name, part.axis
        if key in self._offset:
            places = torch.arange(part.start, part.stop).reshape(part.units, part.block)
        else:
            # A whole parameter: its one sum, or the sums of its rows along another axis.
            key = next(k for k in self._rows if k[0] == part.name)
            places = torch.arange(self._rows[key])[None]
        return self._offset[key] + places

    def squares(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """Return the sums of squares, shape (total,), in double precision where there is one."""
        # Few operations: in small networks they take longer than the sums. Norms come first, and
        # are squared together.
        pieces: list[Tensor] = []
        if self._whole:
            found = [tensors.get(name) for name in self._whole]
            norms = torch._foreach_norm([self._zeros(()) if x is None else x for x in found])
            pieces.append(torch.stack([self._here(n) for n in norms]))
        for name in self._lines:
            x = tensors.get(name)
            if x is None:
                x = self._zeros((self._rows[name, 0],))
            # Over one axis: reductions over several are slow, whatever the strides.
            line = x if x.ndim == 1 else torch.linalg.vector_norm(x.flatten(1), dim=1)
            pieces.append(self._here(line))
        values = torch.cat(pieces).to(self.dtype).square_()
        if not self._columns:
            return values
        sums = [values]
        for name, axis in self._columns:
            x = tensors.get(name)
            if x is None:
                sums.append(self._zeros((self._rows[name, axis],)))
            else:
                sums.append(self._here(_row_sums(x.square(), axis)))
        return torch.cat(sums)

    def dots(
        self, first: Mapping[str, Tensor | None], second: Mapping[str, Tensor | None]
    ) -> Tensor:
        """Return the sums of products of two sets of tensors, as `squares` does."""
        pieces: list[Tensor] = []
        products: dict[str, Tensor] = {}
        for (name, axis), rows in self._rows.items():
            x, y = first.get(name), second.get(name)
            if x is None or y is None:
                pieces.append(self._zeros((rows,)))
            elif axis is None:
                pieces.append(self._wide(torch.dot(x.reshape(-1), y.reshape(-1))).reshape(1))
            else:
                if name not in products:
                    products[name] = x * y
                pieces.append(self._wide(_row_sums(products[name], axis)))
        return torch.cat(pieces)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _wide(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=self.dtype)

    def _here(self, x: Tensor) -> Tensor:
        return x if self._together else x.to(self.device)


def _row_sums(x: Tensor, axis: int) -> Tensor:
    """Return the sums over all axes but one; along the fast strides, one axis at a time."""
    if x.ndim == 1:
        return x
    return x.flatten(1).sum(1) if axis == 0 else _row_sums(x.sum(0), axis - 1)


class Snapshot:
    """Parameters, gradients and buffers at one moment of a step; each sum is computed once.

    The kinds are "q" (parameters), "g" (gradients, with a minus to maximise), "v" (buffers of the
    momentum) and "d" (gradients with decay).
    """

    def __init__(
        self,
        products: Products,
        params: Mapping[str, Tensor],
        state: Mapping[Any, Mapping[str, Any]],
        options: Mapping[str, StepOptions],
    ) -> None:
        self.products, self.options = products, options
        self._params, self._state = params, state
        self._tensors: dict[str, dict[str, Tensor | None]] = {}
        self._sums: dict[tuple[str, str], Tensor] = {}

    def tensors(self, kind: str) -> dict[str, Tensor | None]:
        """Return the tensors of one kind by the names of the parameters."""
        if kind not in self._tensors:
            self._tensors[kind] = {name: self._made(kind, name) for name in self._params}
        return self._tensors[kind]

    def _made(self, kind: str, name: str) -> Tensor | None:
        parameter, options = self._params[name], self.options[name]
        if kind == "q":
            return parameter.detach()
        if kind == "v":
            # Not `state[parameter]`, which would add a missing key to the optimiser's state.
            return self._state.get(parameter, {}).get("momentum_buffer")
        gradient = parameter.grad
        if gradient is not None and options.maximize:
            gradient = -gradient
        if gradient is None or kind == "g" or not options.weight_decay:
            return gradient
        return gradient.add(parameter.detach(), alpha=options.weight_decay)

    def sums(self, first: str, second: str) -> Tensor:
        """Return the sums of products of two kinds, in the order of `Products`."""
        key = (first, second)
        if key not in self._sums:
            x, y = self.tensors(first), self.tensors(second)
            self._sums[key] = self.products.squares(x) if x is y else self.products.dots(x, y)
        return self._sums[key]


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the type that charges are kept in: double, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
