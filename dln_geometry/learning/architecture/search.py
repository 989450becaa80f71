"""Follow the graph of a module to the symmetric groups of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn

from dln_geometry.learning.architecture.attention import attention_groups, output_projection
from dln_geometry.learning.architecture.groups import Part, SymmetricGroup, with_parts
from dln_geometry.learning.architecture.layers import Layer, is_norm, layer_of, weight_norm_axis
from dln_geometry.learning.architecture.passages import has_hooks
from dln_geometry.learning.architecture.subject import Call
from dln_geometry.learning.architecture.tracing import TracedNetwork
from dln_geometry.learning.architecture.walks import absorbed, readings
from dln_geometry.learning.functional import bare_copy
from dln_geometry.learning.layers import DeepLinear
from dln_geometry.support import warn


def groups_by_graph(
    twin: nn.Module, call: Call | None, *, logits: bool
) -> tuple[list[SymmetricGroup], list[SymmetricGroup]]:
    """Return the groups that follow from the graph of a module, and guesses about other parts.

    A warning names the modules that cannot be traced, and why; with a call, the groups of their
    children are the guesses.
    """
    network = TracedNetwork.of(_readable(twin), call)
    groups = [_renamed(g, network.root, twin) for g in _groups(network, logits=logits)]
    guesses: list[SymmetricGroup] = []
    if network.opaque:
        names = ", ".join(repr(name) if name else "the module itself" for name in network.opaque)
        known = "missing: give an example_input" if call is None else "partly known"
        reason = f" ({network.reason})" if network.reason else ""
        warn(f"not everything could be traced: {names}{reason}; symmetries inside are {known}")
        if call is not None:
            guesses += _inside(network, twin)
    return groups, guesses


def copied(module: nn.Module, call: Any) -> nn.Module:
    """Return a copy of the module to trace; without a call the module itself if need be."""
    try:
        return bare_copy(module)
    except TypeError:
        if call is not None:
            raise
        return module


def _readable(module: nn.Module) -> nn.Module:
    """Return a module whose graph calls the given one, if that is one of torch's own."""
    own = type(module).__module__.startswith("torch.nn") or type(module) is DeepLinear
    return nn.Sequential(module) if own and type(module) is not nn.Sequential else module


def _renamed(group: SymmetricGroup, inner: nn.Module, outer: nn.Module) -> SymmetricGroup:
    """Return the group with the names that its parameters have in another module."""
    names = {id(p): name for name, p in outer.named_parameters()}
    return with_parts(group, lambda p: replace(p, name=names[id(inner.get_parameter(p.name))]))


def _inside(network: TracedNetwork, outer: nn.Module) -> Iterator[SymmetricGroup]:
    """Yield the groups of the children of opaque modules: guesses that must be confirmed."""
    todo, seen = network.inside_opaque(), set[int]()
    while todo:
        name, child = todo.pop(0)
        # Lists of modules and parameters come back as their own children.
        if id(child) in seen:
            continue
        seen.add(id(child))
        inner = TracedNetwork.of(_readable(child))
        for group in _groups(inner, logits=False):
            through = tuple(f"{name}.{key}" for key in group.through)
            yield _renamed(replace(group, through=through), inner.root, outer)
        todo += [(f"{name}.{key}", m) for key, m in inner.inside_opaque()]


def _groups(network: TracedNetwork, *, logits: bool) -> Iterator[SymmetricGroup]:
    layers: dict[fx.Node, Layer] = {}
    calls = [n for n in network.graph.nodes if n.op in ("call_module", "call_function")]
    for node in calls:
        layer, value, module = layer_of(network, node), node, network.module(node)
        if type(module) is nn.MultiheadAttention:
            layer, value = output_projection(network, node, module)
        # Layers without channels have nothing to move.
        if layer is not None and layer.outputs > 0:
            layers[value] = layer
    done: set[tuple[str, frozenset[Part]]] = set()
    for node in calls:
        yield from _of_module(network, node)
        if node not in layers:
            continue
        for group in _of_layer(network, node, layers, logits=logits):
            # Layers that a skip connection joins lead to the same group.
            key = group.kind, frozenset(group.parts)
            if key not in done:
                done.add(key)
                yield group


def _of_layer(
    network: TracedNetwork, node: fx.Node, layers: Mapping[fx.Node, Layer], *, logits: bool
) -> Iterator[SymmetricGroup]:
    """Yield the groups of a layer and the operations after it."""
    layer, free_bias = layers[node], False
    shifts = absorbed(network, node, layer, "shift", logits=logits)
    if shifts is not None:
        absorption, through = shifts
        parts = []
        if absorption.weight_units is not None and layer.additive:
            parts.append(layer.row_of(layer.weight, layer.out_axis, absorption.weight_units))
        if absorption.bias_units is not None and layer.bias is not None:
            parts.append(layer.row_of(layer.bias, 0, absorption.bias_units))
            free_bias = absorption.bias_units == layer.outputs
        for units in dict.fromkeys(p.units for p in parts):
            alike = tuple(p for p in parts if p.units == units)
            yield SymmetricGroup("translation", alike, (), through)
    scales = absorbed(network, node, layer, "positive", logits=False)
    if scales is not None and scales[0].scale_units is not None:
        absorption, through = scales
        # A bias whose shifts are all undone need not be scaled.
        first = layer.rows(absorption.scale_units)[: 1 if free_bias else None]
        yield SymmetricGroup("scale", first, (), through, absorption.epsilon)
    mixed = readings(network, node, "mixing", layers) if layer.dense else None
    if mixed is not None and mixed.dense:
        first, second = (tuple(p.merged() for p in side) for side in (layer.rows(), mixed.columns))
        yield SymmetricGroup("gauge", first, second, tuple(mixed.through))
        return
    scaled = readings(network, node, "positive", layers)
    if scaled is not None:
        rows = tuple(p for maker in scaled.makers.values() for p in maker.rows())
        yield SymmetricGroup("rescale", rows, tuple(scaled.columns), tuple(scaled.through))
    if is_norm(network, node) or layer.outputs == 1:
        # The weight of a normalisation is permuted with the layer before it.
        return
    permuted = readings(network, node, "permute", layers)
    # The outputs of a grouped convolution read different inputs.
    if permuted is not None and all(m.dense or m.more for m in permuted.makers.values()):
        parts = []
        for maker in permuted.makers.values():
            parts += [*maker.rows(), *(maker.row_of(name, 0) for name in maker.more)]
        parts += [*permuted.carried, *permuted.columns]
        yield SymmetricGroup(
            "permutation",
            tuple(parts),
            through=tuple(permuted.through),
            reading=tuple(permuted.columns),
        )


def _of_module(network: TracedNetwork, node: fx.Node) -> Iterator[SymmetricGroup]:
    """Yield the groups inside one module."""
    module = network.module(node)
    if module is None or has_hooks(module):
        return
    through = (str(node.target),)
    axis = weight_norm_axis(module)
    directions = network.parameter(node, "parametrizations.weight.original1")
    if axis is not None and directions is not None:
        tensor = network.root.get_parameter(directions)
        if 0 <= axis < tensor.ndim:
            part = Part(directions, axis, tensor.shape[axis])
            yield SymmetricGroup("scale", (part,), (), through)
    if type(module) is DeepLinear:
        names = [network.parameter(node, f"weights.{p}") for p in range(module.depth)]
        for d, before, after in zip(module.widths[1:-1], names, names[1:], strict=False):
            if before is not None and after is not None:
                first, second = Part(before, 0, 1, d), Part(after, 1, 1, d)
                yield SymmetricGroup("gauge", (first,), (second,), through)
    if type(module) is nn.MultiheadAttention:
        yield from attention_groups(network, node, module)
