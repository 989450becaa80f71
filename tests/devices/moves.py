"""Move the arguments of a call to a device, whatever holds the tensors."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dln_geometry as dln

Mover = Callable[[Tensor], Tensor]


def moved(x: Any, move: Mover, memo: dict[int, Any] | None = None) -> Any:
    """Return a copy of a structure whose tensors are moved: of modules, values and functions too.

    Functions of tests are made again with what they close over, and with the tensors among the
    globals that they name.
    """
    memo = {} if memo is None else memo
    if id(x) in memo:
        return memo[id(x)][0]
    found = _moved(x, move, memo)
    memo[id(x)] = (found, x)  # keeps x alive: its id may not be taken by another
    return found


def _moved(x: Any, move: Mover, memo: dict[int, Any]) -> Any:
    again = partial(moved, move=move, memo=memo)
    if isinstance(x, torch.nn.Module):
        twin = copy.deepcopy(x)
        memo[id(x)] = (twin, x)
        for part in twin.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    part._parameters[name] = again(value)
            for name, value in part._buffers.items():
                part._buffers[name] = again(value)
            for name, value in vars(part).items():
                if isinstance(value, Tensor):
                    setattr(part, name, again(value))
        return twin
    if isinstance(x, torch.nn.Parameter):
        return torch.nn.Parameter(move(x.detach()), x.requires_grad)
    if isinstance(x, Tensor):
        there = move(x.detach())
        return there.requires_grad_() if x.requires_grad else there
    if isinstance(x, tuple) and type(x) is not tuple:
        if hasattr(x, "_fields"):
            return type(x)(*map(again, x))
        return type(x)(tuple(map(again, x)))
    if isinstance(x, tuple | list | set):
        return type(x)(map(again, x))
    if isinstance(x, Mapping):
        return (
            type(x)({k: again(v) for k, v in x.items()})
            if type(x) is dict
            else {k: again(v) for k, v in x.items()}
        )
    if isinstance(x, torch.device) or (isinstance(x, str) and x == "cpu"):
        return move(torch.zeros(())).device
    if isinstance(x, partial):
        return partial(again(x.func), *map(again, x.args), **again(x.keywords))
    if isinstance(x, types.MethodType):
        return types.MethodType(x.__func__, again(x.__self__))
    if isinstance(x, types.FunctionType) and x.__module__.startswith("tests"):
        return _function(x, again)
    if isinstance(x, torch.Generator):
        twin = torch.Generator(device=again(x.device))
        twin.set_state(x.get_state())
        return twin
    if isinstance(x, type | types.ModuleType) or not hasattr(x, "__dict__"):
        return x
    if isinstance(x, types.FunctionType | types.BuiltinFunctionType):
        return x
    return _with_attributes(copy.copy(x), x, again)


def _with_attributes(twin: Any, x: Any, again: Callable[[Any], Any]) -> Any:
    for name, value in vars(x).items():
        object.__setattr__(twin, name, again(value))
    return twin


def _function(f: types.FunctionType, again: Callable[[Any], Any]) -> Any:
    names = dict(f.__globals__)
    for name in f.__code__.co_names:
        if isinstance(value := names.get(name), Tensor | tuple | list | dict) or (
            type(value).__module__.startswith(("dln_geometry", "tests"))
            and not isinstance(value, type | types.ModuleType)
        ):
            names[name] = again(value)
    cells = tuple(types.CellType(again(cell.cell_contents)) for cell in f.__closure__ or ())
    twin = types.FunctionType(f.__code__, names, f.__name__, f.__defaults__, cells)
    twin.__kwdefaults__ = again(f.__kwdefaults__)
    twin.__defaults__ = again(f.__defaults__)
    return twin


def tensors_of(x: Any, name: str = "", seen: set[int] | None = None) -> dict[str, Tensor]:
    """Return all tensors in a result by the path that leads to them."""
    seen = set() if seen is None else seen
    if id(x) in seen:
        return {}
    seen.add(id(x))
    if isinstance(x, Tensor):
        return {name: x}
    if isinstance(x, dln.EndToEnd | dln.Collapsed):
        # Frames have signs of their own on the device.
        return {f"{name}.matrix": x.matrix}
    if isinstance(x, torch.nn.Module):
        return dict(x.named_parameters())
    items: list[tuple[Any, Any]] = []
    if isinstance(x, Mapping):
        items = list(x.items())
    elif isinstance(x, tuple | list):
        items = list(enumerate(x))
    elif type(x).__module__.startswith("dln_geometry") and hasattr(x, "__dict__"):
        items = [(k, v) for k, v in vars(x).items() if not k.startswith("_")]
    return {k: v for n, y in items for k, v in tensors_of(y, f"{name}.{n}", seen).items()}
