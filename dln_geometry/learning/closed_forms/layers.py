"""Checks of arguments that the formulas on layers share, and the gradients of the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from dln_geometry.geometry.points import product
from dln_geometry.geometry.submersion import lift_layers
from dln_geometry.learning.functional import gradient_of
from dln_geometry.learning.rules import Rule, as_rule
from dln_geometry.support import as_factors, as_float_tensor

Layers = tuple[Tensor, ...]
Loss = Callable[[Tensor], Tensor]


def layer_gradients(loss: Loss, layers: Sequence[Tensor]) -> Layers:
    """Return ``D_p = (W_N..W_{p+1})^T E'(X) (W_{p-1}..W_1)^T``, differentiable, without checks."""
    return lift_layers(layers, gradient_of(loss)(product(layers)))


def cross(u: Sequence[Tensor], v: Sequence[Tensor]) -> Layers:
    """Return ``u_{p+1}^T v_{p+1} - v_p u_p^T``; for u = v these are the moments of v."""
    pairs = zip(pairwise(u), pairwise(v), strict=True)
    return tuple(u1.mT @ v1 - v0 @ u0.mT for (u0, u1), (v0, v1) in pairs)


def as_velocities(v: Any, name: str, moments: Layers) -> Layers:
    """Return matrices shaped like layers whose hidden widths are those of the moments."""
    layers, widths = as_factors(v, name), tuple(g.shape[-1] for g in moments)
    hidden = tuple(w.shape[-2] for w in layers[:-1])
    if hidden != widths:
        raise ValueError(
            f"{name} must be shaped like layers with the hidden widths {widths} of the moments, "
            f"got {hidden}"
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


def as_euclidean_rule(rule: Any) -> Rule:
    """Return a rule without a potential: the laws of the moments hold for no other geometry."""
    if as_rule(rule).potential is not None:
        raise ValueError(
            "rule must have no potential: only the Euclidean kinetic energy is invariant under "
            "rotations of the hidden layers"
        )
    return rule
