"""Put deep linear layers in the place of linear ones in any model, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

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
    descent then moves the weight in the metric of depth N, towards low rank. Biases stay.

    Parameters
    ----------
    model : Module
        Not changed. A linear layer itself becomes a deep one.
    depth : int
        Number of layers N.
    where : str, iterable of str or callable, optional
        Which linear layers: patterns of names ("encoder.*", "*.fc1"), or ``where(name, layer)``;
        `None` takes all whose weight is their own.
    hidden, gauge, generator : optional
        As in `DeepLinear.from_linear`; a width below the rank of a weight is refused.

    Raises
    ------
    ValueError
        If no layer is chosen, or one that cannot be replaced: of a subclass of `nn.Linear`, lazy,
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
    linear = {name: m for name, m in _modules_of(twin) if isinstance(m, nn.Linear)}
    if not linear:
        raise ValueError(f"model must have linear layers, got none in {shown(model)}")
    chosen = _chosen_layers(linear, where)
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
    made = {
        id(layer): DeepLinear.from_linear(layer, layers, hidden, gauge=gauge, generator=generator)
        for layer in kept.values()
    }
    return _replaced(twin, made)


def flatten_depth(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its deep linear layers as `nn.Linear` again (undo `deepen`).

    The function is the same up to rounding; a model without deep layers is copied as it is.

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


def _chosen_layers(linear: Mapping[str, nn.Linear], where: Any) -> dict[str, nn.Linear]:
    if where is None:
        return dict(linear)
    if callable(where) and not isinstance(where, type | nn.Module):
        return {name: m for name, m in linear.items() if where(name, m)}
    patterns = [where] if isinstance(where, str) else where
    if isinstance(patterns, bytes | Tensor) or not isinstance(patterns, Iterable):
        raise TypeError(f"where must be patterns of names or a function, got {shown(where)}")
    found: dict[str, nn.Linear] = {}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"where must hold patterns of names, got {shown(pattern)}")
        own = {name: m for name, m in linear.items() if fnmatchcase(name, pattern)}
        if not own:
            raise ValueError(
                f"where must match linear layers, of {sorted(linear)}, got {pattern!r}"
            )
        found |= own
    return found


def _obstacle(layer: nn.Linear, owners: Mapping[int, set[int]]) -> str | None:
    """Return why a layer cannot be replaced, `None` if it can."""
    if parametrize.is_parametrized(layer):
        return "it is parametrised"
    if nn.parameter.is_lazy(layer.weight):
        return "it is lazy: call the model once"
    if type(layer) is not nn.Linear:
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
