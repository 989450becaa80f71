"""Follow the channels of a model through one forward pass: which entries make and read each unit.

Each entry along each axis of a parameter is a node, and each axis of a tensor carries the nodes of
its indices. An operation joins the nodes that it puts side by side: those of summands, of the two
sides of a contraction, of a channel and its gain. What is joined must be removed together. Nodes
that meet a size that no parameter gives (an input, an output, a reshape into heads) stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dln_geometry.learning.collapse.detection import MirrorFamily
from dln_geometry.learning.collapse.pruning.nodes import Axes, Nodes
from dln_geometry.learning.collapse.pruning.passing import RULES, VIEWS

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Channels:
    """Units that can be removed one by one, and where buffers (running statistics) hold them."""

    family: MirrorFamily
    buffers: dict[str, tuple[int, Tensor]]


@torch.no_grad()
def channels_of(model: nn.Module, call: Call) -> list[Channels]:
    """Return the units of a model in evaluation mode, by families whose units live alike."""
    nodes = Nodes()
    tensors = dict(model.named_parameters())
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    for name, x in {**tensors, **buffers}.items():
        nodes.name(x, name)
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fused kernels of attention and of recurrent layers hide their operations.
    torch.backends.mha.set_fastpath_enabled(False)
    fused: Any = torch.backends.mkldnn
    recurrent, fused.enabled = getattr(fused, "enabled", True), False
    try:
        with sdpa_kernel(SDPBackend.MATH), _Following(nodes):
            made = model(*call[0], **call[1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        fused.enabled = recurrent
    for y in pytree.tree_leaves(made):
        if isinstance(y, Tensor):
            nodes.fix(nodes.axes(y))
    units: dict[int, list[tuple[str, int, int]]] = {}
    roots = nodes.roots(np.arange(len(nodes.places))).tolist()
    for place, root in zip(nodes.places, roots, strict=True):
        if root:
            units.setdefault(root, []).append(place)
    families: dict[Any, list[dict[str, list[int]]]] = {}
    for own in units.values():
        axes_of: dict[str, tuple[int, list[int]]] = {}
        for name, axis, k in own:
            first, found = axes_of.setdefault(name, (axis, []))
            if first != axis:
                # Units on both axes, such as those that feed themselves in recurrent layers.
                break
            found.append(k)
        else:
            key = tuple((name, axis, len(found)) for name, (axis, found) in axes_of.items())
            families.setdefault(key, []).append({n: found for n, (_, found) in axes_of.items()})
    result = []
    for key, rows in families.items():
        axes = {
            n: (axis, torch.tensor([row[n] for row in rows], device="cpu")) for n, axis, _ in key
        }
        readers = tuple(n for n, axis, _ in key if (n, axis) in nodes.readers)
        own = {n: place for n, place in axes.items() if n in tensors}
        if len(rows) < 2 or not readers or len(readers) == len(own):
            continue
        family = MirrorFamily("permutation", own, len(rows), (), readers)
        result.append(Channels(family, {n: place for n, place in axes.items() if n in buffers}))
    return result


class _Following(TorchDispatchMode):
    """Carry nodes through the operations inside it."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__()
        self.nodes = nodes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the operation, then apply its rule."""
        kwargs = kwargs or {}
        nodes = self.nodes
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        before = [nodes.axes(x) for x in given]
        out = func(*args, **kwargs)
        made = [y for y in pytree.tree_leaves(out) if isinstance(y, Tensor)]
        if not any(n is not None for axes in before for n in axes):
            for y in made:
                nodes.set(y, (None,) * y.ndim)
            return out
        rule = RULES.get(func.overloadpacket.__name__)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = RULES["pointwise"]
        found: Sequence[Axes] | None = None
        if rule is not None:
            found = rule(nodes, given, made, args, kwargs)
        if found is None:
            for axes in before:
                nodes.fix(axes)
            found = []
        for k, y in enumerate(made):
            if rule in VIEWS:
                nodes.view(given[0], y)
            nodes.set(y, found[k] if k < len(found) else (None,) * y.ndim)
        return out
