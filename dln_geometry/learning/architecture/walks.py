"""Follow the channels of a layer through a graph, to all operations that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from dln_geometry.learning.architecture.layers import (
    Absorption,
    Layer,
    absorption_of,
    is_norm,
    reader_of,
)
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.passages import Layout, argument, operation, passage
from dln_geometry.learning.architecture.tracing import TracedNetwork


@dataclass
class Reading:
    """The operations that read the channels of one layer, or of several that are added (skips)."""

    makers: dict[fx.Node, Layer]  # the layers that make the channels, by the nodes of their values
    columns: list[Part] = field(default_factory=list)  # parts of the layers that read them
    dense: bool = True  # whether all layers take mixtures of channels, with one column a channel
    carried: list[Part] = field(default_factory=list)  # parameters with one entry a channel
    through: list[str] = field(default_factory=list)  # names of the operations between, and readers


def label(node: fx.Node) -> str:
    """Return the name of a module, or of a function, that a node calls."""
    return str(node.target) if node.op == "call_module" else node.name


def readings(
    network: TracedNetwork, node: fx.Node, what: str, layers: Mapping[fx.Node, Layer]
) -> Reading | None:
    """Return all layers that read the channels of the layer at `node`.

    Return `None` if anything else reads them or `what` ("positive", "mixing" or "permute") does
    not pass. `layers` holds all layers by the nodes of their values.
    """
    layer = layers[node]
    reading = Reading({node: layer}, dense=layer.dense)
    todo, layouts = [node], {node: layer.layout}
    sums: list[fx.Node] = []
    while todo:
        source = todo.pop(0)
        if not network.readers(source):
            return None
        for user in network.readers(source):
            # One summand may read another.
            if user in layouts and user not in reading.makers:
                continue
            if what != "mixing" and _is_sum(network, user):
                sums.append(user)
                for value in user.all_input_nodes:
                    makers = _makers(network, value, layers, what)
                    if makers is None:
                        return None
                    for maker in (m for m in makers if m not in layouts):
                        reading.makers[maker] = layers[maker]
                        layouts[maker] = layers[maker].layout
                        todo.append(maker)
                after = layouts[source]
            else:
                after = _follow(network, reading, user, source, layouts[source], what)
                if after is None:
                    return None
            reading.through.append(label(user))
            if after is not _END:
                layouts[user] = after
                todo.append(user)
    alike = all(m.outputs == layer.outputs for m in reading.makers.values())
    for user in sums:
        alike = alike and {layouts.get(v) for v in user.all_input_nodes} == {layouts[user]}
    distinct = len(set(reading.columns)) == len(reading.columns)
    return reading if reading.columns and alike and distinct else None


_END = Layout(spatial=-1)


def _follow(
    network: TracedNetwork,
    reading: Reading,
    user: fx.Node,
    source: fx.Node,
    layout: Layout,
    what: str,
) -> Layout | None:
    """Add one operation to a reading; return the layout afterwards, `_END` for a layer."""
    units = next(iter(reading.makers.values())).outputs
    reader = reader_of(network, user, source)
    if reader is not None and reader.in_axis is not None:
        part = reader.columns(units, layout)
        # A depthwise layer has its outputs in the order of its inputs.
        if part is None or (what == "permute" and reader.in_axis == reader.out_axis):
            return None
        reading.columns.append(part)
        reading.dense = reading.dense and reader.dense and part.block == 1
        return _END
    parts = _normalised(network, user, source, layout, units) if what == "permute" else None
    if parts is not None:
        reading.carried += parts
        return layout
    passed = passage(network, source, user, layout)
    if passed is None or what not in passed.passes:
        return None
    if passed.carried is not None and what == "permute":
        if network.uses[passed.carried] != 1:
            return None
        reading.carried.append(Part(passed.carried, 0, units))
    return passed.layout


def _is_sum(network: TracedNetwork, node: fx.Node) -> bool:
    """Tell whether a node adds two values, neither of which is a number."""
    two = len(node.all_input_nodes) == 2 and len(node.args) == 2 and not node.kwargs
    return two and operation(network, node) == "add"


def _makers(
    network: TracedNetwork, value: fx.Node, layers: Mapping[fx.Node, Layer], what: str
) -> list[fx.Node] | None:
    """Return the nodes of the layers whose sum is a value, `None` if a summand is no layer."""
    found: list[fx.Node] = []
    todo, seen = [value], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        norm = what == "permute" and is_norm(network, node)
        if node in layers and not norm:
            found.append(node)
        elif _is_sum(network, node):
            todo += node.all_input_nodes
        elif not norm and operation(network, node) in (None, "add"):
            return None
        elif isinstance(node.args[0], fx.Node):
            # The way forward checks whether the channels pass.
            todo.append(node.args[0])
        else:
            return None
    return found


def _normalised(
    network: TracedNetwork, node: fx.Node, source: fx.Node, layout: Layout, units: int
) -> list[Part] | None:
    """Return the weight and bias of a normalisation that treats all channels alike."""
    absorption = absorption_of(network, node, layout, units) if _reads_only(node, source) else None
    if absorption is None or absorption.scale_units not in (1, units):
        return None
    parts = []
    for attribute in ("weight", "bias"):
        value = getattr(network.module(node), attribute, None)
        if value is None:
            continue
        name = network.parameter(node, attribute)
        # A weight over more axes than the channels is not permuted along the first.
        if name is None or tuple(value.shape) != (units,):
            return None
        parts.append(Part(name, 0, units))
    return parts


def _reads_only(node: fx.Node, source: fx.Node) -> bool:
    return node.args[:1] == (source,) and len(node.all_input_nodes) == 1


def absorbed(
    network: TracedNetwork, node: fx.Node, layer: Layer, what: str, *, logits: bool
) -> tuple[Absorption, tuple[str, ...]] | None:
    """Return the changes that all readers of the layer at `node` undo, and the names on the way.

    Return `None` if one reader undoes none, or `what` ("positive" or "shift") does not pass until
    there. With `logits` the output goes into a softmax over its channels.
    """
    found: list[Absorption] = []
    through: list[str] = []
    todo, seen = [(node, layer.layout)], set()
    while todo:
        source, layout = todo.pop()
        users = network.readers(source)
        if not users:
            return None
        for user in users:
            if (source, user) in seen:
                continue
            seen.add((source, user))
            through.append(label(user))
            if user.op == "output":
                if not (logits and what == "shift" and user.args == (source,)):
                    return None
                found.append(Absorption(None, 1, 1 if layout.block == 1 else None))
                continue
            if _reads_only(user, source):
                here = absorption_of(network, user, layout, layer.outputs)
                here = here or _softmax(network, user, layout)
                if here is not None:
                    found.append(here)
                    continue
            passed = passage(network, source, user, layout)
            if passed is None or what not in passed.passes:
                return None
            todo.append((user, passed.layout))
    scale, bias, weight = (
        _common([getattr(a, name) for a in found])
        for name in ("scale_units", "bias_units", "weight_units")
    )
    return Absorption(scale, bias, weight, max(a.epsilon for a in found)), tuple(through)


def _common(units: list[int | None]) -> int | None:
    """Return the number of units if all agree, `None` if one is `None`, otherwise one."""
    return units[0] if len(set(units)) == 1 else None if None in units else 1


def _softmax(network: TracedNetwork, node: fx.Node, layout: Layout) -> Absorption | None:
    """Return the shifts that a softmax over the channels undoes, if the node calls one."""
    if operation(network, node) != "softmax":
        return None
    module = network.module(node)
    dim = argument(node, 1, "dim", None) if module is None else getattr(module, "dim", None)
    if layout.spatial is None:
        last = network.ranks.get(node, 2) - 1
        over_channels = dim in (-1, last) and layout.block == 1
    else:
        over_channels = dim in (1, -1 - layout.spatial)
    return Absorption(None, 1, 1) if over_channels else None
