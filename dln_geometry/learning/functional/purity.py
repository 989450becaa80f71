"""Copy a module, and refuse a loss that is no pure, differentiable function of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dln_geometry.learning.functional.wrappers import bare_copy


def pure_copy(module: nn.Module) -> nn.Module:
    """Copy a module so that calls of the copy do not change its buffers."""
    twin = bare_copy(module)
    twin.requires_grad_(False)
    for name, layer in twin.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            raise ValueError(
                f"module must not change its parameters, got an embedding with max_norm at {name!r}"
            )
        if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats:
            # Without running statistics the layer has none to change.
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    return twin


def check_pure(loss: Callable[..., Any], module: nn.Module, params: dict[str, Tensor]) -> None:
    """Evaluate the loss once, and refuse it unless it is a pure, differentiable scalar."""
    buffers = {name: (b, b._version) for name, b in module.named_buffers()}
    devices = {p.device for p in params.values() if p.device.type == "cuda"}
    given = {name: p.clone() for name, p in params.items()}

    def evaluated(q: dict[str, Tensor]) -> Tensor:
        return _checked_value(_attempted(loss, q))

    with torch.random.fork_rng(devices=[d.index for d in devices]):
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
        with torch.enable_grad():
            # As the library will: what torch.func cannot differentiate fails here, not later.
            value = torch.func.vjp(evaluated, given)[0]
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
    if not bool(torch.isfinite(value)):
        raise ValueError(f"the loss must be finite at the module's parameters, got {value.item()}")
    if not all(torch.equal(a, b) for a, b in zip(states, after, strict=True)):
        raise ValueError(
            "the loss must not draw random numbers, got one that does: put dropout layers in "
            "evaluation mode"
        )
    for name, b in module.named_buffers():
        before, version = buffers.get(name, (None, 0))
        if b is not before or b._version != version:
            raise ValueError(
                f"the loss must not change a buffer, got a change of {name!r}: put that layer "
                "in evaluation mode"
            )
    for name, p in params.items():
        if not torch.equal(given[name].nan_to_num(), p.nan_to_num()):
            raise ValueError(f"the loss must not change its parameters, got a change of {name!r}")


def _attempted(loss: Callable[..., Any], params: dict[str, Tensor]) -> Any:
    """Return ``loss(params)``; explain the errors of the module and of `loss_fn`."""
    try:
        return loss(params)
    except Exception as error:
        text = str(error)
        if "saved tensor hooks" in text or "setup_context" in text:
            raise TypeError(
                "module must be one that torch.func can differentiate, got checkpointing "
                "(torch.utils.checkpoint) or an autograd.Function without setup_context: call the "
                f"checkpointed function itself ({text.splitlines()[0]})"
            ) from error
        raise ValueError(
            f"module and loss_fn must accept the data, got {type(error).__name__}: {text}"
        ) from error


def _checked_value(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"loss_fn must return a tensor, got {type(value).__name__}")
    if value.shape != ():
        raise ValueError(f"the loss must be a scalar of shape (), got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        raise ValueError(f"the loss must be a real floating number, got {value.dtype}")
    if not value.requires_grad:
        raise ValueError("the loss must be differentiable in the parameters, got a constant")
    return value
