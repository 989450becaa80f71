"""Make the loss of a module on data a pure function of a dict of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from dln_geometry.learning.functional.exact_derivatives import SmoothNormalisation
from dln_geometry.learning.functional.losses import as_loss
from dln_geometry.learning.functional.purity import check_pure, pure_copy
from dln_geometry.support import shared_pair, shown

Parameters = dict[str, Tensor]
Tensors = Mapping[str, Tensor]
Loss = Callable[[Parameters], Tensor]


@dataclass(frozen=True, eq=False)
class ModuleLoss:
    """The loss of a module on fixed data, a pure function of the parameters.

    Made by `functionalize`; ``loss(params) = loss_fn(module(*args, **kwargs), *rest)`` with the
    module's parameters, whose `names` `params` must have as keys, replaced by `params`.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Linear(1, 1, bias=False)
    >>> data = torch.ones(1, 1), torch.ones(1, 1)
    >>> loss, params = dln.learning.functionalize(net, nn.MSELoss(), data)
    >>> isinstance(loss, dln.learning.ModuleLoss), loss.names
    (True, frozenset({'weight'}))
    >>> loss({"weight": torch.tensor([[3.0]])})
    tensor(4.)
    """

    module: nn.Module
    loss_fn: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rest: tuple[Any, ...]
    names: frozenset[str]

    def __call__(self, params: Tensors) -> Tensor:
        """Return the loss at `params`, a scalar tensor."""
        if params.keys() != self.names:
            missing = [f"no {name!r}" for name in sorted(self.names - params.keys())]
            unknown = [repr(name) for name in sorted(params.keys() - self.names)]
            raise ValueError(
                f"params must have the names of the module's parameters, got "
                f"{', '.join(missing + unknown)}"
            )
        # Fused kernels have one derivative only in attention, and two in normalisations.
        with sdpa_kernel(SDPBackend.MATH), SmoothNormalisation():
            output = functional_call(self.module, dict(params), self.args, self.kwargs)
            return self.loss_fn(output, *self.rest)

    def on(self, data: Any) -> ModuleLoss:
        """Return the same loss on other data (as in `functionalize`), such as a minibatch."""
        args, kwargs, rest = _as_call(data)
        return replace(self, args=args, kwargs=kwargs, rest=rest)


def functionalize(
    module: nn.Module, loss_fn: Callable[..., Tensor], data: Any
) -> tuple[ModuleLoss, Parameters]:
    """Return the loss of a module as a pure function of its parameters, and the parameters.

    ``loss(params) = loss_fn(module(inputs), *rest)`` with the module's parameters replaced by
    `params`. ``torch.autograd`` and ``torch.func`` (``grad``, ``jvp``, ``vjp``, ``vmap``) can
    differentiate it to any order, and ``loss.on(batch)`` is the same function on another batch.

    Parameters
    ----------
    module : Module
        It is copied in its mode (training or evaluation), and not changed; without what wraps it
        (``DataParallel``, ``DistributedDataParallel``, ``AveragedModel``, ``torch.compile``), under
        the names that its parameters have in the wrapper.
    loss_fn : callable
        ``loss_fn(output, *rest)`` returns a real scalar tensor, of shape ().
    data : tuple, tensor or mapping
        ``(inputs, *rest)``, most often ``(inputs, target)``; `inputs` is the argument of the
        module, a tuple of its arguments, or a mapping of its keyword arguments. A tensor or
        mapping alone is `inputs` without a rest. Arrays become tensors.

    Returns
    -------
    loss : ModuleLoss
        ``loss(params)``, a scalar tensor.
    params : dict of str to Tensor
        Detached copies of the parameters that require gradients, keyed as in
        ``named_parameters()``: tied ones once, those of a parametrisation under
        ``parametrizations.<name>.original``.

    Raises
    ------
    TypeError
        If the module is scripted, cannot be copied, or uses checkpointing or an
        ``autograd.Function`` that ``torch.func`` cannot differentiate.
    ValueError
        If the module has parameters without values (lazy or meta), made under
        ``torch.inference_mode``, or different ones that share memory; or the loss is not a finite,
        differentiable scalar, draws random numbers (dropout) or changes buffers or parameters
        (embeddings with max_norm).

    Notes
    -----
    Buffers, and parameters that do not require gradients, are constants, copied as they are now.
    Batch and instance normalisation use the statistics of the batch in training mode, without
    changing the running ones. Normalisations are computed by their definitions, since torch's
    fused kernels have wrong higher derivatives and raise no error (a gradient takes about half as
    long again); embeddings have dense gradients, without scale_grad_by_freq; attention takes
    torch's plain kernel, since its fused ones have no second derivatives. For these, recurrent
    layers on a GPU need ``torch.backends.cudnn.flags(enabled=False)``.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.ones_(layer.weight)
    >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0]])
    >>> loss, params = dln.learning.functionalize(layer, torch.nn.functional.mse_loss, (x, y))
    >>> loss(params)
    tensor(4.)
    >>> torch.func.grad(loss)(params)
    {'weight': tensor([[4., 8.]])}
    """
    named = parameters_of(module)
    if not callable(loss_fn) or isinstance(loss_fn, type):
        raise TypeError(f"loss_fn must be callable, got {shown(loss_fn)}")
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "functionalize must be called outside torch.inference_mode, where nothing is "
            "differentiable"
        )
    params = {}
    for name, p in named.items():
        if p.is_inference():
            raise ValueError(
                f"module must be made outside torch.inference_mode, got {name!r} made inside"
            )
        if p.is_meta:
            raise ValueError(f"module must have values, got {name!r} on the meta device")
        if p.requires_grad:
            if not p.is_floating_point():
                raise TypeError(f"parameters must be real, got {p.dtype} for {name!r}")
            params[name] = p.detach().clone()
    if not params:
        raise ValueError("module must have parameters that require gradients, got none")
    args, kwargs, rest = _as_call(data)
    loss = ModuleLoss(pure_copy(module), loss_fn, args, kwargs, rest, frozenset(params))
    check_pure(loss, loss.module, params)
    return loss, params


def batch_losses(loss: Any, batches: Any, name: str) -> list[Loss]:
    """Return the loss of each minibatch, from ``loss(params, batch)`` or a `ModuleLoss`."""
    as_loss(loss)
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Tensor | Mapping):
        raise TypeError(f"{name} must be an iterable of minibatches, got {shown(batches)}")
    found: list[Loss] = [
        loss.on(b) if isinstance(loss, ModuleLoss) else lambda p, b=b: loss(p, b) for b in batches
    ]
    if not found:
        raise ValueError(f"{name} must hold at least one minibatch, got none")
    return found


def parameters_of(module: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of a module by name; refuse those without a shape (lazy).

    Parameters that share memory are refused, too: as two, each would move without the other.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"module must be a module of Python, got a {type(module).__name__}: take the module "
            "that it was scripted from"
        )
    named = dict(module.named_parameters())
    for name in (name for name, p in named.items() if is_lazy(p)):
        raise ValueError(
            f"module must have all its parameters, got {name!r} without a shape: call the module "
            "once"
        )
    names = list(named)
    if pair := shared_pair([p.detach() for p in named.values()]):
        raise ValueError(
            "module must hold parameters that share memory as one nn.Parameter, got "
            f"{names[pair[0]]!r} and {names[pair[1]]!r}"
        )
    return named


def _as_call(data: Any) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Return the module's arguments and keyword arguments, and the rest for the loss."""
    if isinstance(data, tuple | list) and not data:
        raise ValueError("data must be (inputs, *rest), got nothing")
    inputs, *rest = data if isinstance(data, tuple | list) else (data,)
    return *as_arguments(inputs), tuple(_as_input(x) for x in rest)


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and keyword arguments of a module: of one, a tuple, or a mapping."""
    if isinstance(inputs, Mapping):
        return (), {name: _as_input(x) for name, x in inputs.items()}
    arguments = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(_as_input(x) for x in arguments), {}


def _as_input(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_inference():
        # Autograd cannot save tensors of torch.inference_mode.
        return x.clone()
    if not isinstance(x, np.ndarray):
        return x
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"data must hold arrays of numbers, got {x.dtype}: {error}") from None
