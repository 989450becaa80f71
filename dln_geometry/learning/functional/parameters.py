"""Make the loss of a module on data a pure function of a dict of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from dln_geometry.learning.functional.exact_derivatives import SmoothNormalisation

Parameters = dict[str, Tensor]
Tensors = Mapping[str, Tensor]
Loss = Callable[[Parameters], Tensor]


@dataclass(frozen=True, eq=False)
class ModuleLoss:
    """The loss of a module on fixed data, a pure function of the parameters.

    Made by `functionalize`; ``loss(params) = loss_fn(module(*args, **kwargs), *rest)`` with the
    module's parameters, whose `names` `params` must have as keys, replaced by `params`.
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
        It is copied in its mode (training or evaluation), and not changed.
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
        If the module is scripted or cannot be copied.
    ValueError
        If the module has parameters without values (lazy or meta), or the loss is not a finite,
        differentiable scalar, draws random numbers (dropout) or changes a buffer.

    Notes
    -----
    Buffers, and parameters that do not require gradients, are constants, copied as they are now.
    Batch and instance normalisation use the statistics of the batch in training mode, without
    changing the running ones. Normalisations are computed by their definitions, since torch's
    fused kernels have wrong higher derivatives and raise no error (a gradient takes about half as
    long again), and attention by torch's plain kernel, since its fused ones have no second
    derivatives; for these, recurrent layers on a GPU need
    ``torch.backends.cudnn.flags(enabled=False)``.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.ones_(layer.weight)
    >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0]])
    >>> loss, params = functionalize(layer, torch.nn.functional.mse_loss, (x, y))
    >>> loss(params)
    tensor(4.)
    >>> torch.func.grad(loss)(params)
    {'weight': tensor([[4., 8.]])}
    """
    named = parameters_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"module must be a module of Python, got a {type(module).__name__}: take the module "
            "that it was scripted from"
        )
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
    params = {}
    for name, p in named.items():
        if p.is_meta:
            raise ValueError(f"module must have values, got {name!r} on the meta device")
        if p.requires_grad:
            if not p.is_floating_point():
                raise TypeError(f"parameters must be real, got {p.dtype} for {name!r}")
            params[name] = p.detach().clone()
    if not params:
        raise ValueError("module must have parameters that require gradients, got none")
    args, kwargs, rest = _as_call(data)
    loss = ModuleLoss(_pure_copy(module), loss_fn, args, kwargs, rest, frozenset(params))
    _check_pure(loss, params)
    return loss, params


def parameters_of(module: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of a module by name; refuse lazy ones, which have no shape."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    named = dict(module.named_parameters())
    for name in (name for name, p in named.items() if is_lazy(p)):
        raise ValueError(
            f"module must have all its parameters, got {name!r} without a shape: call the module "
            "once"
        )
    return named


def flatten(params: Tensors) -> Tensor:
    """Return all parameters as one vector, shape (p,), in the order of the dict.

    ``unflatten(vector, params)`` is the inverse.

    Examples
    --------
    >>> flatten({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3.0)})
    tensor([1., 2., 3.])
    """
    if not params:
        raise ValueError("params must hold at least one tensor, got none")
    return torch.cat([p.reshape(-1) for p in params.values()])


def unflatten(vector: Tensor, like: Tensors) -> Parameters:
    """Return the dict whose `flatten` is `vector`, with the names, shapes and dtypes of `like`.

    Examples
    --------
    >>> unflatten(torch.tensor([1.0, 2.0, 3.0]), {"w": torch.zeros(1, 2), "b": torch.zeros(())})
    {'w': tensor([[1., 2.]]), 'b': tensor(3.)}
    """
    sizes = [p.numel() for p in like.values()]
    if vector.ndim != 1 or vector.shape[0] != sum(sizes):
        raise ValueError(f"vector must have shape ({sum(sizes)},), got {tuple(vector.shape)}")
    parts = zip(like.items(), vector.split(sizes), strict=True)
    return {name: part.reshape(p.shape).to(p.dtype) for (name, p), part in parts}


def _as_call(data: Any) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Return the module's arguments and keyword arguments, and the rest for the loss."""
    if isinstance(data, tuple | list) and not data:
        raise ValueError("data must be (inputs, *rest), got nothing")
    inputs, *rest = data if isinstance(data, tuple | list) else (data,)
    others = tuple(_as_input(x) for x in rest)
    if isinstance(inputs, Mapping):
        return (), {name: _as_input(x) for name, x in inputs.items()}, others
    arguments = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(_as_input(x) for x in arguments), {}, others


def _as_input(x: Any) -> Any:
    return torch.as_tensor(x) if isinstance(x, np.ndarray) else x


def _pure_copy(module: nn.Module) -> nn.Module:
    """Copy a module so that calls of the copy do not change its buffers."""
    try:
        twin = copy.deepcopy(module)
    except RuntimeError as error:
        raise TypeError(
            "module must be one that copy.deepcopy can copy (the hooks of the old "
            f"torch.nn.utils.weight_norm cannot: use torch.nn.utils.parametrizations): {error}"
        ) from None
    twin.requires_grad_(False)
    for layer in twin.modules():
        if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats:
            # Without running statistics the layer has none to change.
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    return twin


def _check_pure(loss: ModuleLoss, params: Parameters) -> None:
    """Evaluate the loss once, and refuse it unless it is a pure, differentiable scalar."""
    buffers = {name: (b, b._version) for name, b in loss.module.named_buffers()}
    devices = {p.device for p in params.values() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
        with torch.enable_grad():
            value = loss({name: p.detach().requires_grad_() for name, p in params.items()})
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
    if not isinstance(value, Tensor):
        raise TypeError(f"loss_fn must return a tensor, got {type(value).__name__}")
    if value.shape != ():
        raise ValueError(f"the loss must be a scalar of shape (), got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        raise ValueError(f"the loss must be a real floating number, got {value.dtype}")
    if not value.requires_grad:
        raise ValueError("the loss must be differentiable in the parameters, got a constant")
    if not bool(torch.isfinite(value.detach())):
        raise ValueError(f"the loss must be finite at the module's parameters, got {value.item()}")
    if not all(torch.equal(a, b) for a, b in zip(states, after, strict=True)):
        raise ValueError(
            "the loss must not draw random numbers, got one that does: put dropout layers in "
            "evaluation mode"
        )
    for name, b in loss.module.named_buffers():
        before, version = buffers.get(name, (None, 0))
        if b is not before or b._version != version:
            raise ValueError(
                f"the loss must not change a buffer, got a change of {name!r}: put that layer "
                "in evaluation mode"
            )
