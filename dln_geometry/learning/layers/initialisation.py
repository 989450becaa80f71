"""Fill consecutive linear layers with balanced factors, like the functions of `torch.nn.init`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dln_geometry.learning.layers.deep_linear import DeepLinear
from dln_geometry.learning.layers.filling import fill_balanced

T = TypeVar("T")


def balanced_(
    module_or_weights: T,
    *,
    end_to_end: Any = None,
    distribution: str = "gaussian",
    rank: int | None = None,
    scale: float = 1.0,
    gauge: str | Sequence[Any] | None = "haar",
    generator: torch.Generator | int | None = None,
) -> T:
    """Fill consecutive linear layers with balanced factors of one matrix, in place; return them.

    ``W_p = Q_p Sigma^{1/N} Q_{p-1}^T`` with ``X = U Sigma V^T``, ``Q_N = U``, ``Q_0 = V``: the
    layers multiply to X, and the sum of their squares is the least possible. Biases are set to
    zero, so that the module is the map ``x -> X x``. Half precision is computed in float32 and
    rounded once. Layers that are tied (or come twice), mix dtypes or devices, or whose weights or
    biases are computed (weight_norm) are refused.

    Parameters
    ----------
    module_or_weights : DeepLinear, nn.Linear, nn.Sequential or sequence
        Nested `nn.Sequential` of linear layers (`nn.Identity` may stand between them), or a list
        of linear layers or of weight tensors of shape (..., d_p, d_{p-1}), input side first.
    end_to_end : array_like, shape (..., m, n), optional
        The matrix X itself, times `scale`.
    distribution : "gaussian" or "orthogonal"
        Law of X if it is not given. Gaussian: entries ``N(0, scale^2 / d_0)``, which at scale 1
        keeps the mean square of the entries of the input; below full rank on a Haar subspace of
        the narrower side. Orthogonal: Haar singular vectors, all singular values equal to `scale`.
    rank : int, optional
        Rank of X; `None` is the smallest width. Of a given X the nearest matrix of that rank.
    scale : float
        Positive factor of X.
    gauge : "haar", None or sequence of array_like
        Hidden frames Q_p: random, canonical (first columns of the identity), or given.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; if not given ``torch.manual_seed`` decides.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold).

    Examples
    --------
    >>> from dln_geometry import learning
    >>> layers = [torch.empty(1, 1) for _ in range(3)]
    >>> layers = learning.balanced_(layers, end_to_end=[[8.0]], gauge=None)
    >>> layers[0]
    tensor([[2.]])
    """
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    _collect(module_or_weights, "", weights, biases)
    laws: dict[str, Any] = {"distribution": distribution, "rank": rank, "scale": scale}
    fill_balanced(weights, end_to_end=end_to_end, gauge=gauge, generator=generator, **laws)
    for b in biases:
        nn.init.zeros_(b)
    return module_or_weights


def _collect(item: Any, name: str, weights: list[Tensor], biases: list[Tensor]) -> None:
    """Append the weights and biases of consecutive linear layers, input side first."""
    if isinstance(item, Tensor) and name:
        weights.append(item)
    elif isinstance(item, nn.Linear | DeepLinear):
        _check_forward(item, name, nn.Linear, DeepLinear)
        own = item.weights if isinstance(item, DeepLinear) else [item._parameters.get("weight")]
        for w in own:
            if not isinstance(w, nn.Parameter):
                # weight_norm and parametrize compute the weight: changes of it would be lost.
                raise TypeError(
                    f"module must hold its weights as parameters, got a computed weight "
                    f"in {_place(item, name)}"
                )
            weights.append(w)
        if item.bias is not None:
            if not isinstance(item.bias, nn.Parameter):
                raise TypeError(
                    f"module must hold its biases as parameters, got a computed bias in "
                    f"{_place(item, name)}"
                )
            biases.append(item.bias)
    elif isinstance(item, nn.Identity) and name:
        pass
    elif isinstance(item, nn.Sequential | nn.ModuleList | nn.ParameterList | list | tuple):
        _check_forward(item, name, nn.Sequential)
        # Not `named_children`, which leaves out a module that comes again.
        named = isinstance(item, nn.Sequential | nn.ModuleList)
        for key, child in item._modules.items() if named else enumerate(item):
            _collect(child, f"{name}.{key}" if name else str(key), weights, biases)
    elif name:
        raise TypeError(f"layers must all be linear, got {_place(item, name)}")
    else:
        raise TypeError(
            "module_or_weights must be a DeepLinear, an nn.Linear, an nn.Sequential or a sequence "
            f"of linear layers or weights, got {type(item).__name__}"
        )


def _check_forward(item: Any, name: str, *kinds: type[nn.Module]) -> None:
    """Refuse a module derived from one of these with a forward pass of its own."""
    if isinstance(item, kinds) and not any(type(item).forward is k.forward for k in kinds):
        raise TypeError(
            f"layers must be applied one after the other, got a forward pass of its own in "
            f"{_place(item, name)}: give a list of its layers or weights"
        )


def _place(item: Any, name: str) -> str:
    return f"{type(item).__name__} at {name!r}" if name else type(item).__name__
