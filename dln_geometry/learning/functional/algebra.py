"""Dicts of parameters as vectors: linear combinations, inner products and norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional.parameters import Parameters, Tensors


def as_parameters(params: Any, name: str = "params") -> Parameters:
    """Return a mapping of real floating tensors as a dict, without copies of the tensors."""
    if not isinstance(params, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(params).__name__}")
    if not params:
        raise ValueError(f"{name} must hold at least one tensor, got none")
    for key, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}[{key!r}] must be a real floating tensor, got {what}")
        if value.is_meta:
            raise ValueError(f"{name}[{key!r}] must have values, got one on the meta device")
    return dict(params)


def as_finite(params: Any, name: str = "params") -> Parameters:
    """Return `as_parameters`; refuse NaN and infinity, where the values can be looked at."""
    params = as_parameters(params, name)
    for key, value in params.items():
        try:
            finite = bool(torch.isfinite(value.detach()).all())
        except RuntimeError:  # values are unknown inside torch.func.vmap
            continue
        if not finite:
            raise ValueError(f"{name}[{key!r}] must be finite, got NaN or infinite entries")
    return params


def as_like(vector: Any, params: Tensors, name: str, *, finite: bool = False) -> Parameters:
    """Return a dict in the order of `params`; refuse other keys or shapes than theirs."""
    vector = as_finite(vector, name) if finite else as_parameters(vector, name)
    if vector.keys() != params.keys() or any(vector[k].shape != params[k].shape for k in params):
        raise ValueError(
            f"{name} must have the names and shapes of the parameters "
            f"{ {k: tuple(v.shape) for k, v in params.items()} }, got "
            f"{ {k: tuple(v.shape) for k, v in vector.items()} }"
        )
    return {key: vector[key] for key in params}


def combination(terms: Iterable[tuple[float, Tensors]]) -> Parameters:
    """Return the linear combination ``sum_i c_i v_i`` of at least one dict."""
    (first, start), *rest = terms
    total = {key: value * first for key, value in start.items()}
    for factor, vector in rest:
        total = {key: value.add(vector[key], alpha=factor) for key, value in total.items()}
    return total


def dot(a: Tensors, b: Tensors) -> Tensor:
    """Return the Euclidean inner product, a scalar tensor."""
    parts = [(value * b[key]).sum() for key, value in a.items()]
    return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


def norm(a: Tensors) -> Tensor:
    """Return the Euclidean norm, a scalar tensor; it neither overflows nor underflows early."""
    parts = [torch.linalg.vector_norm(value) for value in a.values()]
    return torch.linalg.vector_norm(torch.stack(parts)) if len(parts) > 1 else parts[0]


def flatten(params: Tensors) -> Tensor:
    """Return all parameters as one vector, shape (p,), in the order of the dict.

    ``unflatten(vector, params)`` is the inverse.

    Examples
    --------
    >>> dln.learning.flatten({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3.0)})
    tensor([1., 2., 3.])
    """
    return torch.cat([p.reshape(-1) for p in as_parameters(params).values()])


def unflatten(vector: Tensor, like: Tensors) -> Parameters:
    """Return the dict whose `flatten` is `vector`, with the names, shapes and dtypes of `like`.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> like = {"w": torch.zeros(1, 2), "b": torch.zeros(())}
    >>> learning.unflatten(torch.tensor([1.0, 2.0, 3.0]), like)
    {'w': tensor([[1., 2.]]), 'b': tensor(3.)}
    """
    like = as_parameters(like, "like")
    if not isinstance(vector, Tensor) or not vector.is_floating_point():
        what = vector.dtype if isinstance(vector, Tensor) else type(vector).__name__
        raise TypeError(f"vector must be a real floating tensor, got {what}")
    sizes = [p.numel() for p in like.values()]
    if vector.ndim != 1 or vector.shape[0] != sum(sizes):
        raise ValueError(f"vector must have shape ({sum(sizes)},), got {tuple(vector.shape)}")
    parts = zip(like.items(), vector.split(sizes), strict=True)
    return {name: part.reshape(p.shape).to(p.dtype) for (name, p), part in parts}
