"""Balanced factors of an update of a weight in adapters of low rank (LoRA), of any depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dln_geometry.learning.layers.deep_linear import DeepLinear
from dln_geometry.learning.layers.filling import fill_balanced
from dln_geometry.support import as_positive, shown

T = TypeVar("T")
_PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def balanced_adapter_(
    adapter: T, update: Any, *, scaling: float | None = None, name: str = "default"
) -> T:
    """Fill an adapter with the balanced factors of an update of a weight, in place; return it.

    The factors of ``update = scaling B A`` are balanced, ``B^T B = A A^T``, and of least norm; of
    an update of larger rank they make the nearest matrix of the rank of the adapter. Usual
    adapters start at ``B = 0``, where only B learns. Biases of the adapter stay.

    Parameters
    ----------
    adapter : Module or sequence
        A layer of LoRA as PEFT makes it, with ``lora_A`` and ``lora_B`` (linear layers or
        convolutions) or ``lora_embedding_A`` and ``lora_embedding_B``, by name or themselves
        parameters; or the linear layers, convolutions or weights themselves, input side first: two
        or more, also as an `nn.Sequential` or a `DeepLinear`.
    update : array_like, shape (m, n)
        The change of the weight that the adapter is to make, in the shape of that weight:
        (m, n, *kernel) of a convolution, (numbers, features) of an embedding, transposed where the
        layer says ``fan_in_fan_out``.
    scaling : float, optional
        Factor of the product; by default the one that the layer holds, otherwise 1.
    name : str
        Which adapter of the layer.

    Raises
    ------
    ValueError
        If shapes do not fit, the name is none of the adapter's, or the adapter does not add
        ``B A`` to the weight (DoRA, grouped convolutions, a kernel in B).

    Examples
    --------
    >>> a, b = torch.zeros(1, 2), torch.zeros(2, 1)
    >>> _ = dln.learning.balanced_adapter_((a, b), [[0.0, 4.0], [0.0, 0.0]])
    >>> b @ a, (b.mT @ b - a @ a.mT).abs().max() < 1e-6
    (tensor([[0., 4.],
            [0., 0.]]), tensor(True))
    """
    if update is None:
        raise TypeError("update must be a matrix, got None")
    own: Any = 1.0
    turned = False
    parts: Any = adapter
    if isinstance(adapter, DeepLinear):
        parts = list(adapter.weights)
    elif isinstance(adapter, nn.Sequential | nn.ModuleList | nn.ParameterList):
        parts = list(adapter)
    elif isinstance(adapter, nn.Module):
        parts, own, turned = _layer_of_lora(adapter, name)
    if isinstance(parts, Tensor | str | bytes) or not isinstance(parts, Sequence) or not parts:
        raise TypeError(f"adapter must be a layer of LoRA or a sequence, got {shown(adapter)}")
    weights = [_matrix_of(part, k, k == 0) for k, part in enumerate(parts)]
    factor = as_positive(own if scaling is None else scaling, "scaling")
    # Shapes of views: a weight whose strides do not let it be one is filled by way of a copy.
    matrices = [w.detach().flatten(1) for w in weights]
    rank = min(matrices[0].shape[-1], *(w.shape[-2] for w in matrices))
    given = _as_update(update, (matrices[-1].shape[0], *weights[0].shape[1:]), turned)
    options: Any = {"rank": rank, "scale": 1.0 / factor, "gauge": None, "name": "update"}
    fill_balanced(matrices, end_to_end=given, **options)
    with torch.no_grad():
        for weight, matrix in zip(weights, matrices, strict=True):
            if matrix.data_ptr() != weight.data_ptr():
                weight.copy_(matrix.reshape(weight.shape))
    return adapter


def _layer_of_lora(layer: nn.Module, name: Any) -> tuple[list[Any], Any, bool]:
    """Return A and B of a layer, its scaling, and whether its weight is transposed."""
    held: list[list[Any]] = [[getattr(layer, key, None) for key in pair] for pair in _PAIRS]
    kinds = (Mapping, nn.ModuleDict, nn.ParameterDict)
    by_name = [pair for pair in held if all(isinstance(m, kinds) for m in pair)]
    whole = [pair for pair in held if all(isinstance(m, Tensor | nn.Module) for m in pair)]
    fan_in = bool(getattr(layer, "fan_in_fan_out", False))
    if not by_name:
        if not whole:
            raise TypeError(
                f"adapter must have lora_A and lora_B, or be a sequence, got {shown(layer)}"
            )
        # Embeddings add the transpose of B A to a weight with a row for each number.
        turned = fan_in ^ isinstance(layer, nn.Embedding)
        return whole[0], getattr(layer, "scaling", 1.0), turned
    names = list(dict.fromkeys(n for first, _ in by_name for n in first))
    found = [(k, pair) for k, pair in enumerate(held) if pair in by_name and name in pair[0]]
    if not isinstance(name, str) or not found or name not in found[0][1][1]:
        raise ValueError(f"name must be one of {names}, got {name!r}")
    if getattr(layer, "use_dora", {}).get(name, False):
        raise ValueError("adapter must add B A to the weight, got DoRA, which scales its columns")
    k, pair = found[0]
    scaling = getattr(layer, "scaling", {name: 1.0})[name]
    return [m[name] for m in pair], scaling, fan_in ^ (k == 1)


def _matrix_of(part: Any, k: int, is_first: bool) -> Tensor:
    """Return a weight that acts as a matrix: only the first layer may have a kernel."""
    weight: Any = part
    if isinstance(part, (nn.Linear, *_CONVOLUTIONS)):
        weight = part._parameters.get("weight")
        if weight is None:
            # weight_norm and parametrize compute the weight: changes of it would be lost.
            raise TypeError(f"adapter[{k}] must hold its weight, got a computed one: {shown(part)}")
    if isinstance(weight, Tensor) and nn.parameter.is_lazy(weight):
        raise ValueError(f"adapter[{k}] must be initialised, got a lazy parameter")
    if isinstance(part, _CONVOLUTIONS):
        if part.groups != 1:
            raise ValueError(f"adapter[{k}] must have one group, got {part.groups}")
        if not is_first and weight[0, 0].numel() > 1:
            raise ValueError(
                f"adapter[{k}] must have a kernel of one point, got {tuple(part.kernel_size)}"
            )
    elif not isinstance(weight, Tensor) or weight.ndim != 2:
        raise TypeError(
            f"adapter[{k}] must be a linear layer, a convolution or a matrix, got {shown(part)}"
        )
    return weight


def _as_update(update: Any, shape: tuple[int, ...], turned: bool) -> Any:
    """Return the update as the matrix that the adapter makes, from the shape of the weight."""
    try:
        x = torch.as_tensor(update)
    except (TypeError, ValueError, RuntimeError):
        return update
    if turned and x.ndim == 2:
        if tuple(x.shape) != shape[::-1]:
            raise ValueError(f"update must have shape {shape[::-1]}, got {tuple(x.shape)}")
        return x.mT
    # A kernel may be given as a matrix.
    return x.flatten(1) if len(shape) > 2 and tuple(x.shape) == shape else x
