"""Operations between layers: which changes of the channels they commute with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from dln_geometry.learning.architecture.tracing import TracedNetwork

# An operation may commute with factors of single channels ("positive"), linear combinations of
# channels ("mixing"), the same shift of all channels ("shift"), permutations ("permute").
_ALL = frozenset({"positive", "mixing", "shift", "permute"})
_LINEAR = frozenset({"positive", "mixing", "permute"})
_HOMOGENEOUS = frozenset({"positive", "permute"})

# Elementwise, and neither linear nor homogeneous.
_POINTWISE = (
    *("elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid", "softplus", "hardtanh"),
    *("relu6", "hardswish", "hardsigmoid", "logsigmoid", "softsign"),
    *("tanhshrink", "softshrink", "hardshrink"),
)
_POOLS = ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
_SIZED_POOLS = tuple(f"{pool}{d}d" for pool in _POOLS for d in (1, 2, 3))
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
_SOFTMAX = ("softmax", "log_softmax")

# Operations that go by one name here.
_SAME = {
    **dict.fromkeys(_DROPOUTS, "dropout"),
    **dict.fromkeys(("iadd", "add_"), "add"),
    **dict.fromkeys(("imul", "mul_"), "mul"),
    **dict.fromkeys(("truediv", "div_"), "div"),
    **dict.fromkeys(("contiguous", "clone"), "identity"),
    **{"relu_": "relu", "log_softmax": "softmax", "reshape": "view"},
}


def _modules(names: Iterable[str]) -> dict[Any, str]:
    kinds = {key.lower(): kind for key, kind in vars(nn).items() if isinstance(kind, type)}
    return {kinds[name.replace("_", "")]: _SAME.get(name, name) for name in names}


def _functions(names: Iterable[str], *spaces: Any) -> dict[Any, str]:
    pairs = ((getattr(space, name, None), name) for space in spaces for name in names)
    return {function: _SAME.get(name, name) for function, name in pairs if function is not None}


_ELEMENTWISE = (*_POINTWISE, *_SOFTMAX, "relu")
_MODULES = _modules(
    (*_ELEMENTWISE, *_SIZED_POOLS, *_DROPOUTS, "identity", "leaky_relu", "prelu", "flatten")
)
_FUNCTIONS = {
    **_functions(("add", "iadd", "mul", "imul", "truediv", "getitem"), operator),
    **_functions(("add", "mul", "div", "flatten", "mean", "transpose"), torch),
    **_functions((*_ELEMENTWISE, *_SIZED_POOLS, "leaky_relu", "relu_"), functional, torch),
    **_functions(_DROPOUTS, functional),
}
_METHODS = {
    name: _SAME.get(name, name)
    for name in (
        *(*_ELEMENTWISE, "relu_", "flatten", "mean", "transpose", "add", "add_", "mul", "mul_"),
        *("div", "div_", "contiguous", "clone", "view", "reshape"),
    )
}

# Operations that leave the channels in place and commute with the same, whatever their arguments.
_PASSES = {
    "identity": _ALL,
    "relu": _HOMOGENEOUS,
    "leaky_relu": _HOMOGENEOUS,
    **dict.fromkeys(_POINTWISE, frozenset({"permute"})),
}


@dataclass(frozen=True)
class Layout:
    """Where the channels of a value are: the axis before `spatial` spatial ones.

    With ``spatial=None`` they are the last axis, in blocks of `block` entries (`None` if unknown).
    """

    spatial: int | None = None
    block: int | None = 1
    pooled: bool = False  # whether every spatial axis has one entry only


@dataclass(frozen=True)
class Passage:
    """The changes that pass through an operation, and where the channels are afterwards."""

    passes: frozenset[str]
    layout: Layout
    carried: str | None = None  # name of a parameter with one entry a channel


def operation(network: TracedNetwork, node: fx.Node) -> str | None:
    """Return the name of a known operation, the same for module, function and method."""
    if node.op == "call_module":
        module = network.module(node)
        return None if module is None or has_hooks(module) else _MODULES.get(type(module))
    return {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {}).get(node.target)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether hooks may change what a module takes or returns."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(not getattr(h, "changes_nothing", False) for kind in hooks for h in kind.values())


def passage(
    network: TracedNetwork, source: fx.Node, node: fx.Node, layout: Layout
) -> Passage | None:
    """Return the changes that pass from `source` through `node`, `None` if unknown."""
    name = operation(network, node)
    if name == "add":
        # A number shifts every channel alike, a tensor does not; a common shift passes both.
        others = [a for a in (*node.args, *node.kwargs.values()) if a is not source]
        constant = all(isinstance(a, int | float) for a in others)
        return Passage(frozenset({"shift", "permute"} if constant else {"shift"}), layout)
    if name in ("mul", "div"):
        numbers = [isinstance(a, int | float) for a in node.args]
        first = node.args[:1] == (source,) and all(numbers[1:])
        return Passage(_ALL, layout) if first or (name == "mul" and numbers[:1] == [True]) else None
    if name is None or node.args[:1] != (source,):
        return None
    if name in _PASSES:
        return Passage(_PASSES[name], layout)
    if name in _SIZED_POOLS:
        return _pool(network.module(node), node, name, layout)
    if name == "dropout":
        # The mask commutes with factors, but neither with mixtures nor with permutations.
        drops = _drops(network.module(node), node)
        return Passage(frozenset({"positive"}) if drops else _ALL, layout)
    if name == "prelu":
        weight = network.root.get_submodule(str(node.target)).get_parameter("weight")
        carried = f"{node.target}.weight" if weight.numel() > 1 else None
        return Passage(_HOMOGENEOUS, layout, carried)
    after = _LAYOUTS[name](network, source, node, layout) if name in _LAYOUTS else None
    return None if after is None else Passage(_ALL, after)


def argument(node: fx.Node, index: int, key: str, default: Any) -> Any:
    """Return an argument of a call, given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(key, default)


def _drops(module: Any, node: fx.Node) -> bool:
    if module is not None:
        return bool(module.training and module.p > 0)
    return bool(argument(node, 2, "training", True)) and argument(node, 1, "p", 0.5) != 0


def _pool(module: Any, node: fx.Node, name: str, layout: Layout) -> Passage | None:
    dimensions = int(name[-2])
    if layout.spatial is None or dimensions > layout.spatial:
        return None
    if getattr(module, "return_indices", False) or node.kwargs.get("return_indices", False):
        return None
    if name.startswith("adaptive"):
        size = module.output_size if module is not None else argument(node, 1, "output_size", None)
        pooled = set(size if isinstance(size, tuple | list) else (size,)) == {1}
        layout = replace(layout, pooled=pooled and dimensions == layout.spatial)
    if "max" in name:
        return Passage(_HOMOGENEOUS, layout)
    # A plain average pads zeros: it does not shift all entries alike.
    return Passage(_ALL if name.startswith("adaptive") else _LINEAR, layout)


def _flatten(network: TracedNetwork, source: fx.Node, node: fx.Node, at: Layout) -> Layout | None:
    module = network.module(node)
    if isinstance(module, nn.Flatten):
        start, end = module.start_dim, module.end_dim
    else:
        start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    return _flat_from(network, source, at, start) if end == -1 else None


def _view(network: TracedNetwork, source: fx.Node, node: fx.Node, at: Layout) -> Layout | None:
    """Read ``x.view(x.size(0), -1)`` and ``x.view(x.shape[0], -1)``, which keep the first axis."""
    if len(node.args) != 3 or node.args[2] != -1 or not isinstance(node.args[1], fx.Node):
        return None
    first = node.args[1]
    if first.op == "call_method":
        keeps = first.target == "size" and first.args[1:] == (0,)
    else:
        keeps = first.target is operator.getitem and first.args[1] == 0
        keeps = keeps and isinstance(first.args[0], fx.Node)
    return _flat_from(network, source, at, 1) if keeps else None


def _flat_from(network: TracedNetwork, source: fx.Node, at: Layout, start: Any) -> Layout | None:
    """Return the layout after all axes from `start` on became one."""
    rank = network.ranks.get(source)
    if at.spatial is None:
        # A matrix does not change; the channels of other values would not be in blocks.
        return at if start in (1, -1) and rank in (None, 2) else None
    channel = 1 if rank is None else rank - at.spatial - 1
    if start == channel == 1:
        return Layout(None, 1 if at.pooled or at.spatial == 0 else None)
    return Layout(1, 1, at.pooled) if start == channel + 1 == 2 and at.spatial else None


def _mean(network: TracedNetwork, source: fx.Node, node: fx.Node, at: Layout) -> Layout | None:
    dims = argument(node, 1, "dim", None)
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, tuple | list) or argument(node, 2, "keepdim", False):
        return None
    rank = network.ranks.get(source)
    if at.spatial is None:
        over_channels = any(d >= -1 if rank is None else d % rank == rank - 1 for d in dims)
        return None if over_channels else at
    rank = at.spatial + 2 if rank is None else rank
    over_all = {d % rank for d in dims} == set(range(rank - at.spatial, rank))
    return Layout() if over_all else None


def _transpose(network: TracedNetwork, source: fx.Node, node: fx.Node, at: Layout) -> Layout | None:
    axes = set(node.args[1:])
    rank = 3 if at.spatial == 1 else network.ranks.get(source)
    if axes != {-1, -2} and not (axes == {1, 2} and rank == 3):
        return None
    if at.spatial is None and at.block == 1:
        return Layout(1)
    return Layout() if at.spatial == 1 else None


def _getitem(network: TracedNetwork, source: fx.Node, node: fx.Node, at: Layout) -> Layout | None:
    index, rank = node.args[1], network.ranks.get(source)
    index = index if isinstance(index, tuple) else (index,)
    if at.spatial is not None or rank is None or len(index) >= rank:
        return None
    return at if all(isinstance(i, int | slice) for i in index) else None


# Linear operations that move the channels: ``rule(network, source, node, layout)`` -> new layout.
_LAYOUTS: dict[str, Callable[[TracedNetwork, fx.Node, fx.Node, Layout], Layout | None]] = {
    "flatten": _flatten,
    "view": _view,
    "mean": _mean,
    "transpose": _transpose,
    "getitem": _getitem,
}
