"""Find the symmetric groups of parameters that the architecture of a module has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn

from dln_geometry.learning.architecture.attention import attention_groups, output_projection
from dln_geometry.learning.architecture.confirmation import confirmed
from dln_geometry.learning.architecture.groups import Part, SymmetricGroup, with_parts
from dln_geometry.learning.architecture.layers import Layer, is_norm, layer_of, weight_norm_axis
from dln_geometry.learning.architecture.passages import has_hooks
from dln_geometry.learning.architecture.tracing import TracedNetwork
from dln_geometry.learning.architecture.trials import trials
from dln_geometry.learning.architecture.walks import absorbed, readings
from dln_geometry.learning.functional import as_arguments, bare_copy, parameters_of
from dln_geometry.learning.layers import DeepLinear
from dln_geometry.support import shown, warn


def symmetries_of(
    module: nn.Module, example_input: Any = None, *, loss: str | None = None
) -> list[SymmetricGroup]:
    """Return the symmetric groups of parameters of a module.

    It traces the module by ``torch.fx`` and follows every layer to all operations that read it:

    - scale: weights before batch, instance, layer, group and RMS normalisation, through positively
      homogeneous operations (ReLU, pooling, dropout), and the directions of a weight norm;
    - translation: shifts that a normalisation subtracts again, or that do not change a softmax
      (of the output, if `loss` says so), and the bias of the keys of an attention;
    - rescale: hidden units between two layers, through positively homogeneous operations;
      weights and biases of normalisations count as layers;
    - gauge: two layers with nothing nonlinear between them, also keys and queries and values and
      outputs of each head of ``nn.MultiheadAttention``, and the layers of a `DeepLinear`;
    - permutation: hidden units between two layers, through operations that act on each alike, and
      the heads of an attention.

    A gauge contains rescalings and permutations of its indices (`SymmetricGroup.diagonal`), which
    are not listed beside it.

    Parameters
    ----------
    module : Module
        In the mode in which it is trained: batch normalisation is symmetric in training mode only.
    example_input : Tensor, tuple or mapping, optional
        The argument of the module, a tuple of its arguments, or a mapping of its keyword arguments,
        as the `inputs` of `functionalize`. They tell the numbers of dimensions, and groups that
        change the output are left out: each is tried at random parameters, buffers and inputs like
        those given, also in batches of 4 to 16 rows if the module takes them, and must change the
        outputs by rounding only (the epsilon of a normalisation, which `SymmetricGroup.epsilon`
        states, is negligible there). Without them, inputs are taken to be batches (matrices for
        linear layers before ``BatchNorm1d``, ``GroupNorm``, ``Flatten`` or a softmax with
        ``dim=1``).
    loss : "cross_entropy" or None
        The loss of the output. A common shift of all logits does not change cross entropy; the
        classes must be the channels of the last layer.

    Returns
    -------
    list of SymmetricGroup
        In the order of the layers, with the names that the parameters have in `module`, which may
        be wrapped (``DataParallel``, ``DistributedDataParallel``, ``AveragedModel``,
        ``torch.compile``). Parameters that are used twice (tied, or in a module that is called
        twice) or under hooks are in none.

    Raises
    ------
    TypeError
        If `module` is no module, or cannot be copied.
    ValueError
        If it has no parameters, or lazy ones, or cannot be called on `example_input`.

    Warns
    -----
    UserWarning
        If a module inside cannot be traced, since its path depends on values. With an example
        input, its children are traced on their own, and their groups that pass it are kept. If
        groups of the graph change the output on the example, or groups or units in them could not
        be tried since no output depends on them.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> for group in dln.learning.symmetries_of(net, loss="cross_entropy"):
    ...     print(group.kind, group.units, group.names)
    rescale 8 ('0.weight', '0.bias', '2.weight')
    permutation 8 ('0.weight', '0.bias', '2.weight')
    translation 1 ('2.weight', '2.bias')
    """
    if not parameters_of(module):
        raise ValueError(f"module must have parameters, got a {type(module).__name__} without any")
    if loss is not None and not (isinstance(loss, str) and loss == "cross_entropy"):
        raise ValueError(f'loss must be "cross_entropy" or None, got {shown(loss)}')
    call = None if example_input is None else as_arguments(example_input)
    # Tracing calls the module on symbols, which must not stay in the user's.
    twin, logits = _copy(module, call), loss == "cross_entropy"
    tries = None if call is None else trials(twin, call, logits=logits)
    network = TracedNetwork.of(_readable(twin), call)
    groups = [_renamed(g, network.root, twin) for g in _groups(network, logits=logits)]
    guesses: list[SymmetricGroup] = []
    if network.opaque:
        names = ", ".join(repr(name) if name else "the module itself" for name in network.opaque)
        known = "missing: give an example_input" if call is None else "partly known"
        warn(f"not everything could be traced: {names}; symmetries inside are {known}")
        if call is not None:
            guesses += _inside(network, twin)
    return groups if tries is None else confirmed(groups, guesses, tries)


def _copy(module: nn.Module, call: Any) -> nn.Module:
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
        if layer is not None:
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
