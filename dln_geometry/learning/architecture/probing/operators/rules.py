"""The table of operators: which groups each lets through, and on how many channels.

A rule gets the arguments of one call of an operator, and returns pairs of an algebra and a width:
matrices of that algebra and width may act on the channels around the operator. Linear algebra
decides later whether they do; a rule that proposes too much costs time, never a false claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dln_geometry.learning.architecture.probing.families import Projection
from dln_geometry.support import shown

Rule = Callable[..., Iterable[tuple[str | Projection, int]]]

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
    """Propose matrices on the channels of a convolution, and on those of one group."""
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


def _summation(x: Any, *rest: Any, **kwargs: Any) -> Iterator[tuple[str, int]]:
    """Propose what a reduction does, and matrices: the sum of products is a contraction."""
    yield from _reduction(x)
    if isinstance(x, Tensor) and x.ndim:
        yield "linear", x.shape[-1]


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
        _fused_sdp_choice _trilinear _embedding_bag _embedding_bag_forward_only einsum
        _scaled_dot_product_cudnn_attention _grouped_mm mkldnn_linear addr ger outer kron
        linalg_solve _linalg_solve_ex linalg_solve_triangular linalg_inv_ex linalg_matrix_exp
        _linalg_det _linalg_slogdet linalg_cholesky_ex cholesky_solve _euclidean_dist
        _transformer_encoder_layer_fwd _native_multi_head_attention""",
    _kernels: """convolution _convolution conv1d conv2d conv3d slow_conv3d_forward
        _slow_conv2d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d
        slow_conv_transpose3d _conv_depthwise2d conv_depthwise3d mkldnn_convolution
        cudnn_convolution""",
    _layer_norm: "native_layer_norm layer_norm rms_norm _fused_rms_norm",
    _summation: "sum",
    _reduction: "mean var var_mean std std_mean linalg_vector_norm norm",
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
        hardswish log_sigmoid log_sigmoid_forward _safe_softmax _masked_softmax rrelu_with_noise
        rrelu_with_noise_functional native_channel_shuffle polar cross linalg_cross trace
        _native_batch_norm_legit_no_training _batch_norm_with_update _thnn_fused_gru_cell
        empty_strided new_empty_strided empty_permuted logspace index_fill index_reduce take put
        _index_put_impl _unsafe_index _unsafe_index_put _unsafe_masked_index select_scatter
        slice_scatter diagonal_scatter as_strided_scatter upsample_linear1d upsample_nearest3d
        upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa reflection_pad3d replication_pad3d grid_sampler_3d
        affine_grid_generator max_unpool2d max_unpool3d fractional_max_pool2d
        fractional_max_pool3d multinomial poisson binomial kthvalue mode nanmedian nansum
        count_nonzero _to_sparse_csr _to_sparse_csc _to_sparse_bsr to_sparse_csr to_sparse_csc
        crow_indices col_indices ccol_indices row_indices _sparse_compressed_tensor_unsafe
        sparse_compressed_tensor sparse_csr_tensor _sparse_csr_tensor_unsafe sparse_mask
        _sparse_coo_tensor_unsafe sparse_coo_tensor _sparse_sum _sparse_softmax
        _sparse_log_softmax floor_divide remainder histc isin unique_dim nll_loss_forward
        nll_loss2d_forward mse_loss smooth_l1_loss huber_loss binary_cross_entropy _pdist_forward
        to_sparse _to_sparse rot90
        _nested_tensor_from_mask_left_aligned _has_compatible_shallow_copy_type""",
}
for _rule, _names in _TABLE.items():
    for _one in _names.split():
        _RULES.setdefault(f"aten::{_one}", _rule)
_RULES["aten::_local_scalar_dense"] = _nothing
# Whose first tensors are products of channels and weights.
PRODUCTS, CONVOLUTIONS = _contraction, _kernels


def rule_of(name: str) -> Rule | None:
    """Return the rule of an operator, `None` if it has none."""
    return _RULES.get(name, _RULES.get(name.rstrip("_")))
