"""Put deep linear layers and convolutions in the place of plain ones in any model, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dln_geometry.learning.layers.deep_convolution import CONVOLUTIONS, DeepConvolution
from dln_geometry.learning.layers.deep_linear import DeepLinear
from dln_geometry.support import as_layer_count, shown

M = TypeVar("M", bound=nn.Module)


def deepen(
    model: nn.Module,
    depth: int,
    where: str | Iterable[str] | Callable[[str, nn.Linear], bool] | None = None,
    *,
    hidden: int | Sequence[int] | None = None,
    gauge: str | Sequence[Any] | None = None,
    generator: Any = None,
) -> nn.Module:
    """Return a copy of a model whose linear layers are products of N, with the same function.

    Each `nn.Linear` chosen becomes a `DeepLinear` of balanced factors of its weight: gradient
    descent then moves the weight in the metric of depth N, towards low rank. So does the
    transposed layer of GPT-2 in transformers. A convolution becomes an `nn.Sequential`: one with
    its kernel and N - 1 of one pixel (transposed ones the other way round, groups in groups), the
    factors of its kernel as a matrix (outputs, inputs and pixels). Biases stay.

    Parameters
    ----------
    model : Module
        Not changed. A linear layer or convolution itself becomes a deep one.
    depth : int
        Number of layers N.
    where : str, iterable of str or callable, optional
        Which layers: patterns of names ("encoder.*", "*.fc1"), or ``where(name, layer)``, which is
        asked about linear layers; `None` takes all linear layers whose weight is their own, in a
        model without linear layers the convolutions.
    hidden, gauge, generator : optional
        As in `DeepLinear.from_linear`; of convolutions numbers of channels. A width below the rank
        of a weight is refused.

    Raises
    ------
    ValueError
        If no layer is chosen, or one that cannot be replaced: of a subclass, lazy,
        parametrised, with hooks, or with a weight that it shares with another module.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> deep = dln.learning.deepen(net, 3, where="2")
    >>> deep[2]
    DeepLinear(widths=(5, 2, 2, 2), bias=True)
    >>> x = torch.ones(4, 3)
    >>> bool(torch.allclose(deep(x), net(x), atol=1e-5))
    True
    """
    layers = as_layer_count(depth)
    twin = _own_copy(model)
    linear, convolutions = _layers_of(twin)
    if not linear and not convolutions:
        raise ValueError(f"model must have linear layers, got none in {shown(model)}")
    chosen = _chosen_layers(linear, convolutions, where)
    owners: dict[int, set[int]] = {}
    for module in twin.modules():
        for p in module._parameters.values():
            owners.setdefault(id(p), set()).add(id(module))
    kept = {}
    for name, layer in chosen.items():
        reason = _obstacle(layer, owners)
        if reason is None:
            kept[name] = layer
        elif where is not None:
            raise ValueError(
                f"where must choose linear layers of their own, got {name!r}: {reason}"
            )
    if not kept:
        reasons = {name: _obstacle(layer, owners) for name, layer in chosen.items()}
        raise ValueError(
            "model must have linear layers that where chooses and that can be replaced, got none "
            f"among {sorted(linear)}: {reasons}"
        )
    options = {"gauge": gauge, "generator": generator}
    made: dict[int, nn.Module] = {}
    for layer in kept.values():
        if type(layer) in CONVOLUTIONS:
            made[id(layer)] = DeepConvolution.from_convolution(layer, layers, hidden, **options)
        else:
            plain = layer if isinstance(layer, nn.Linear) else _untransposed(layer)
            made[id(layer)] = DeepLinear.from_linear(plain, layers, hidden, **options)
    return _replaced(twin, made)


def flatten_depth(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its deep layers as `nn.Linear` or convolutions (undo `deepen`).

    The function is the same up to rounding; a model without deep layers is copied as it is, and
    the transposed layers of GPT-2 stay `nn.Linear`.

    Examples
    --------
    >>> net = torch.nn.Sequential(dln.learning.DeepLinear((3, 2, 4)), torch.nn.ReLU())
    >>> dln.learning.flatten_depth(net)[0]
    Linear(in_features=3, out_features=4, bias=True)
    """
    twin = _own_copy(model)
    made: dict[int, nn.Module] = {}
    for _, layer in _modules_of(twin):
        if isinstance(layer, DeepLinear):
            flat = layer.collapse()
            flat.weight.requires_grad_(any(w.requires_grad for w in layer.weights))
            if layer.bias is not None:
                flat.bias.requires_grad_(layer.bias.requires_grad)
            made[id(layer)] = flat
        elif isinstance(layer, DeepConvolution):
            made[id(layer)] = layer.collapse()
    return _replaced(twin, made)


def is_transposed_linear(module: nn.Module) -> bool:
    """Tell whether a module is the linear layer of GPT-2 in transformers, with weight (in, out)."""
    weight = getattr(module, "weight", None)
    named = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers")
    return named and isinstance(weight, Tensor) and weight.ndim == 2


def _own_copy(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TypeError(f"model must be one that copy.deepcopy can copy: {error}") from error


def _modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return all modules but the original weights inside deep ones and parametrisations."""
    return [(n, m) for n, m in model.named_modules() if "parametrizations" not in n.split(".")]


def _layers_of(model: nn.Module) -> tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]]:
    """Return the linear layers and the convolutions, without those of deep convolutions."""
    modules = _modules_of(model)
    inside = {id(one) for _, m in modules if isinstance(m, DeepConvolution) for one in m}
    linear = {n: m for n, m in modules if isinstance(m, nn.Linear) or is_transposed_linear(m)}
    folded = {n: m for n, m in modules if isinstance(m, CONVOLUTIONS) and id(m) not in inside}
    return linear, folded


def _untransposed(layer: Any) -> nn.Linear:
    """Return the linear layer with the transpose of a weight (in, out)."""
    n, m = layer.weight.shape
    plain = nn.Linear(n, m, layer.bias is not None, "meta", layer.weight.dtype)
    weight = layer.weight.detach().mT.clone(memory_format=torch.contiguous_format)
    plain.weight = nn.Parameter(weight, layer.weight.requires_grad)
    if layer.bias is not None:
        plain.bias = layer.bias
    return plain.train(layer.training)


def _chosen_layers(
    linear: Mapping[str, nn.Module], convolutions: Mapping[str, nn.Module], where: Any
) -> dict[str, nn.Module]:
    if where is None:
        return dict(linear or convolutions)
    if callable(where) and not isinstance(where, type | nn.Module):
        return {name: m for name, m in linear.items() if where(name, m)}
    patterns = [where] if isinstance(where, str) else where
    if isinstance(patterns, bytes | Tensor) or not isinstance(patterns, Iterable):
        raise TypeError(f"where must be patterns of names or a function, got {shown(where)}")
    layers, found = {**linear, **convolutions}, dict[str, nn.Module]()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"where must hold patterns of names, got {shown(pattern)}")
        own = {name: m for name, m in layers.items() if fnmatchcase(name, pattern)}
        if not own:
            raise ValueError(
                f"where must match linear layers or convolutions, of {sorted(layers)}, got "
                f"{pattern!r}"
            )
        found |= own
    return found


def _obstacle(layer: Any, owners: Mapping[int, set[int]]) -> str | None:
    """Return why a layer cannot be replaced, `None` if it can."""
    if parametrize.is_parametrized(layer):
        return "it is parametrised"
    if nn.parameter.is_lazy(layer.weight):
        return "it is lazy: call the model once"
    if type(layer) not in (nn.Linear, *CONVOLUTIONS) and not is_transposed_linear(layer):
        return f"it is a {type(layer).__name__}, which may do more than a linear layer"
    if any(len(owners[id(p)]) > 1 for p in layer.parameters()):
        return "it shares its weight or bias with another module"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks"
    return None


def _replaced(model: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """Put the modules made in the places of those with these ids."""
    if id(model) in made:
        return made[id(model)]
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and id(child) in made:
                parent._modules[key] = made[id(child)]
    return model
