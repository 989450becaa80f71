"""The layers of a traced network, and the changes of channels that normalisations undo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.passages import Layout, has_hooks
from dln_geometry.learning.architecture.tracing import TracedNetwork
from dln_geometry.learning.layers import DeepLinear


@dataclass(frozen=True)
class Layer:
    """A map that is linear in its input and in its rows (with the bias)."""

    weight: str
    bias: str | None
    out_axis: int  # axis of the weight that counts the outputs
    outputs: int
    layout: Layout  # of the output channels, and of the input channels
    in_axis: int | None = None  # `None` if the inputs have no columns of their own
    inputs: int = 0
    block: int = 1  # indices of `in_axis` for each input (of depthwise convolutions)
    dense: bool = True  # whether rows can be mixed, and columns too if there are any
    additive: bool = True  # whether a common shift of all rows is a common shift of the outputs
    more: tuple[str, ...] = ()  # further parameters with one row an output, to be permuted too

    def rows(self, units: int | None = None) -> tuple[Part, ...]:
        """Return the rows of the weight and the entries of the bias, which make the outputs."""
        weight = self.row_of(self.weight, self.out_axis, units)
        return (weight,) if self.bias is None else (weight, self.row_of(self.bias, 0, units))

    def row_of(self, name: str, axis: int, units: int | None = None) -> Part:
        """Return the rows of one parameter, with the outputs divided among the units."""
        units = self.outputs if units is None else units
        return Part(name, axis, units, self.outputs // units)

    def columns(self, units: int, layout: Layout) -> Part | None:
        """Return the columns that read `units` channels in this layout, `None` if they do not."""
        if self.in_axis is None or layout.spatial != self.layout.spatial:
            return None
        if not self.inputs or (layout.block == 1 and units != self.inputs) or self.inputs % units:
            return None
        return Part(self.weight, self.in_axis, units, self.block * (self.inputs // units))


def layer_of(network: TracedNetwork, node: fx.Node) -> Layer | None:
    """Return the layer that a node calls, unless another operation uses its parameters too."""
    if node.op == "call_function" and node.target is functional.linear:
        return _functional_linear(network, node)
    module = network.module(node)
    if module is None or has_hooks(module):
        return None
    bias = network.parameter(node, "bias")
    if bias is None and isinstance(getattr(module, "bias", None), nn.Parameter):
        return None
    if parametrize.is_parametrized(module):
        return _weight_normed(network, node, module, bias)
    deep = type(module) is DeepLinear
    weight = network.parameter(node, f"weights.{module.depth - 1}" if deep else "weight")
    if weight is None:
        return None
    if type(module) in _NORMS:
        layout = _norm_layout(network, node, module)
        return None if layout is None else _rowwise(weight, bias, module.weight.numel(), layout)
    make = MAKERS.get(type(module))
    return None if make is None else make(module, weight, bias)


def reader_of(network: TracedNetwork, node: fx.Node, source: fx.Node) -> Layer | None:
    """Return the layer that a node calls on `source`, with the columns that read its channels."""
    module = network.module(node)
    kind = type(module)
    attends = kind is nn.MultiheadAttention
    read = 3 if attends else 1
    others: list[fx.Node] = []
    map_arg((*node.args[read:], *node.kwargs.values()), others.append)
    if tuple(node.args[:read]) != (source,) * read or source in others:
        return None
    if module is None or has_hooks(module) or not (attends or kind is DeepLinear):
        return layer_of(network, node)
    weight = network.parameter(node, "in_proj_weight" if attends else "weights.0")
    outputs = 3 * module.embed_dim if attends else module.widths[1]
    inputs = module.embed_dim if attends else module.in_features
    return None if weight is None else Layer(weight, None, 0, outputs, Layout(), 1, inputs)


def _functional_linear(network: TracedNetwork, node: fx.Node) -> Layer | None:
    arguments = (*node.args[1:], *node.kwargs.values())
    names = [network.parameter(a) if isinstance(a, fx.Node) else None for a in arguments]
    unknown = any(a is not None and n is None for a, n in zip(arguments, names, strict=True))
    if unknown or not names or names[0] is None or set(node.kwargs) - {"bias"}:
        return None
    return _linear(network.root.get_parameter(names[0]), names[0], names[1] if names[1:] else None)


def _linear(matrix: Tensor, weight: str, bias: str | None) -> Layer:
    return Layer(weight, bias, 0, matrix.shape[0], Layout(), 1, matrix.shape[1])


def _rowwise(weight: str, bias: str | None, outputs: int, layout: Layout, **more: Any) -> Layer:
    return Layer(weight, bias, 0, outputs, layout, dense=False, additive=False, **more)


def _embedding_layer(module: Any, weight: str, bias: str | None) -> Layer | None:
    special = module.padding_idx is not None or module.max_norm is not None
    if special or module.sparse or module.scale_grad_by_freq:
        return None
    return Layer(weight, None, 1, module.embedding_dim, Layout())


def _convolution(module: Any, weight: str, bias: str | None) -> Layer | None:
    layout = Layout(len(module.kernel_size))
    outputs, inputs = module.out_channels, module.in_channels
    if module.groups == 1:
        out_axis = 1 if module.transposed else 0
        return Layer(weight, bias, out_axis, outputs, layout, 1 - out_axis, inputs)
    if module.transposed:
        return None
    # Depthwise: every input has rows of its own.
    own = {"in_axis": 0, "inputs": inputs, "block": outputs // inputs}
    return _rowwise(weight, bias, outputs, layout, **(own if module.groups == inputs else {}))


MAKERS: dict[type[nn.Module], Callable[[Any, str, str | None], Layer | None]] = {
    nn.Linear: lambda module, *names: _linear(module.weight, *names),
    DeepLinear: lambda module, weight, bias: Layer(weight, bias, 0, module.out_features, Layout()),
    nn.Embedding: _embedding_layer,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution),
}
"""``make(module, weight, bias)`` returns the layer of a module; the last two are names."""

# Their weights and biases are diagonal layers.
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d)
_NORMS += (nn.InstanceNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def _norm_layout(network: TracedNetwork, node: fx.Node, module: Any) -> Layout | None:
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return Layout() if len(module.normalized_shape) == 1 else None
    if type(module).__name__.endswith(("2d", "3d")):
        return Layout(int(type(module).__name__[-2]))
    # The others read matrices as well as sequences.
    if (rank := network.ranks.get(node)) is not None:
        return Layout() if rank == 2 else Layout(rank - 2)
    before = network.module(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if isinstance(before, _ConvNd):
        return Layout(len(before.kernel_size))
    return Layout() if type(before) is nn.Linear else None


def _weight_normed(
    network: TracedNetwork, node: fx.Node, module: Any, bias: str | None
) -> Layer | None:
    """Return a layer with normalised rows; its weight is their lengths."""
    if weight_norm_axis(module) != 0 or not _is_torch_own(module):
        return None
    lengths = network.parameter(node, "parametrizations.weight.original0")
    directions = network.parameter(node, "parametrizations.weight.original1")
    if isinstance(module, _ConvNd) and not module.transposed:
        layout = Layout(len(module.kernel_size))
    else:
        layout = Layout() if isinstance(module, nn.Linear) else None
    if lengths is None or directions is None or layout is None:
        return None
    outputs = network.root.get_parameter(directions).shape[0]
    return _rowwise(lengths, bias, outputs, layout, more=(directions,))


@dataclass(frozen=True)
class Absorption:
    """The changes of its input channels that a normalisation or a softmax undoes."""

    scale_units: int | None  # units that can be scaled independently; `None` if none can
    bias_units: int | None  # the same for shifts by constants
    weight_units: int | None  # the same for shifts that vary with the input
    epsilon: float = 0.0


def is_norm(network: TracedNetwork, node: fx.Node) -> bool:
    """Tell whether a node calls a normalisation."""
    kinds = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return isinstance(network.module(node), kinds)


def absorption_of(
    network: TracedNetwork, node: fx.Node, layout: Layout, channels: int
) -> Absorption | None:
    """Return the changes that a node undoes if it calls a normalisation."""
    module: Any = network.module(node)
    if module is None or has_hooks(module) or parametrize.is_parametrized(module):
        return None
    eps = _epsilon(network, module)
    matrix = layout == Layout() and network.ranks.get(node) in (None, 2)
    if isinstance(module, _BatchNorm | _InstanceNorm) and _is_torch_own(module):
        instance = isinstance(module, _InstanceNorm)
        running = not module.training and (
            module.track_running_stats if instance else module.running_mean is not None
        )
        fits = layout.spatial is not None or (matrix and not instance)
        if running or not fits or module.num_features != channels:
            return None
        return Absorption(channels, channels, None, eps)
    if type(module) is nn.GroupNorm:
        if module.num_channels != channels or (layout.spatial is None and not matrix):
            return None
        g = module.num_groups
        return Absorption(g, g, g if matrix else None, eps)
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return _absorbed_by_rows(module, layout, channels, eps)
    return None


def _epsilon(network: TracedNetwork, module: Any) -> float:
    """Return the epsilon of a normalisation: torch takes that of the precision for `None`."""
    eps = getattr(module, "eps", 0.0)
    if eps is None:
        like = next(network.root.parameters())
        return torch.finfo(like.dtype).eps if like.is_floating_point() else 0.0
    return float(eps)


def _absorbed_by_rows(module: Any, layout: Layout, channels: int, eps: float) -> Absorption | None:
    shape, centred = module.normalized_shape, type(module) is nn.LayerNorm
    if layout.spatial is None:
        whole = shape[-1] == channels
        if shape[-1] % channels or (layout.block == 1 and not whole):
            return None
        alone = len(shape) == 1 and whole and layout.block == 1
        return Absorption(1, 1 if centred else None, 1 if centred and alone else None, eps)
    if len(shape) > layout.spatial + 1:
        return None
    units = 1 if len(shape) == layout.spatial + 1 else channels
    return Absorption(units, units if centred else None, None, eps)


def weight_norm_axis(module: nn.Module) -> int | None:
    """Return the axis whose slices a weight norm normalises, if the module has one."""
    if not parametrize.is_parametrized(module):
        return None
    parametrizations: Any = module.parametrizations
    chain = parametrizations["weight"] if set(parametrizations) == {"weight"} else ()
    return chain[0].dim if len(chain) == 1 and type(chain[0]) is _WeightNorm else None


def _is_torch_own(module: nn.Module) -> bool:
    """Tell whether torch defines the forward pass, and no class derived by a user."""
    own = type(module).__mro__[1 if parametrize.is_parametrized(module) else 0]
    return own.__module__.startswith("torch.nn.modules.")
