"""Follow the channels of a layer through a graph, to everything that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from dln_geometry.learning.architecture.groups import Part
from dln_geometry.learning.architecture.layers import Absorption, Layer, Network
from dln_geometry.learning.architecture.passages import Layout, operation, passage

__all__ = ["Reading", "absorbed", "readings"]


@dataclass
class Reading:
    """All that the channels of one layer meet.

    Skip connections add the channels of several layers: then those layers belong together, and
    so does all that reads any of them.

    Attributes
    ----------
    makers : dict of Node to Layer
        The layers that make the channels, by the nodes of their values.
    columns : list of Part
        The parts of the layers that read them.
    dense : bool
        Whether all takes mixtures of channels, with one column a channel.
    carried : list of Part
        Parameters on the way that have one entry a channel.
    through : list of str
        Names of what lies between, and of the readers.
    """

    makers: dict[fx.Node, Layer]
    columns: list[Part] = field(default_factory=list)
    dense: bool = True
    carried: list[Part] = field(default_factory=list)
    through: list[str] = field(default_factory=list)


def label(node: fx.Node) -> str:
    """Return the name of a module, or of a function, that a node calls."""
    return str(node.target) if node.op == "call_module" else node.name


def readings(
    network: Network, node: fx.Node, layer: Layer, what: str, layers: Mapping[fx.Node, Layer]
) -> Reading | None:
    """Return all layers that read the channels of `node`, `None` if anything else does.

    Parameters
    ----------
    network : Network
        The traced module.
    node : Node
        Whose value it is.
    layer : Layer
        What makes the channels.
    what : str
        What must pass everything on the way: "positive", "mixing" or "permute".
    layers : dict of Node to Layer
        All layers by the nodes of their values.
    """
    reading = Reading({node: layer}, dense=layer.dense)
    todo, layouts = [node], {node: layer.layout}
    sums: list[fx.Node] = []
    while todo:
        source = todo.pop(0)
        if not network.traced.readers(source):
            return None
        for user in network.traced.readers(source):
            # A layer of the sum may read another one of it.
            if user in layouts and user not in reading.makers:
                continue
            if what != "mixing" and _is_sum(network, user):
                sums.append(user)
                for value in user.all_input_nodes:
                    makers = _makers(network, value, layers, what)
                    if makers is None:
                        return None
                    for maker in makers:
                        if maker not in layouts:
                            reading.makers[maker] = layers[maker]
                            layouts[maker] = layers[maker].layout
                            todo.append(maker)
                reading.through.append(label(user))
                layouts[user] = layouts[source]
                todo.append(user)
                continue
            reading.through.append(label(user))
            after = _read(network, reading, user, source, layouts[source], layer.outputs, what)
            if after is None:
                return None
            if after is not _END:
                layouts[user] = after
                todo.append(user)
    alike = all(m.outputs == layer.outputs for m in reading.makers.values())
    for user in sums:
        alike = alike and {layouts.get(v) for v in user.all_input_nodes} == {layouts[user]}
    distinct = len(set(reading.columns)) == len(reading.columns)
    return reading if reading.columns and alike and distinct else None


_END = Layout(spatial=-1)


def _read(
    network: Network,
    reading: Reading,
    user: fx.Node,
    source: fx.Node,
    layout: Layout,
    units: int,
    what: str,
) -> Layout | None:
    """Add what one operation does to a reading; return where the channels are afterwards."""
    reader = network.reader(user, source)
    if reader is not None and reader.in_axis is not None:
        part = reader.columns(units, layout)
        # What reads its inputs one by one has its outputs in their order.
        if part is None or (what == "permute" and reader.in_axis == reader.out_axis):
            return None
        reading.columns.append(part)
        reading.dense = reading.dense and reader.dense and part.block == 1
        return _END
    parts = _normalised(network, user, source, layout, units) if what == "permute" else None
    if parts is not None:
        reading.carried += parts
        return layout
    passed = passage(network.traced, source, user, layout)
    if passed is None or what not in passed.passes:
        return None
    if passed.carried is not None and what == "permute":
        if network.uses[passed.carried] != 1:
            return None
        reading.carried.append(Part(passed.carried, 0, units))
    return passed.layout


def _is_sum(network: Network, node: fx.Node) -> bool:
    """Whether a node adds two values, neither of which is a number."""
    two = len(node.all_input_nodes) == 2 and len(node.args) == 2 and not node.kwargs
    return two and operation(network.traced, node) == "add"


def _makers(
    network: Network, value: fx.Node, layers: Mapping[fx.Node, Layer], what: str
) -> list[fx.Node] | None:
    """Return the nodes of the layers that make the channels of a value, `None` if not all are."""
    found: list[fx.Node] = []
    todo, seen = [value], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        norm = what == "permute" and network.is_norm(node)
        if node in layers and not norm:
            found.append(node)
        elif _is_sum(network, node):
            todo += node.all_input_nodes
        elif (norm or operation(network.traced, node) not in (None, "add")) and isinstance(
            node.args[0], fx.Node
        ):
            # Whether it passes is found out on the way forward.
            todo.append(node.args[0])
        else:
            return None
    return found


def _normalised(
    network: Network, node: fx.Node, source: fx.Node, layout: Layout, units: int
) -> list[Part] | None:
    """Return the weight and bias of a normalisation that treats all channels alike."""
    absorption = network.absorption(node, layout, units)
    if absorption is None or absorption.scale_units not in (1, units):
        return None
    if node.args[:1] != (source,) or len(node.all_input_nodes) != 1:
        return None
    module = network.traced.module(node)
    parts = []
    for attribute in ("weight", "bias"):
        value = getattr(module, attribute, None)
        if value is None:
            continue
        name = network.name(node, attribute)
        # A weight over more axes than the channels is not permuted along the first.
        if name is None or tuple(value.shape) != (units,):
            return None
        parts.append(Part(name, 0, units))
    return parts


def absorbed(
    network: Network, node: fx.Node, layer: Layer, what: str, *, logits: bool
) -> tuple[Absorption, tuple[str, ...]] | None:
    """Return what all readers of a layer's channels together absorb, `None` if one does not.

    Parameters
    ----------
    network, node, layer
        As in `readings`.
    what : str
        "positive" for scales, "shift" for translations.
    logits : bool
        Whether the output of the module goes into a softmax over its channels.

    Returns
    -------
    Absorption, tuple of str
        Of all readers in common, and the names of what lies between.
    """
    units = layer.outputs
    found: list[Absorption] = []
    through: list[str] = []
    todo, seen = [(node, layer.layout)], set()
    while todo:
        source, layout = todo.pop()
        users = network.traced.readers(source)
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
            here = None
            if user.args[:1] == (source,) and len(user.all_input_nodes) == 1:
                here = network.absorption(user, layout, units)
                if here is None and operation(network.traced, user) == "softmax":
                    here = _softmax(network, user, layout)
            if here is not None:
                found.append(here)
                continue
            passed = passage(network.traced, source, user, layout)
            if passed is None or what not in passed.passes:
                return None
            todo.append((user, passed.layout))
    common = Absorption(
        *(
            _common([getattr(a, f"{key}_units") for a in found])
            for key in ("scale", "bias", "weight")
        ),
        epsilon=max(a.epsilon for a in found),
    )
    return common, tuple(through)


def _common(units: list[int | None]) -> int | None:
    """Return the number of units that all allow: theirs if it is the same, otherwise one."""
    if any(u is None for u in units):
        return None
    return units[0] if len(set(units)) == 1 else 1


def _softmax(network: Network, node: fx.Node, layout: Layout) -> Absorption | None:
    module = network.traced.module(node)
    if module is not None:
        dim = getattr(module, "dim", None)
    else:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = network.traced.ranks.get(node)
    if layout.spatial is None:
        last = dim == -1 or (rank is not None and dim == rank - 1) or (rank is None and dim == 1)
        return Absorption(None, 1, 1) if last and layout.block == 1 else None
    return Absorption(None, 1, 1) if dim in (1, -1 - layout.spatial) else None
