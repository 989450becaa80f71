"""How weight decay on the layers changes the singular values, by depth.

The loss is ``1/2 |X - Y|^2 + (gamma/2) sum_p |W_p|^2``. At its minimum over a fibre the penalty is
``(N gamma / 2) sum_i s_i^{2/N}``, and X shares the singular vectors of Y: each target value phi
decides alone. Stationary points satisfy ``phi - s = gamma s^{2/N - 1}``. The depth N is real or
infinite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import Depth, as_choice, as_depth, as_float_tensor, as_positive


def branch_end(target: Any, depth: float) -> Tensor:
    """Return the decay gamma at which a learned singular value ceases to exist.

    Depth 2: phi, where it comes to zero (soft thresholding). Above, ``phi N/(2N-2)
    (phi (N-2)/(2N-2))^{(N-2)/N}``: the learned branch ends in a fold, at
    ``s = phi (N-2)/(2N-2)``, and the value jumps to zero. Below depth 2 it never does: infinite.

    Parameters
    ----------
    target : array_like
        Target values phi, nonnegative.
    depth : float
        N, real or infinite (``phi^2 / 4``).

    Examples
    --------
    >>> from dln_geometry.learning import closed_forms
    >>> tuple(closed_forms.branch_end([2.0], depth) for depth in (2, 4, float("inf")))
    (tensor([2.]), tensor([1.0887]), tensor([1.]))
    """
    phi, tail = as_target(target), _tail(as_depth(depth))
    if tail < 0:
        return torch.where(phi > 0, math.inf, 0.0).to(phi)
    # In terms of t = (N - 2)/N: (2N - 2)/N = 1 + t.
    return phi / (1 + tail) * (phi * tail / (1 + tail)) ** tail


def global_switch(target: Any, depth: float) -> Tensor:
    """Return the decay gamma at which zero becomes better than a learned singular value.

    ``phi/(N-1) (phi (N-2)/(N-1))^{(N-2)/N}`` above depth 2, where the learned value is still
    ``phi (N-2)/(N-1)``; phi at depth 2, infinite below, zero at infinite depth.

    Parameters as in `branch_end`.

    Examples
    --------
    >>> from dln_geometry.learning import closed_forms
    >>> closed_forms.global_switch([2.0], 2), closed_forms.global_switch([2.0], 4)
    (tensor([2.]), tensor([0.7698]))
    """
    phi, tail = as_target(target), _tail(as_depth(depth))
    if tail < 0:
        return torch.where(phi > 0, math.inf, 0.0).to(phi)
    # In terms of t: N - 1 = (1 + t)/(1 - t), and (N - 2)/(N - 1) = 2 t/(1 + t).
    return phi * (1 - tail) / (1 + tail) * (2 * phi * tail / (1 + tail)) ** tail


def decayed_singular_values(
    target: Any, weight_decay: float, depth: float, *, branch: str = "learned"
) -> Tensor:
    """Return the minimiser's singular values: ``phi - s = gamma s^{2/N - 1}``, or 0 (rank lost).

    `weight_decay` is gamma. The branch "learned" is the local minimum that gradient descent from
    large values follows, until `branch_end`; "global" is the global minimum, zero from
    `global_switch` on. They differ above depth 2. Other parameters as in `branch_end`.

    Examples
    --------
    >>> dln.learning.closed_forms.decayed_singular_values([3.0, 1.0], 1.2, 2)
    tensor([1.8000, 0.0000])
    """
    phi, n = as_target(target), as_depth(depth)
    gamma = as_positive(weight_decay, "weight_decay", zero=True)
    as_choice(branch, ("learned", "global"), "branch")
    if n == 2:
        return (phi - gamma).clamp_min(0.0)
    if gamma == 0:
        return phi
    # Below depth 2 the power of s is negative: it stands on the other side.
    left, right = max(_tail(n), 0.0), max(-_tail(n), 0.0)
    low, high = phi * left / (1 + left), phi
    # gamma - (phi - s) s^tail increases on this interval: bisection is safe.
    for _ in range(8 * phi.dtype.itemsize + 8):
        middle = (low + high) / 2
        beyond = (phi - middle) * middle**left < gamma * middle**right
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    s = (low + high) / 2
    if n < 2:
        return torch.where(phi > 0, s, 0.0)
    last = branch_end(phi, n) if branch == "learned" else global_switch(phi, n)
    return torch.where(gamma < last, s, 0.0)


def _tail(depth: Depth) -> float:
    """Return ``(N - 2) / N``, 1 at infinite depth."""
    return 1.0 - 2.0 * depth.inverse


def as_target(target: Any) -> Tensor:
    """Return nonnegative singular values."""
    phi = as_float_tensor(target, "target")
    if bool((phi < 0).any()):
        raise ValueError("target must be nonnegative, got a negative singular value")
    return phi
