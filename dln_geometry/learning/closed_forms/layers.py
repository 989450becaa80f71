"""What all formulas on layers share: gradients of the layers, and the doors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dln_geometry.geometry.points import product
from dln_geometry.learning.functional import gradient_of
from dln_geometry.learning.rules import Rule
from dln_geometry.learning.rules import rule as rules
from dln_geometry.support import as_factors, as_float_tensor

__all__ = ["as_moments", "as_rule", "as_velocities", "cross", "layer_gradients", "partial_products"]

Layers = tuple[Tensor, ...]


def partial_products(layers: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return ``W_{p-1}..W_1`` and ``W_N..W_{p+1}`` for every p; None is the identity."""
    before: list[Tensor | None] = [None]
    for w in layers[:-1]:
        before.append(w if before[-1] is None else w @ before[-1])
    behind: list[Tensor | None] = [None]
    for w in reversed(layers[1:]):
        behind.append(w if behind[-1] is None else behind[-1] @ w)
    return before, behind[::-1]


def layer_gradients(loss: Callable[[Tensor], Tensor], layers: Sequence[Tensor]) -> Layers:
    """Return ``D_p = (W_N..W_{p+1})^T E'(X) (W_{p-1}..W_1)^T``, differentiable, without checks."""
    gradient = gradient_of(loss)(product(layers))
    before, behind = partial_products(layers)
    result = []
    for a, b in zip(before, behind, strict=True):
        d = gradient if b is None else b.mT @ gradient
        result.append(d if a is None else d @ a.mT)
    return tuple(result)


def cross(u: Sequence[Tensor], v: Sequence[Tensor]) -> Layers:
    """Return ``u_{p+1}^T v_{p+1} - v_p u_p^T``, whose value at u = v are the moments of v."""
    return tuple(u[p + 1].mT @ v[p + 1] - v[p] @ u[p].mT for p in range(len(u) - 1))


def as_velocities(v: Any, name: str, widths: Sequence[int]) -> Layers:
    """Return matrices shaped like the layers between hidden layers of these widths."""
    layers = as_factors(v, name)
    hidden = tuple(w.shape[-2] for w in layers[:-1])
    if hidden != tuple(widths):
        raise ValueError(
            f"{name} must be shaped like layers with the hidden widths {tuple(widths)} of the "
            f"moments, got {hidden}"
        )
    return layers


def as_moments(moments: Any, name: str = "moments") -> Layers:
    """Return a tuple of square matrices."""
    if isinstance(moments, Tensor | str) or not isinstance(moments, Sequence):
        raise TypeError(f"{name} must be a sequence of matrices, got {type(moments).__name__}")
    result = tuple(as_float_tensor(g, f"{name}[{p}]") for p, g in enumerate(moments))
    for p, g in enumerate(result):
        if g.ndim < 2 or g.shape[-1] != g.shape[-2]:
            raise ValueError(f"{name}[{p}] must have shape (..., d, d), got {tuple(g.shape)}")
    return result


def as_rule(rule: Any) -> Rule:
    """Return a Euclidean learning rule: the laws of the moments hold for no other geometry."""
    rule = rules.as_rule(rule)
    if rule.potential is not None:
        raise ValueError(
            "rule must have no potential: only the Euclidean kinetic energy is invariant under "
            "rotations of the hidden layers"
        )
    return rule
