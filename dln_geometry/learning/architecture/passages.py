"""What an operation between two layers does to the channels that pass through it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from dln_geometry.learning.architecture.tracing import Traced

__all__ = ["Layout", "Passage", "operation", "passage"]

# What passes: factors of single channels ("positive"), linear combinations of channels
# ("mixing"), the same shift of all channels ("shift"), permutations of channels ("permute").
_ALL = frozenset({"positive", "mixing", "shift", "permute"})
_LINEAR = frozenset({"positive", "mixing", "permute"})
_HOMOGENEOUS = frozenset({"positive", "permute"})

# Elementwise, and neither linear nor homogeneous.
_POINTWISE = (
    *("elu", "celu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid", "softplus", "hardtanh"),
    *("relu6", "hardswish", "hardsigmoid", "logsigmoid", "softsign"),
    *("tanhshrink", "softshrink", "hardshrink"),
)
_POSITIVE = ("relu", "leaky_relu")
_POOLS = ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool")
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")

_MODULES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.Flatten: "flatten",
    nn.Dropout: "dropout",
    nn.Dropout1d: "dropout",
    nn.Dropout2d: "dropout",
    nn.Dropout3d: "dropout",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "softmax",
    nn.LogSigmoid: "logsigmoid",
    **{
        kind: kind.__name__.lower()
        for kind in (
            *(nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
            *(nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Softsign),
            *(nn.Tanhshrink, nn.Softshrink, nn.Hardshrink),
        )
    },
    **{
        getattr(nn, f"{kind}{d}d"): f"{name}{d}d"
        for kind, name in zip(
            ("AvgPool", "MaxPool", "AdaptiveAvgPool", "AdaptiveMaxPool"), _POOLS, strict=True
        )
        for d in (1, 2, 3)
    },
}

_FUNCTIONS: dict[Any, str] = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    operator.truediv: "div",
    torch.div: "div",
    operator.getitem: "getitem",
    torch.flatten: "flatten",
    torch.mean: "mean",
    torch.transpose: "transpose",
    functional.softmax: "softmax",
    functional.log_softmax: "softmax",
    torch.softmax: "softmax",
    torch.log_softmax: "softmax",
    **{getattr(functional, name): "dropout" for name in _DROPOUTS},
    **{
        getattr(space, name): name
        for space in (functional, torch)
        for name in (*_POINTWISE, *_POSITIVE, "relu_")
        if hasattr(space, name)
    },
    **{
        getattr(space, f"{name}{d}d"): f"{name}{d}d"
        for space in (functional, torch)
        for name in _POOLS
        for d in (1, 2, 3)
        if hasattr(space, f"{name}{d}d")
    },
}

_METHODS = {
    **{name: name for name in (*_POINTWISE, "relu", "relu_", "flatten", "mean", "transpose")},
    **{"add": "add", "add_": "add", "mul": "mul", "mul_": "mul", "div": "div", "div_": "div"},
    **{"contiguous": "identity", "clone": "identity", "view": "view", "reshape": "view"},
    **{"softmax": "softmax", "log_softmax": "softmax"},
}


@dataclass(frozen=True)
class Layout:
    """Where the channels of a value are.

    With ``spatial=None`` they are the last axis, in blocks of ``block`` entries (`None` is not
    known); otherwise they are the axis before so many spatial ones.
    """

    spatial: int | None = None
    block: int | None = 1
    # Only one entry is left along every spatial axis.
    pooled: bool = False


@dataclass(frozen=True)
class Passage:
    """What passes through an operation, and where the channels are afterwards.

    `carried` is the name of a parameter with one entry a channel.
    """

    passes: frozenset[str]
    layout: Layout
    carried: str | None = None


def operation(traced: Traced, node: fx.Node) -> str | None:
    """Return the name of a known operation, the same for module, function and method."""
    if node.op == "call_module":
        module = traced.module(node)
        return None if module is None or has_hooks(module) else _MODULES.get(type(module))
    if node.op == "call_function":
        name = _FUNCTIONS.get(node.target)
    elif node.op == "call_method":
        name = _METHODS.get(str(node.target))
    else:
        return None
    return "relu" if name == "relu_" else name


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks may change what a module takes or returns."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def passage(traced: Traced, source: fx.Node, node: fx.Node, layout: Layout) -> Passage | None:
    """Return what passes from `source` through `node`, `None` if that is not known."""
    name = operation(traced, node)
    if name is None:
        return None
    if name == "add":
        # A number shifts every channel alike, and a tensor at least not by ours.
        others = [a for a in (*node.args, *node.kwargs.values()) if a is not source]
        constant = all(isinstance(a, int | float) for a in others)
        return Passage(frozenset({"shift", "permute"} if constant else {"shift"}), layout)
    if name in ("mul", "div"):
        if node.args[0] is source and all(isinstance(a, int | float) for a in node.args[1:]):
            return Passage(_ALL, layout)
        if name == "mul" and isinstance(node.args[0], int | float):
            return Passage(_ALL, layout)
        return None
    if node.args[:1] != (source,):
        return None
    if name == "view" and not _is_flattening(node):
        return None
    if sum(a is source for a in node.all_input_nodes) != 1:
        return None
    if name == "identity":
        return Passage(_ALL, layout)
    if name in _POSITIVE:
        return Passage(_HOMOGENEOUS, layout)
    if name in _POINTWISE:
        return Passage(frozenset({"permute"}), layout)
    if name == "dropout":
        # Its mask commutes with factors, but neither with mixtures nor with permutations.
        return Passage(
            frozenset({"positive"}) if _drops(traced.module(node), node) else _ALL, layout
        )
    if name == "prelu":
        weight = traced.root.get_submodule(str(node.target)).get_parameter("weight")
        carried = f"{node.target}.weight" if weight.numel() > 1 else None
        return Passage(_HOMOGENEOUS, layout, carried)
    if name.startswith(_POOLS):
        return _pool(traced.module(node), node, name, layout)
    moved = {"flatten": _flatten, "view": _view, "mean": _mean}.get(name)
    if moved is not None:
        after = moved(traced, source, node, layout)
        return None if after is None else Passage(_ALL, after)
    after = (
        {"transpose": _transpose, "getitem": _getitem}[name](traced, source, node, layout)
        if name in ("transpose", "getitem")
        else None
    )
    return None if after is None else Passage(_ALL, after)


def _argument(node: fx.Node, index: int, key: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(key, default)


def _drops(module: Any, node: fx.Node) -> bool:
    if module is not None:
        return bool(module.training and module.p > 0)
    return bool(_argument(node, 2, "training", True)) and _argument(node, 1, "p", 0.5) != 0


def _pool(module: Any, node: fx.Node, name: str, layout: Layout) -> Passage | None:
    dimensions = int(name[-2])
    if layout.spatial is None or dimensions > layout.spatial:
        return None
    indices = getattr(module, "return_indices", False) or node.kwargs.get("return_indices", False)
    if indices:
        return None
    if name.startswith("adaptive"):
        size = module.output_size if module is not None else _argument(node, 1, "output_size", None)
        pooled = set(size if isinstance(size, tuple | list) else (size,)) == {1}
        layout = replace(layout, pooled=pooled and dimensions == layout.spatial)
    if "max" in name:
        return Passage(_HOMOGENEOUS, layout)
    # Zero padding keeps a plain average of equal shifts from being one.
    return Passage(_ALL if name.startswith("adaptive") else _LINEAR, layout)


def _flatten(traced: Traced, source: fx.Node, node: fx.Node, layout: Layout) -> Layout | None:
    module = traced.module(node)
    if isinstance(module, nn.Flatten):
        start, end = module.start_dim, module.end_dim
    else:
        start, end = _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1)
    if end != -1:
        return None
    return _flattened(traced, source, layout, start)


def _view(traced: Traced, source: fx.Node, node: fx.Node, layout: Layout) -> Layout | None:
    return _flattened(traced, source, layout, 1)


def _is_flattening(node: fx.Node) -> bool:
    """Whether a view keeps the first axis and flattens the others."""
    if len(node.args) != 3 or node.args[2] != -1:
        return False
    first: Any = node.args[1]
    if not isinstance(first, fx.Node):
        return False
    if first.op == "call_method":
        return first.target == "size" and first.args[1:] == (0,)
    shape = first.args[0] if first.args else None
    return bool(
        first.target is operator.getitem and first.args[1] == 0 and isinstance(shape, fx.Node)
    )


def _flattened(traced: Traced, source: fx.Node, layout: Layout, start: int) -> Layout | None:
    rank = traced.ranks.get(source)
    if layout.spatial is None:
        # A matrix stays what it is; of anything else the channels would not be in blocks.
        return layout if start in (1, -1) and rank in (None, 2) else None
    channel = 1 if rank is None else rank - layout.spatial - 1
    if start == channel == 1:
        return Layout(None, 1 if layout.pooled or layout.spatial == 0 else None)
    return Layout(1, 1, layout.pooled) if start == channel + 1 == 2 and layout.spatial else None


def _mean(traced: Traced, source: fx.Node, node: fx.Node, layout: Layout) -> Layout | None:
    dims = _argument(node, 1, "dim", None)
    if isinstance(dims, int):
        dims = (dims,)
    if not isinstance(dims, tuple | list) or _argument(node, 2, "keepdim", False):
        return None
    rank = traced.ranks.get(source)
    if layout.spatial is None:
        if rank is None:
            return layout if all(d < -1 for d in dims) else None
        return layout if all(d % rank != rank - 1 for d in dims) else None
    rank = layout.spatial + 2 if rank is None else rank
    if {d % rank for d in dims} != set(range(rank - layout.spatial, rank)):
        return None
    return Layout(None, 1)


def _transpose(traced: Traced, source: fx.Node, node: fx.Node, layout: Layout) -> Layout | None:
    axes = set(node.args[1:])
    rank = 3 if layout.spatial == 1 else traced.ranks.get(source)
    if axes != {-1, -2} and not (axes == {1, 2} and rank == 3):
        return None
    if layout.spatial is None and layout.block == 1:
        return Layout(1)
    return Layout(None, 1) if layout.spatial == 1 else None


def _getitem(traced: Traced, source: fx.Node, node: fx.Node, layout: Layout) -> Layout | None:
    index, rank = node.args[1], traced.ranks.get(source)
    index = index if isinstance(index, tuple) else (index,)
    if layout.spatial is not None or rank is None or len(index) >= rank:
        return None
    plain = all(isinstance(i, int | slice) for i in index)
    return layout if plain else None
