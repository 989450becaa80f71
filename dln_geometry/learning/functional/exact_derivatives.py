"""Normalisations, embeddings and a mean square whose derivatives are right to every order.

Torch's fused kernels treat the mean and the deviation of the forward pass as constants in second
derivatives (torch 2.13), and raise no error: layer, batch and instance normalisation are right only
if the inner derivative is a backward pass, weight normalisation and third derivatives never. Nested
forward mode over the backward pass of torch's mean square stops with an error; sparse gradients of
embeddings have no algebra, and those of bags no derivative. Here all are written out. References:
the issues 175754, 186256, 196699, 196700 of pytorch/pytorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dln_geometry.learning.functional.losses import as_loss


def _smooth_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _affine(_standard(input, _last(normalized_shape), eps), weight, bias)


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    square = input.square().mean(_last(normalized_shape), keepdim=True)
    return _affine(input * (square + eps).rsqrt(), weight, None)


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Normalise over the batch, without changing the running statistics."""
    if training or running_mean is None or running_var is None:
        y = _standard(input, [d for d in range(input.ndim) if d != 1], eps)
    else:
        y = (input - _channels(running_mean, input)) * (_channels(running_var, input) + eps).rsqrt()
    return _affine(y, _channels(weight, input), _channels(bias, input))


def _instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)
    y = _standard(input, list(range(2, input.ndim)), eps)
    return _affine(y, _channels(weight, input), _channels(bias, input))


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    y = _standard(input.reshape(input.shape[0], num_groups, -1), [-1], eps).reshape(input.shape)
    return _affine(y, _channels(weight, input), _channels(bias, input))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    dims = [d for d in range(v.ndim) if d != dim % v.ndim] if dim != -1 else list(range(v.ndim))
    return v * (g * v.square().sum(dims, keepdim=True).rsqrt())


# Torch passes the options of these two as keywords.
def _functional_batch_norm(input: Tensor, mean: Any, variance: Any, **options: Any) -> Tensor:
    if options["training"] and input.numel() // input.shape[1] == 1:
        _refuse_single(input, "batch normalisation", "channel")
    return _batch_norm(input, running_mean=mean, running_var=variance, **options)


def _functional_instance_norm(input: Tensor, **options: Any) -> Tensor:
    if options["use_input_stats"] and input.shape[2:].numel() == 1:
        _refuse_single(input, "instance normalisation", "instance")
    return _instance_norm(input, **options)


def _refuse_single(x: Tensor, name: str, unit: str) -> None:
    raise ValueError(f"{name} must have more than one value per {unit}, got {tuple(x.shape)}")


def _standard(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _channels(v: Any, x: Tensor) -> Any:
    """Give a vector with one entry a channel the number of dimensions of x; None stays None."""
    return None if v is None else v.reshape(1, -1, *[1] * (x.ndim - 2))


def _last(normalized_shape: Sequence[int]) -> list[int]:
    return [-1 - d for d in range(len(normalized_shape))]


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Look rows up, with dense gradients that are the derivatives (but zero for the padding)."""
    if max_norm is not None:
        raise ValueError("embeddings must not change their weight, got max_norm")
    rows = functional.embedding(input, weight)
    if padding_idx is None:
        return rows
    padded = input == (padding_idx if padding_idx >= 0 else weight.shape[0] + padding_idx)
    return torch.where(padded.unsqueeze(-1), rows.detach(), rows)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Add rows up or average them; a largest one has torch's own derivative, the first."""
    if max_norm is not None:
        raise ValueError("embeddings must not change their weight, got max_norm")
    if mode not in ("sum", "mean") or (input.ndim == 1) != (offsets is not None):
        options: Any = {"padding_idx": padding_idx, "include_last_offset": include_last_offset}
        return functional.embedding_bag(
            input, weight, offsets, mode=mode, per_sample_weights=per_sample_weights, **options
        )
    shares = torch.ones_like(input, dtype=weight.dtype)
    if padding_idx is not None:
        shares = (input != padding_idx % weight.shape[0]).to(weight.dtype)
    count = shares
    if per_sample_weights is not None:
        shares = shares * per_sample_weights
    rows = functional.embedding(input, weight) * shares.unsqueeze(-1)
    if offsets is None:
        total, count = rows.sum(1), count.sum(1)
    else:
        bags = offsets[:-1] if include_last_offset else offsets
        bag = torch.bucketize(torch.arange(len(input), device=input.device), bags, right=True) - 1
        total = rows.new_zeros(len(bags), rows.shape[1]).index_add(0, bag, rows)
        count = count.new_zeros(len(bags)).index_add(0, bag, count)
    return total / count.clamp_min(1).unsqueeze(-1) if mode == "mean" else total


def _mean_square(input: Tensor, target: Tensor, reduction: str = "mean", **rare: Any) -> Tensor:
    if reduction not in ("mean", "sum", "none") or any(v is not None for v in rare.values()):
        # Torch handles deprecated arguments, weights and mistakes.
        return functional.mse_loss(input, target, reduction=reduction, **rare)
    squares = (input - target).square()
    return squares if reduction == "none" else getattr(squares, reduction)()


_WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {
    functional.layer_norm: _smooth_layer_norm,
    functional.rms_norm: _rms_norm,
    functional.batch_norm: _functional_batch_norm,
    functional.instance_norm: _functional_instance_norm,
    functional.group_norm: _group_norm,
    torch._weight_norm: _weight_norm,
    torch.layer_norm: _smooth_layer_norm,
    torch.rms_norm: _rms_norm,
    torch.batch_norm: _batch_norm,
    torch.instance_norm: _instance_norm,
    torch.group_norm: _group_norm,
    functional.embedding: _embedding,
    functional.embedding_bag: _embedding_bag,
}


class SmoothNormalisation(TorchFunctionMode):
    """Compute the normalisations of torch by their definitions within this context."""

    written_out: ClassVar[dict[Any, Callable[..., Tensor]]] = _WRITTEN_OUT

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the written-out function in place of a fused one."""
        return (self.written_out.get(func) or func)(*args, **(kwargs or {}))


class ExactDerivatives(SmoothNormalisation):
    """Compute normalisations and the mean square by their definitions within this context."""

    written_out: ClassVar = {**_WRITTEN_OUT, functional.mse_loss: _mean_square}


def with_exact_derivatives(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the same function, evaluated in `ExactDerivatives`."""
    loss = as_loss(loss)

    @wraps(loss, updated=())
    def exact(*args: Any, **kwargs: Any) -> Tensor:
        with ExactDerivatives():
            return loss(*args, **kwargs)

    return exact
