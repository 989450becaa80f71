"""The table of operators: which groups each lets through, and on how many channels.

A rule gets the arguments of one call of an operator, and returns pairs of an algebra and a width:
matrices of that algebra and width may act on the channels around the operator. Linear algebra
decides later whether they do; a rule that proposes too much costs time, never a false claim.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dln_geometry.learning.architecture.probing.families import ALGEBRAS, Projection
from dln_geometry.learning.architecture.subject import Subject
from dln_geometry.support import shown

Rule = Callable[..., Iterable[tuple[str | Projection, int]]]


@dataclass
class Proposals:
    """What the operators of a module propose, and those that have no rule."""

    linear: dict[int, None] = field(default_factory=dict)
    others: dict[str | Projection, dict[int, None]] = field(default_factory=dict)
    widths: tuple[int, ...] = ()
    stops: dict[str, None] = field(default_factory=dict)
    # Start and size of the parts into which axes of a length are split.
    segments: dict[int, dict[tuple[int, int], None]] = field(default_factory=dict)
    # Entries of each index of an axis of a length that is made by merging, or will be split.
    inners: dict[int, dict[int, None]] = field(default_factory=dict)
    class_axis: int = -1  # where the last linear map puts its channels

    @property
    def algebras(self) -> list[str | Projection]:
        """The algebras that are proposed, without the linear one; larger ones first."""
        order = list(ALGEBRAS)
        known = [a for a in order if a in self.others]
        return [*known, *(a for a in self.others if not isinstance(a, str))]

    def of(self, algebra: str | Projection) -> list[int]:
        """Return the widths that are proposed for an algebra."""
        return list(self.linear if algebra == "linear" else self.others.get(algebra, ()))

    def add(self, algebra: str | Projection, width: int) -> None:
        """Note a proposal."""
        own = self.linear if algebra == "linear" else self.others.setdefault(algebra, {})
        own[width] = None


_RULES: dict[str, Rule] = {}


def register_operator(op: Any, rule: Rule) -> None:
    """Tell the search for symmetries what may pass an operator.

    Parameters
    ----------
    op : OpOverload, OpOverloadPacket, custom operator, or str
        The operator, or its name such as ``"mylib::attention"``.
    rule : callable
        ``rule(*args, **kwargs)`` gets the arguments of a call and returns pairs ``(algebra,
        width)``: the groups that may act on so many channels before or after it. An algebra is
        one of ``"linear"``, ``"orthogonal"``, ``"orthogonal fixing ones"``, ``"rotary"``,
        ``"rotary neighbours"``, or a linear projection of matrices of shape (..., width, width) on
        the generators. Scalings of units, permutations and shifts need no proposal. An empty list
        says that the operator is understood and has none.

    Raises
    ------
    TypeError
        If `op` is no operator or `rule` no callable.

    Examples
    --------
    >>> dln.learning.register_operator("mylib::mix", lambda x, w: [("linear", w.shape[-1])])
    """
    if not callable(rule):
        raise TypeError(f"rule must be a function of the arguments of the operator, got {rule!r}")
    _RULES[_name_of(op)] = rule


def _name_of(op: Any) -> str:
    """Return the qualified name of an operator, without its overload."""
    op = getattr(op, "_opoverload", op)
    if isinstance(op, torch._ops.OpOverload):
        return op._schema.name
    if isinstance(op, torch._ops.OpOverloadPacket):
        return op._qualified_op_name
    if isinstance(op, str):
        space, separator, name = op.partition("::")
        if not separator or not space or not name:
            raise ValueError(f'op must be a name such as "aten::mul", got {op!r}')
        return f"{space}::{name.partition('.')[0]}"
    raise TypeError(f"op must be an operator of torch or its name, got {shown(op)}")


def _contraction(*args: Any, **kwargs: Any) -> Iterator[tuple[str, int]]:
    """Propose matrices on the last axis of each tensor: what a product contracts is among them."""
    for x in tree_leaves((args, kwargs)):
        if isinstance(x, Tensor) and x.ndim:
            yield "linear", x.shape[-1]
            if x.ndim > 1:
                yield "linear", x.shape[-2]


def _kernels(x: Tensor, weight: Tensor, *rest: Any, **kwargs: Any) -> Iterator[tuple[str, int]]:
    yield "linear", x.shape[1]
    yield "linear", weight.shape[0]
    # The channels of one group.
    yield "linear", weight.shape[1]
    groups = x.shape[1] // max(weight.shape[1], 1)
    yield "linear", weight.shape[0] // max(groups, 1)


def _layer_norm(x: Tensor, shape: Any, *rest: Any, **kwargs: Any) -> Iterator[tuple[str, int]]:
    yield "orthogonal fixing ones", x[..., :1].numel() and shape[-1]
    yield "orthogonal", shape[-1]


def _reduction(x: Any, *rest: Any, **kwargs: Any) -> Iterator[tuple[str, int]]:
    """Propose rotations of the last axis: a mean of squares or a norm does not see them."""
    if isinstance(x, Tensor) and x.ndim:
        yield "orthogonal", x.shape[-1]
        yield "orthogonal fixing ones", x.shape[-1]


def _joined(tensors: Any, *rest: Any, **kwargs: Any) -> Iterator[tuple[str, int]]:
    """Propose rotary pairs where two halves are joined, or pairs are."""
    sizes = {x.shape for x in tensors if x.ndim}
    if len(tensors) == 2 and len(sizes) == 1:
        yield "rotary", 2 * tensors[0].shape[-1]
        yield "rotary neighbours", 2 * tensors[0].shape[-1]


def _pairs(x: Tensor, *rest: Any, **kwargs: Any) -> Iterator[tuple[str, int]]:
    """Propose rotary pairs where real numbers become complex ones."""
    width = x.shape[-2] if x.ndim > 1 else 1
    yield "rotary neighbours", 2 * width
    yield "rotary", 2 * width


def _nothing(*args: Any, **kwargs: Any) -> tuple[()]:
    return ()


_TABLE: dict[Rule, str] = {
    _contraction: """vdot mm addmm bmm baddbmm addbmm addmv mv dot linear matmul embedding
        _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
        _scaled_dot_product_efficient_attention _scaled_dot_product_attention_math
        _scaled_dot_product_attention_math_for_mps _sparse_mm _sparse_addmm mkldnn_rnn_layer
        _fused_sdp_choice _trilinear _embedding_bag _embedding_bag_forward_only einsum""",
    _kernels: "convolution _convolution conv1d conv2d conv3d",
    _layer_norm: "native_layer_norm layer_norm rms_norm _fused_rms_norm",
    _reduction: "mean sum var var_mean std linalg_vector_norm norm",
    _joined: "cat stack",
    _pairs: "view_as_complex complex",
    _nothing: """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
        native_group_norm cudnn_batch_norm batch_norm _softmax _log_softmax softmax log_softmax
        native_dropout dropout bernoulli bernoulli_ rand rand_like randn randn_like randint
        randperm uniform_ normal_ exponential_
        max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d max_pool3d avg_pool1d
        avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d
        adaptive_max_pool2d adaptive_max_pool3d mean amax amin max min argmax argmin prod all any
        aminmax cumsum cumprod cummax cummin logsumexp logcumsumexp topk sort argsort median
        _log_softmax_backward_data index index_select gather scatter scatter_ scatter_add
        scatter_add_ scatter_reduce index_add index_add_ index_put index_put_ index_copy
        masked_fill masked_fill_ masked_scatter masked_select where nonzero one_hot bincount
        searchsorted bucketize unique_consecutive _unique2 segment_reduce
        clone copy copy_ _to_copy contiguous lift_fresh lift_fresh_copy detach alias
        _reshape_alias _unsafe_view view_as_real _conj _sparse_coo_tensor_with_dims_and_tensors
        empty empty_like new_empty zeros zeros_like new_zeros ones ones_like new_ones full
        full_like new_full fill fill_ zero_ arange linspace eye scalar_tensor tril triu tril_
        triu_ tril_indices triu_indices meshgrid constant_pad_nd reflection_pad1d
        reflection_pad2d replication_pad1d replication_pad2d roll flip repeat repeat_interleave
        upsample_nearest1d upsample_nearest2d upsample_bilinear2d im2col col2im pixel_shuffle
        pixel_unshuffle grid_sampler_2d _cdist_forward cosine_similarity equal is_nonzero
        _fft_r2c _fft_c2c _fft_c2r channel_shuffle glu _weight_norm_interface
        unbind split split_with_sizes chunk unsafe_split tensor_split stack diag_embed
        _assert_async _assert_scalar sym_size is_same_size resize_ set_ _thnn_fused_lstm_cell
        transpose t view squeeze unsqueeze permute expand select slice as_strided diagonal unfold
        movedim swapaxes _prelu_kernel to_dense values indices _values _indices coalesce
        _coalesce is_coalesced _coalesced_
        _nested_tensor_from_mask_left_aligned _has_compatible_shallow_copy_type""",
}
for _rule, _names in _TABLE.items():
    for _one in _names.split():
        _RULES.setdefault(f"aten::{_one}", _rule)
_RULES["aten::_local_scalar_dense"] = _nothing


_VIEWS = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias"}


class _Recorder(TorchDispatchMode):
    """Note the operators of a call: what they propose, and where those without a rule stand."""

    def __init__(self) -> None:
        super().__init__()
        self.proposals, self.sizes = Proposals(), dict[int, None]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator."""
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        name = func._schema.name
        rule = _RULES.get(name, _RULES.get(name.rstrip("_")))
        if rule in (_contraction, _kernels):
            self.proposals.class_axis = 1 if rule is _kernels else -1
        if rule is not None:
            for algebra, width in _proposed(rule, name, args, kwargs):
                if not (isinstance(algebra, str) and algebra in ALGEBRAS) and not callable(algebra):
                    raise ValueError(
                        f"the rule of {name} must return algebras among {list(ALGEBRAS)} or "
                        f"projections, got {algebra!r}"
                    )
                self.proposals.add(algebra, width)
        elif not (name.startswith(("aten::", "prim::")) and _is_entrywise(func)):
            self.proposals.stops[f"{name} ({_line()})"] = None
        parts = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
        for x in parts:
            self.sizes.update(dict.fromkeys(x.shape))
        if name.rpartition("::")[2].startswith(("split", "slice", "narrow", "chunk", "unsafe_sp")):
            self._note_parts(args[0], parts)
        if name in _VIEWS and parts:
            self._note_merged(args[0].shape, parts[0].shape)
            self._note_merged(parts[0].shape, args[0].shape)
        if name == "aten::cat" and len(parts) == 1:
            self._note_joined(args[0], parts[0], *args[1:], **kwargs)
        return value

    def _note_joined(self, parts: Sequence[Tensor], whole: Tensor, dim: int = 0) -> None:
        """Note where the parts of a joined axis begin."""
        sizes = [x.shape[dim] for x in parts if x.ndim == whole.ndim]
        own = self.proposals.segments.setdefault(whole.shape[dim], {}) if whole.ndim else {}
        for start, size in zip(accumulate([0, *sizes]), sizes, strict=False):
            # The parts may have been joined from others before.
            inner = list(self.proposals.segments.get(size, ())) if size != whole.shape[dim] else []
            own.update(dict.fromkeys([(start, size), *((start + s, n) for s, n in inner)]))

    def _note_merged(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Note how many entries the indices of merged axes have."""
        k = 0
        for n in after:
            own: list[int] = []
            while k < len(before) and prod(own) < n:
                own.append(before[k])
                k += 1
            if prod(own) != n:
                return
            for j in range(1, len(own)):
                if 1 < prod(own[j:]) < n:
                    self.proposals.inners.setdefault(n, {})[prod(own[j:])] = None

    def _note_parts(self, whole: Tensor, parts: Sequence[Tensor]) -> None:
        """Note where the parts of a split axis begin."""
        for x in parts:
            cut = [k for k in range(x.ndim) if x.ndim == whole.ndim and x.shape[k] < whole.shape[k]]
            if len(cut) == 1 and x.numel() and x.stride() == whole.stride():
                n, size, stride = whole.shape[cut[0]], x.shape[cut[0]], x.stride(cut[0])
                start = (x.storage_offset() - whole.storage_offset()) // max(stride, 1)
                self.proposals.segments.setdefault(n, {})[start, size] = None


def _proposed(rule: Rule, name: str, args: Any, kwargs: Any) -> list[tuple[str | Projection, int]]:
    """Return what a rule proposes for one call."""
    try:
        return [(algebra, int(width)) for algebra, width in rule(*args, **kwargs)]
    except Exception as error:
        raise ValueError(
            f"the rule of {name} must return pairs of an algebra and a width, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _is_entrywise(func: Any) -> bool:
    """Tell whether an operator acts on each entry alike, or only looks at a tensor otherwise."""
    return torch.Tag.pointwise in func.tags or func.is_view


def _line() -> str:
    """Return the line of the user's code that is being run."""
    for frame in reversed(traceback.extract_stack()):
        inside = ("/torch/" in frame.filename) or "dln_geometry/learning/" in frame.filename
        if not inside and not frame.filename.startswith("<"):
            return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return "torch"


def recorded(subject: Subject) -> Proposals:
    """Return what the operators of one call of a module propose."""
    recorder = _Recorder()
    own = subject.own()
    with recorder:
        subject.outputs(own)
    shapes = [p.shape for p in own.params.values() if p.is_floating_point()]
    axes = {n for shape in shapes for n in shape}
    # Widths of channels divide an axis of some parameter, or are two of its axes.
    both = axes | {m * n for shape in shapes if len(shape) > 2 for m, n in pairwise(shape)}
    fitting = [d for d in recorder.sizes if d > 1 and any(n % d == 0 for n in both)]
    found = recorder.proposals
    found.segments = {n: parts for n, parts in found.segments.items() if n in axes}
    fitting += [d for parts in found.segments.values() for _, d in parts if d > 1]
    found.widths = tuple(sorted({*(n for n in axes if n > 1), *fitting}, reverse=True))
    found.linear = {d: None for d in sorted(found.linear, reverse=True) if d in found.widths}
    found.others = {
        a: {d: None for d in sorted(ds, reverse=True) if d in found.widths}
        for a, ds in found.others.items()
    }
    return found
