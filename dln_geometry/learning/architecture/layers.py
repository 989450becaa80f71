"""The layers and normalisations of a traced module, and the parameters that they alone use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from dln_geometry.learning.architecture.groups import Part
from dln_geometry.learning.architecture.passages import Layout, has_hooks
from dln_geometry.learning.architecture.tracing import Traced
from dln_geometry.learning.layers import DeepLinear

__all__ = ["Absorption", "Layer", "Network"]


@dataclass(frozen=True)
class Layer:
    """A map that is linear in its input and, together with the bias, in its rows.

    Attributes
    ----------
    weight, bias : str or None
        Names of the parameters; without a weight there is nothing to move.
    out_axis, outputs : int
        Axis of the weight that counts the outputs, and their number.
    in_axis, inputs : int
        The same of the inputs; the axis is `None` where the inputs have no columns of their own.
    block : int
        Indices of `in_axis` for each input (of depthwise convolutions).
    layout : Layout
        Where the channels of the output are; input channels are likewise.
    dense : bool
        Whether rows can be mixed, and columns too if there are any.
    additive : bool
        Whether the output is linear in the weight itself, and all outputs read the same inputs: a
        common shift of all rows is a common shift of the outputs.
    more : tuple of str
        Further parameters with one row an output, which permutations carry along.
    """

    weight: str
    bias: str | None
    out_axis: int
    outputs: int
    layout: Layout
    in_axis: int | None = None
    inputs: int = 0
    block: int = 1
    dense: bool = True
    additive: bool = True
    more: tuple[str, ...] = ()

    def rows(self, units: int | None = None) -> tuple[Part, ...]:
        """Return the parts that make the outputs: rows of the weight and entries of the bias."""
        weight = self.row_of(self.weight, self.out_axis, units)
        return (weight,) if self.bias is None else (weight, self.row_of(self.bias, 0, units))

    def row_of(self, name: str, axis: int, units: int | None = None) -> Part:
        """Return the rows of one parameter, so many outputs to a unit."""
        units = self.outputs if units is None else units
        return Part(name, axis, units, self.outputs // units)

    def columns(self, units: int, layout: Layout) -> Part | None:
        """Return the part that reads so many channels of this layout, if they fit."""
        if self.in_axis is None or layout.spatial != self.layout.spatial:
            return None
        if (layout.block == 1 and units != self.inputs) or self.inputs % units:
            return None
        return Part(self.weight, self.in_axis, units, self.block * (self.inputs // units))


@dataclass(frozen=True)
class Absorption:
    """What a normalisation or a softmax takes away from the channels that it reads.

    Numbers of units that can be scaled on their own, and shifted on their own: by constants
    (`bias_units`) and by what varies with the input (`weight_units`). `None` is not at all.
    """

    scale_units: int | None
    bias_units: int | None
    weight_units: int | None
    epsilon: float = 0.0


@dataclass(frozen=True)
class Network:
    """A traced module with the use of its parameters."""

    traced: Traced
    names: dict[int, str] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, traced: Traced) -> Network:
        """Count how often every parameter is used."""
        names = {id(p): name for name, p in traced.root.named_parameters()}
        uses: Counter[str] = Counter()
        for node in traced.graph.nodes:
            if node.op == "call_module":
                module = traced.root.get_submodule(str(node.target))
                uses.update(names[id(p)] for p in module.parameters())
            elif node.op == "get_attr":
                value: Any = traced.root
                for key in str(node.target).split("."):
                    value = getattr(value, key)
                if id(value) in names:
                    uses[names[id(value)]] += len(node.users)
        return cls(traced, names, uses)

    def name(self, node: fx.Node, attribute: str) -> str | None:
        """Return the name of a module's parameter, if it has it and nothing else uses it."""
        value: Any = self.traced.module(node)
        for key in attribute.split("."):
            value = getattr(value, key, None)
        name = self.names.get(id(value))
        return name if name is not None and self.uses[name] == 1 else None

    def layer(self, node: fx.Node) -> Layer | None:
        """Return the layer that a node calls, as a maker of channels, `None` if it is none.

        A layer whose parameters something else uses too is none.
        """
        if node.op == "call_function" and node.target is functional.linear:
            return self._functional_linear(node)
        module: Any = self.traced.module(node)
        if module is None or has_hooks(module):
            return None
        bias = getattr(module, "bias", None)
        bias_name = None if bias is None else self.name(node, "bias")
        if isinstance(bias, nn.Parameter) and bias_name is None:
            return None
        if parametrize.is_parametrized(module):
            return self._weight_normed(node, module, bias_name)
        if type(module) is nn.MultiheadAttention:
            return None
        if type(module) is DeepLinear:
            last = module.depth - 1
            weight, layout = self.name(node, f"weights.{last}"), Layout()
            if weight is None:
                return None
            return Layer(weight, bias_name, 0, module.out_features, layout)
        weight = self.name(node, "weight")
        if weight is None:
            return None
        if type(module) is nn.Linear:
            m, n = module.weight.shape
            return Layer(weight, bias_name, 0, m, Layout(), 1, n)
        if isinstance(module, _ConvNd) and _is_torch_own(module):
            return self._convolution(module, weight, bias_name)
        if type(module) is nn.Embedding:
            plain = module.padding_idx is None and module.max_norm is None
            plain = plain and not (module.sparse or module.scale_grad_by_freq)
            return Layer(weight, None, 1, module.embedding_dim, Layout()) if plain else None
        layout = self._affine_layout(node, module)
        if layout is None:
            return None
        return Layer(
            weight, bias_name, 0, module.weight.numel(), layout, dense=False, additive=False
        )

    def reader(self, node: fx.Node, source: fx.Node) -> Layer | None:
        """Return the layer that a node calls, as a reader of the channels of `source`."""
        module = self.traced.module(node)
        if type(module) is nn.MultiheadAttention and not has_hooks(module):
            weight = self.name(node, "in_proj_weight")
            if weight is None or tuple(node.args[:3]) != (source,) * 3:
                return None
            if source in _nodes(node.kwargs.values()):
                return None
            d = module.embed_dim
            return Layer(weight, None, 0, 3 * d, Layout(), 1, d)
        if node.args[:1] != (source,) or source in _nodes((*node.args[1:], *node.kwargs.values())):
            return None
        if type(module) is DeepLinear and not has_hooks(module):
            weight = self.name(node, "weights.0")
            if weight is None:
                return None
            m, n = module.widths[1], module.in_features
            return Layer(weight, None, 0, m, Layout(), 1, n)
        return self.layer(node)

    def _functional_linear(self, node: fx.Node) -> Layer | None:
        names: list[str | None] = []
        arguments = [*node.args[1:], *node.kwargs.values()]
        for argument in arguments:
            if argument is None:
                names.append(None)
                continue
            if not isinstance(argument, fx.Node) or argument.op != "get_attr":
                return None
            value: Any = self.traced.root
            for key in str(argument.target).split("."):
                value = getattr(value, key)
            name = self.names.get(id(value))
            if name is None or self.uses[name] != 1:
                return None
            names.append(name)
        if not names or names[0] is None or set(node.kwargs) - {"bias"}:
            return None
        m, n = self.traced.root.get_parameter(names[0]).shape
        return Layer(names[0], names[1] if len(names) > 1 else None, 0, m, Layout(), 1, n)

    def _convolution(self, module: _ConvNd, weight: str, bias: str | None) -> Layer | None:
        layout = Layout(len(module.kernel_size))
        outputs, inputs = module.out_channels, module.in_channels
        if module.groups == 1:
            out_axis = 1 if isinstance(module, _ConvTransposeNd) else 0
            return Layer(weight, bias, out_axis, outputs, layout, 1 - out_axis, inputs)
        if isinstance(module, _ConvTransposeNd):
            return None
        if module.groups == inputs:
            # Depthwise: every input has rows of its own.
            block = outputs // inputs
            return Layer(
                weight, bias, 0, outputs, layout, 0, inputs, block, dense=False, additive=False
            )
        return Layer(weight, bias, 0, outputs, layout, dense=False, additive=False)

    def _weight_normed(self, node: fx.Node, module: Any, bias: str | None) -> Layer | None:
        """Return a layer with normalised rows, whose lengths are parameters."""
        if weight_norm_of(module) != 0 or not _is_torch_own(module):
            return None
        g = self.name(node, "parametrizations.weight.original0")
        v = self.name(node, "parametrizations.weight.original1")
        if g is None or v is None:
            return None
        if isinstance(module, nn.Linear):
            layout = Layout()
        elif isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
            layout = Layout(len(module.kernel_size))
        else:
            return None
        outputs = self.traced.root.get_parameter(v).shape[0]
        return Layer(g, bias, 0, outputs, layout, dense=False, additive=False, more=(v,))

    def _affine_layout(self, node: fx.Node, module: Any) -> Layout | None:
        """Return the layout of a normalisation's weight and bias, `None` if it is none."""
        if type(module) in (nn.LayerNorm, nn.RMSNorm):
            return Layout() if len(module.normalized_shape) == 1 else None
        if not isinstance(module, _BatchNorm | _InstanceNorm | nn.GroupNorm):
            return None
        if not _is_torch_own(module):
            return None
        if type(module).__name__.endswith(("2d", "3d")):
            return Layout(int(type(module).__name__[-2]))
        # The others read matrices as well as sequences.
        rank = self.traced.ranks.get(node)
        if rank is None:
            before = self.traced.module(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            if type(before) is nn.Linear:
                return Layout()
            return Layout(len(before.kernel_size)) if isinstance(before, _ConvNd) else None
        return Layout() if rank == 2 else Layout(rank - 2)

    def is_norm(self, node: fx.Node) -> bool:
        """Whether a node calls a normalisation."""
        kinds = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
        return isinstance(self.traced.module(node), kinds)

    def absorption(self, node: fx.Node, layout: Layout, channels: int) -> Absorption | None:
        """Return what the normalisation that a node calls absorbs, `None` if it is none."""
        module = self.traced.module(node)
        if module is None or has_hooks(module) or parametrize.is_parametrized(module):
            return None
        rank = self.traced.ranks.get(node)
        eps = float(getattr(module, "eps", None) or 0.0)
        matrix = layout == Layout() and rank in (None, 2)
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
            return _layer_norm(module, layout, channels, eps)
        return None


def _layer_norm(module: Any, layout: Layout, channels: int, eps: float) -> Absorption | None:
    shape = tuple(module.normalized_shape)
    centred = type(module) is nn.LayerNorm
    if layout.spatial is None:
        alone = len(shape) == 1 and shape[0] == channels and layout.block == 1
        if shape[-1] % channels or (layout.block == 1 and shape[-1] != channels):
            return None
        return Absorption(1, 1 if centred else None, 1 if centred and alone else None, eps)
    if len(shape) > layout.spatial + 1:
        return None
    units = 1 if len(shape) == layout.spatial + 1 else channels
    return Absorption(units, units if centred else None, None, eps)


def _is_torch_own(module: nn.Module) -> bool:
    """Whether the forward pass is torch's, and no user's in a class derived from it."""
    own = type(module).__mro__[1 if parametrize.is_parametrized(module) else 0]
    return own.__module__.startswith("torch.nn.modules.")


def weight_norm_of(module: nn.Module) -> int | None:
    """Return the axis whose slices a weight norm normalises, `None` if there is none."""
    if not parametrize.is_parametrized(module):
        return None
    parametrizations: Any = module.parametrizations
    if set(parametrizations) != {"weight"}:
        return None
    chain = parametrizations["weight"]
    if len(chain) != 1 or type(chain[0]) is not _WeightNorm:
        return None
    return chain[0].dim


def _nodes(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(tuple(arguments), found.append)
    return found
