"""A copy of a module in double precision, called with other parameters, buffers and inputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from dln_geometry.learning.architecture.shaking import (
    in_double,
    kept_double,
    same_draws,
    shaken,
    shaken_data,
    with_some_rows,
)
from dln_geometry.learning.functional import bare_copy
from dln_geometry.support import normal

Call = tuple[tuple[Any, ...], dict[str, Any]]

# Where the epsilon of a normalisation stands among the arguments.
_EPSILONS = {torch.layer_norm: 4, torch.group_norm: 4, torch.rms_norm: 3}
_EPSILONS |= {torch.batch_norm: 7, torch.instance_norm: 7}
_NORMS = {functional.layer_norm, functional.group_norm, functional.rms_norm}
_NORMS |= {functional.batch_norm, functional.instance_norm, *_EPSILONS}


# Hand-written normalisations add a small number before a root, or after one.
_ROOTS = {"sqrt", "rsqrt", "std", "norm", "vector_norm"}
_LARGEST_EPSILON, _NEGLIGIBLE = 1e-2, 1e-150
_MOST_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Point:
    """Parameters, buffers and arguments of a module."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    call: Call

    def at(self, params: Mapping[str, Tensor]) -> Point:
        """Return the same with other parameters."""
        return Point(dict(params), self.buffers, self.call)

    def watched(self) -> Point:
        """Return the same with parameters whose influence on values can be seen."""
        real = {n: p for n, p in self.params.items() if p.is_floating_point() or p.is_complex()}
        return self.at({**self.params, **{n: p.detach().requires_grad_() for n, p in real.items()}})


class Subject:
    """A copy of a module, called with other parameters, buffers and arguments."""

    def __init__(self, module: nn.Module, call: Call, *, logits: bool) -> None:
        self.module, self.logits, self.call = bare_copy(module), logits, tree_map(_detached, call)
        self.module.requires_grad_(False)
        for name, p in self.module.named_parameters():
            if p.is_meta:
                raise ValueError(f"module must have values, got {name!r} on the meta device")
        tensors = [*self.module.parameters(), *tree_leaves(self.call)]
        if any(isinstance(x, Tensor) and x.is_nested for x in tensors):
            raise ValueError("inputs must be dense or sparse tensors, got a nested tensor")
        found = {x.device for x in tensors if isinstance(x, Tensor) and x.device.type == "cuda"}
        self.devices = [d.index for d in found]
        self.generator = torch.Generator(next(self.module.parameters()).device).manual_seed(0)
        self.most_calls: int | None = None
        self.epsilons: frozenset[int] | None = None
        self.slack, self.double, self.tables = 0.0, False, dict[int, int]()
        self.class_axis: int | None = None
        try:
            base, watch = self.evaluated(self.own())
        except Exception as error:
            raise ValueError(
                f"example_input must be what the module can be called on, got {_described(call)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        # A module may iterate until its values say so, which need not end at other parameters.
        self.most_calls = 1000 + 100 * watch.calls
        self.epsilons, self.slack = frozenset(watch.roots), watch.slack
        self.tables = watch.tables
        try:
            other = Subject.__new__(Subject)
            other.__dict__ |= self.__dict__
            other.double = True
            other.module = bare_copy(module)._apply(in_double).requires_grad_(False)
            other.call = tree_map(in_double, self.call)
            base, watch = other.evaluated(other.own().watched(), grad=True)
            self.module, self.call, self.double = other.module, other.call, True
        except Exception:
            # The module works in its own precision only.
            base, watch = self.evaluated(self.own())
        base = base.detach()
        self.epsilon, self.finite = watch.epsilon, float(torch.isfinite(base).double().mean())
        if not base.numel():
            raise ValueError(
                f"example_input must give outputs with entries, got {_described(call)}"
            )
        if self.finite == 0:
            raise ValueError("module must have finite outputs on example_input, got none")

    def own(self) -> Point:
        """Return the parameters, buffers and arguments of the module and the call."""
        params, buffers = self.module.named_parameters(), self.module.named_buffers()
        return Point({n: p.detach() for n, p in params}, dict(buffers), self.call)

    def shaken(self, size: float, spread: float, rows: bool) -> Point:
        """Return noisy parameters, buffers and inputs, in a batch of another size if asked for."""
        own, draw = self.own(), self.generator
        params = {
            n: shaken(p if size > 0 else -p, abs(size), draw, signs=abs(size) < 1)
            for n, p in own.params.items()
        }
        buffers = {n: shaken_data(b, abs(size), draw) for n, b in own.buffers.items()}
        call = with_some_rows(own.call) if rows else own.call
        if spread:
            call = tree_map(lambda x: shaken_data(x, spread, draw), call)
        return Point(params, buffers, call)

    def outputs(self, point: Point) -> Tensor:
        """Return all real outputs as one vector."""
        return self.evaluated(point)[0]

    def evaluated(self, point: Point, *, grad: bool = False) -> tuple[Tensor, _Watch]:
        """Return all real outputs as one vector, and what was noted on the way."""
        # Modules may write into their arguments and buffers.
        buffers = {name: b.clone() for name, b in point.buffers.items()}
        args, kwargs = tree_map(_copied, point.call)
        watch = _Watch(self.most_calls, self.epsilons, double=self.double)
        for k, x in enumerate(tree_leaves((args, kwargs))):
            if isinstance(x, Tensor) and x.layout is torch.strided and x.numel():
                watch.places[x.untyped_storage().data_ptr()] = k
        with (
            same_draws(self.devices),
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            warnings.catch_warnings(),
            watch,
        ):
            # The module warns its user when he calls it, not of parameters that are not his.
            warnings.simplefilter("ignore")
            value = functional_call(self.module, (point.params, buffers), args, kwargs)
        found = _float_tensors(value)
        if not found:
            raise TypeError(f"the module must return floating tensors, got {type(value).__name__}")
        device = found[0].device
        parts = [
            (_without_shift(t, self.class_axis) if self.logits else t).flatten().to(device)
            for t in found
        ]
        return torch.cat([t.double() for t in parts]), watch

    def gradient(self, point: Point, seen: Tensor) -> dict[str, Tensor] | None:
        """Return the gradient of a random combination of the outputs, `None` if there is none.

        Its squared norm is on average that of the Jacobian.
        """
        names = [n for n, p in point.params.items() if p.is_floating_point() or p.is_complex()]
        leaves = {n: point.params[n].detach().requires_grad_() for n in names}
        try:
            value = self.evaluated(point.at({**point.params, **leaves}), grad=True)[0][seen]
            weights = normal(value.shape, self.generator, value.dtype, value.device)
            found = torch.autograd.grad(
                value, list(leaves.values()), weights, allow_unused=True, materialize_grads=True
            )
        except RuntimeError:
            # Not differentiable; or too large for the memory.
            return None
        if not all(bool(torch.isfinite(g).all()) for g in found):
            return None
        rest = {n: torch.zeros_like(p) for n, p in point.params.items() if n not in leaves}
        return {**rest, **dict(zip(names, found, strict=True))}


class _Watch(TorchFunctionMode):
    """Count the calls of torch, note the coarsest precision, make epsilons negligible."""

    def __init__(
        self, most: int | None, epsilons: frozenset[int] | None = None, *, double: bool = False
    ) -> None:
        super().__init__()
        self.double = double
        self.most, self.calls, self.epsilon = most, 0, torch.finfo(torch.float64).eps
        self.epsilons, self.roots, self.slack = epsilons, set[int](), 0.0
        # Sums with a small number, and roots: whether one feeds the other is not known before.
        self._sums, self._roots = dict[int, tuple[Any, int]](), dict[int, Any]()
        self.slack_of = dict[int, float]()
        # Which arguments are rows of tables, by their numbers, and how many rows there are.
        self.places, self.tables = dict[int, int](), dict[int, int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        kwargs = dict(kwargs or {})
        self.calls += 1
        count = self.calls
        if self.most is not None and count > self.most:
            raise RuntimeError("the module takes far longer at other parameters")
        if func is functional.embedding:
            self._note_table(*args[:2])
            # The row of a padding has no gradient, though the outputs depend on it.
            args, kwargs = args[:2], {**kwargs, "padding_idx": None}
        elif func in _NORMS:
            args, kwargs = _without_epsilon(func, args, kwargs)
        elif self.epsilons is not None and count in self.epsilons:
            args = tuple(_NEGLIGIBLE if isinstance(a, float) else a for a in args)
        if self.double:
            func, args, kwargs = kept_double(func, args, kwargs)
        value = func(*args, **kwargs)
        if self.epsilons is None and isinstance(value, Tensor):
            self._note_root(getattr(func, "__name__", ""), args, value, count)
        seen = isinstance(value, Tensor) and value.is_floating_point()
        # What does not depend on parameters is the same after a move.
        if seen and (value.requires_grad or not torch.is_grad_enabled()):
            self.epsilon = max(self.epsilon, torch.finfo(value.dtype).eps)
        return value

    def _note_table(self, x: Any, table: Any) -> None:
        """Note that an argument, in whatever shape, is looked up in a table."""
        if isinstance(x, Tensor) and isinstance(table, Tensor) and x.layout is torch.strided:
            place = self.places.get(x.untyped_storage().data_ptr())
            if place is not None:
                rows = table.shape[0]
                self.tables[place] = min(rows, self.tables.get(place, rows))

    def _note_root(self, name: str, args: tuple[Any, ...], value: Tensor, count: int) -> None:
        """Note the numbers of the calls that add the epsilon of a hand-written normalisation."""
        name = name.strip("_")
        if name in ("add", "radd", "iadd"):
            small = [a for a in args if isinstance(a, float) and 0 < a <= _LARGEST_EPSILON]
            if small and any(id(a) in self._roots for a in args):
                self._note(count, small[0])
            elif small:
                self._sums[id(value)] = (value, count)
                self.slack_of[count] = small[0]
        elif name in _ROOTS or (
            name == "pow" and isinstance(args[-1], float) and abs(args[-1]) == 0.5
        ):
            self._roots[id(value)] = value
            if args and id(args[0]) in self._sums:
                number = self._sums[id(args[0])][1]
                self._note(number, self.slack_of[number])

    def _note(self, count: int, epsilon: float) -> None:
        self.roots.add(count)
        self.slack = max(self.slack, epsilon)


def _without_epsilon(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a normalisation with an epsilon that is lost in any variance."""
    place = _EPSILONS.get(func, len(args))
    x = args[0] if args else kwargs["input"]
    given = args[place] if len(args) > place else kwargs.get("eps")
    least = torch.finfo(x.dtype).tiny ** 0.5
    epsilon = least if given is None else min(given, least)
    if len(args) > place:
        return (*args[:place], epsilon, *args[place + 1 :]), kwargs
    return args, {**kwargs, "eps": epsilon}


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _copied(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _float_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        return [value.to_dense()] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = tuple(getattr(value, field.name) for field in fields(value))
    if isinstance(value, tuple | list):
        return [t for item in value for t in _float_tensors(item)]
    return []


def _without_shift(t: Tensor, axis: int | None) -> Tensor:
    """Subtract the mean over the classes, on an axis; by default on the second and on the last."""
    if axis is not None:
        axis = axis if t.ndim > 2 else -1
        return t - t.mean(axis, keepdim=True) if t.ndim else t
    if t.ndim > 2:
        t = t - t.mean(1, keepdim=True)
    return t - t.mean(-1, keepdim=True) if 0 < t.ndim < 4 else t


def _described(call: Call) -> str:
    """Return the types of arguments, and the shapes of tensors."""
    found = [
        f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        for x in tree_leaves(call)
    ]
    more = f", and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return ", ".join(found[:_MOST_SHOWN]) + more or "nothing"
