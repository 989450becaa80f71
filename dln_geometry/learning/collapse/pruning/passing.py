"""How the operations of torch pass the channels of tensors: one rule for each.

``rule(nodes, given, made, args, kwargs)`` returns the axes of the tensors that the operation made
from those given, and joins the nodes that it puts side by side; `None` where it cannot tell. What a
rule allows is tried on the outputs before anything is removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dln_geometry.learning.collapse.pruning.nodes import Axes, Axis, Nodes

Rule = Callable[[Nodes, Any, Any, Any, Any], Sequence[Axes] | None]


def _pointwise(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    found = []
    for y in made:
        axes: list[Axis] = []
        for k in range(1, y.ndim + 1):
            own = [nodes.axes(x)[-k] for x in given if x.ndim >= k and x.shape[-k] == y.shape[-k]]
            axes.insert(0, nodes.join(*own))
        found.append(tuple(axes))
    return found


def _like(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    """Return the axes of the first tensor, whose shape the result has."""
    return [nodes.axes(given[0])]


def _reshaped(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    old, new = list(given[0].shape), list(made[0].shape)
    axes, result = nodes.axes(given[0]), list[Axis]()
    if 0 in old or math.prod(old) != math.prod(new):
        # Expanded: axes are aligned at the end.
        pairs = zip(range(len(old) - len(new), len(old)), new, strict=True)
        return [tuple(axes[k] if k >= 0 and old[k] == n else None for k, n in pairs)]
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (a := math.prod(old[first:i])) != (b := math.prod(new[second:j])):
            i, j = (i + 1, j) if a < b else (i, j + 1)
        if old[first:i] == new[second:j]:
            result += axes[first:i]
            continue
        flat = _merged_axes(nodes, axes[first:i], old[first:i])
        result += _divided(nodes, flat, new[second:j])
    return [tuple(result)]


def _merged_axes(nodes: Nodes, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
    """Return the nodes of several axes as one; only one of them may have any."""
    own = [k for k, axis in enumerate(axes) if axis is not None]
    if not own:
        return None
    if len(own) > 1:
        nodes.fix(axes)
        return None
    k = own[0]
    shape = [n if i == k else 1 for i, n in enumerate(sizes)]
    return np.broadcast_to(axes[k].reshape(shape), sizes).reshape(-1)


def _divided(nodes: Nodes, flat: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Return the nodes of one axis as several, if they vary along one of these alone."""
    if flat is None:
        return [None] * len(sizes)
    roots = nodes.roots(flat).reshape(sizes)
    for k, n in enumerate(sizes):
        column = np.moveaxis(roots, k, 0).reshape(n, -1)
        if bool((column == column[:, :1]).all()):
            first = np.moveaxis(flat.reshape(sizes), k, 0).reshape(n, -1)[:, 0]
            return [first if i == k else None for i in range(len(sizes))]
    nodes.fix([flat])
    return [None] * len(sizes)


def _permuted(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    axes = list(nodes.axes(given[0]))
    if len(args) == 1:
        return [tuple(reversed(axes))]
    if isinstance(args[1], int):
        i, j = args[1], args[2]
        axes[i], axes[j] = axes[j], axes[i]
        return [tuple(axes)]
    return [tuple(axes[k] for k in args[1])]


def _joined_axes(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes] | None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % made[0].ndim
    parts = [x for x in given if x.ndim == made[0].ndim]
    axes: list[Axis] = []
    for k in range(made[0].ndim):
        own = [nodes.axes(x)[k] for x in parts]
        if k != dim:
            axes.append(nodes.join(*own))
        elif all(axis is None for axis in own):
            axes.append(None)
        else:
            sizes = [x.shape[k] for x in parts]
            pieces = zip(own, sizes, strict=True)
            zero = [np.zeros(n, dtype=np.int64) if a is None else a for a, n in pieces]
            axes.append(np.concatenate(zero))
    return [tuple(axes)]


def _cut_axes(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    """Return the axes of pieces along one axis, one after the other."""
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % given[0].ndim
    axes, start, found = nodes.axes(given[0]), 0, []
    for y in made:
        own = list(axes)
        if own[dim] is not None:
            own[dim] = own[dim][start : start + y.shape[dim]]
        start += y.shape[dim]
        found.append(tuple(own))
    return found


def _sliced(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    dim = args[1] if len(args) > 1 else 0
    start, end, step = (*args[2:], *(None, None, 1)[max(0, len(args) - 2) :])
    axes = list(nodes.axes(given[0]))
    if axes[dim] is not None:
        axes[dim] = axes[dim][slice(start, end, step)]
    return [tuple(axes)]


def _selected(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % given[0].ndim
    axes = list(nodes.axes(given[0]))
    nodes.fix([axes.pop(dim)])
    return [tuple(axes)] * len(made)


def _looked_up(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    rows, columns = nodes.axes(args[0])
    nodes.fix([rows, *nodes.axes(args[1])])
    return [((None,) * args[1].ndim + (columns,))]


def _indexed(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes] | None:
    axes, places = nodes.axes(args[0]), args[1]
    if len(places) != 1:
        return None
    nodes.fix([axes[0], *nodes.axes(places[0])])
    return [((None,) * places[0].ndim + axes[1:])]


def _multiplied_axes(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    """Return the axes of a product of matrices, with what is added to it, if anything."""
    *added, a, b = given
    left, right = nodes.axes(a), nodes.axes(b)
    nodes.contract(a, left[-1], b, right[max(0, b.ndim - 2)])
    batch = [nodes.join(x, y) for x, y in zip(left[:-2], right[:-2], strict=True)]
    axes = (*batch, *left[-2:-1], *(right[-1:] if b.ndim > 1 else ()))
    for x in added:
        own = nodes.axes(x)
        for k in range(1, x.ndim + 1):
            if x.shape[-k] == made[0].shape[-k]:
                nodes.join(own[-k], axes[-k])
    return [axes]


def _convolved(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes] | None:
    x, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    axes, own = nodes.axes(x), nodes.axes(weight)
    nodes.fix(own[2:])
    nodes.fix(axes[2:])
    if groups == 1:
        inner, outer = (0, 1) if transposed else (1, 0)
        nodes.contract(weight, own[inner], x, axes[1])
        channels = own[outer]
    elif groups == x.shape[1] and weight.shape[1] == 1:
        # Depthwise: every channel has a row of its own, or several.
        nodes.fix(own[1:2])
        several = weight.shape[0] // x.shape[1]
        above = None if axes[1] is None else np.repeat(axes[1], several)
        channels = nodes.join(own[0], above)
    else:
        return None
    if bias is not None:
        channels = nodes.join(channels, *nodes.axes(bias))
    return [(axes[0], channels, *[None] * (made[0].ndim - 2))]


def _normalised_channels(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    """Batch and group normalisation: the second axis has gains, shifts and statistics."""
    axes = list(nodes.axes(given[0]))
    for x in given[1:]:
        axes[1] = nodes.join(axes[1], *nodes.axes(x))
    return [tuple(axes)]


def _normalised_rows(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    """Layer and root mean square normalisation: the last axes have gains and shifts."""
    axes = list(nodes.axes(given[0]))
    for x in given[1:]:
        for k, own in enumerate(nodes.axes(x), len(axes) - x.ndim):
            axes[k] = nodes.join(axes[k], own)
    return [tuple(axes)]


def _reduced(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    axes, y = nodes.axes(given[0]), made[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = range(len(axes)) if dims is None or dims == [] else dims
    gone = {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims)} if axes else set()
    kept = [None if k in gone else axis for k, axis in enumerate(axes)]
    if y.ndim < len(axes):
        kept = [axis for k, axis in enumerate(axes) if k not in gone]
    return [tuple(kept)] * len(made)


def _pooled(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes] | None:
    """Return the axes of pooled, padded or interpolated pixels: those whose sizes changed go."""
    x, y = given[0], made[0]
    axes = nodes.axes(x)
    if x.ndim != y.ndim or any(a is not None and k > 1 for k, a in enumerate(axes)):
        return None
    changed = [a for a, m, n in zip(axes, x.shape, y.shape, strict=True) if m != n]
    nodes.fix(changed)
    return [tuple(a if k < 2 else None for k, a in enumerate(axes))]


def _repeated(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    counts = args[1]
    axes = [None] * (len(counts) - given[0].ndim) + list(nodes.axes(given[0]))
    pairs = zip(axes, counts, strict=True)
    return [tuple(None if a is None else np.tile(a, n) for a, n in pairs)]


def _gated(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    """Return the axes of the first half along one axis, joined to the second."""
    axes = list(nodes.axes(given[0]))
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % len(axes)
    if axes[dim] is not None:
        axes[dim] = nodes.join(*np.split(axes[dim], 2))
    return [tuple(axes)]


def _stacked_axes(nodes: Nodes, given: Any, made: Any, args: Any, kwargs: Any) -> list[Axes]:
    axes = [nodes.join(*own) for own in zip(*(nodes.axes(x) for x in given), strict=True)]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % made[0].ndim
    return [(*axes[:dim], None, *axes[dim:])]


VIEWS = (_like, _reshaped, _permuted, _cut_axes, _sliced)


def _table(*pairs: tuple[str, Rule]) -> dict[str, Rule]:
    return {name: rule for names, rule in pairs for name in names.split()}


RULES: dict[str, Rule] = _table(
    ("pointwise where masked_fill clone copy_ native_dropout hardswish", _pointwise),
    ("detach alias _to_copy lift_fresh lift_fresh_copy contiguous", _like),
    ("zeros_like ones_like full_like empty_like rand_like randn_like cumsum", _like),
    ("_softmax _safe_softmax _log_softmax", _like),
    ("view _unsafe_view reshape _reshape_alias unsqueeze squeeze expand", _reshaped),
    ("t transpose permute", _permuted),
    ("cat", _joined_axes),
    ("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk", _cut_axes),
    ("slice", _sliced),
    ("select unbind", _selected),
    ("embedding", _looked_up),
    ("index", _indexed),
    ("mm addmm bmm baddbmm mv dot", _multiplied_axes),
    ("convolution", _convolved),
    ("native_batch_norm _native_batch_norm_legit_no_training", _normalised_channels),
    ("_native_batch_norm_legit native_group_norm cudnn_batch_norm", _normalised_channels),
    ("native_layer_norm _fused_rms_norm", _normalised_rows),
    ("sum mean amax amin max min var std var_mean logsumexp linalg_vector_norm", _reduced),
    ("avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d", _pooled),
    ("max_pool2d_with_indices max_pool3d_with_indices constant_pad_nd", _pooled),
    ("adaptive_max_pool2d adaptive_max_pool3d reflection_pad2d replication_pad2d", _pooled),
    ("upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d", _pooled),
    ("repeat", _repeated),
    ("glu", _gated),
    ("stack", _stacked_axes),
    ("_prelu_kernel", _normalised_channels),
)
