r"""Gradient descent past the edge of stability: orbits of period 2, on which layers balance.

A mode of a balanced network of N layers, each with the singular value rho, moves under the loss
``1/2 |X - Y|^2`` by ``rho+ = rho - lr rho^(N-1) (rho^N - phi)``, phi the singular value of the
target. Its fixed point loses stability at ``lr N phi^(2 - 2/N) = 2``. Beyond, it alternates between
``a < b``. With ``t = a/b`` the two equations ``b - a = -lr f(a)``, ``a - b = -lr f(b)`` become

``b^N = phi (1 + t^(N-1)) / (1 + t^(2N-1))``,
``lr = (1 - t) (1 + t^(2N-1)) / (phi b^(N-2) t^(N-1) (1 - t^N))``,

and lr decreases with t from infinity to the edge: one orbit for each learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.closed_forms.weight_decay import as_target
from dln_geometry.support import as_layer_count, as_positive


@dataclass(frozen=True, eq=False)
class PeriodTwoOrbit:
    """Where modes of a deep linear network end at one learning rate; by `period_two_orbit`.

    Attributes
    ----------
    low, high : Tensor
        The two singular values a, b of each layer, one pair for each target value; equal to
        ``phi^(1/N)`` up to the edge of stability.
    target : Tensor
    lr : float
    depth : int

    Examples
    --------
    >>> orbit = dln.learning.closed_forms.period_two_orbit([1.0], 1.1, 2)
    >>> (orbit.low * orbit.high).round(decimals=4)  # 1 / lr at depth 2
    tensor([0.9091])
    """

    low: Tensor
    high: Tensor
    target: Tensor
    lr: float
    depth: int

    @property
    def sharpness(self) -> Tensor:
        """``N phi^(2 - 2/N)``: largest curvature of each mode at the minimum; the edge is 2/lr."""
        return self.depth * self.target ** (2 - 2 / self.depth)

    @property
    def end_to_end(self) -> Tensor:
        """The two singular values of X, shape (2, ...)."""
        return torch.stack([self.low, self.high]) ** self.depth

    @property
    def mean_loss(self) -> Tensor:
        """Each mode's mean of ``1/2 (rho^N - phi)^2`` over the orbit."""
        return (self.end_to_end - self.target).square().mean(0) / 2

    @property
    def multiplier(self) -> Tensor:
        """``F'(a) F'(b)``: how two steps multiply a small deviation that keeps layers balanced.

        Between -1 and 1 the orbit attracts; below -1 its period has doubled again.
        """
        n, lr, phi = self.depth, self.lr, self.target
        slopes = [
            1 - lr * ((2 * n - 1) * x ** (2 * n - 2) - (n - 1) * phi * x ** (n - 2))
            for x in (self.low, self.high)
        ]
        return slopes[0] * slopes[1]

    @property
    def gap_factor(self) -> Tensor:
        """``5 - 2 (a/b + b/a)``: how two steps multiply a small balancing gap, at any depth.

        The gap ``w_p^2 - w_q^2`` of two layers of a mode is multiplied by ``1 - (lr e w)^2`` in
        each step, e the error ``X - phi`` and w the product of the other layers: 1 where the
        mode is at rest, below 1 on the orbit. Layers balance there, which flows never do.
        """
        ratio = torch.where(self.high > 0, self.low / self.high, 1.0)
        return 5 - 2 * (ratio + 1 / ratio)


def period_two_orbit(target: Any, lr: float, depth: int) -> PeriodTwoOrbit:
    """Return the orbits of period 2 of gradient descent on a deep linear network.

    The loss is ``1/2 |X - Y|^2`` without decay; each singular value of Y decides alone, and modes
    whose curvature ``N phi^(2 - 2/N)`` is at most ``2 / lr`` rest at the minimum.

    Parameters
    ----------
    target : array_like
        Singular values phi of Y, nonnegative.
    lr : float
        Learning rate of the layers.
    depth : int
        Number of layers N, at least 2: one layer has no orbit, but diverges.

    References
    ----------
    Ghosh et al., Learning dynamics of deep linear networks beyond the edge of stability, arXiv
    2502.20531 (the orbits, the decay of the gap); the factor of the gap is derived here.

    Examples
    --------
    The sharpest of two modes oscillates, and at depth 2 with ``a b = 1/lr``:

    >>> orbit = dln.learning.closed_forms.period_two_orbit([1.0, 0.5], 1.1, 2)
    >>> orbit.end_to_end.round(decimals=3)
    tensor([[0.6630, 0.5000],
            [1.2460, 0.5000]])
    >>> orbit.gap_factor.round(decimals=3), orbit.multiplier.round(decimals=3)
    (tensor([0.8000, 1.0000]), tensor([0.1800, 0.0100]))
    """
    phi, lr = as_target(target), as_positive(lr, "lr")
    if (n := as_layer_count(depth)) < 2:
        raise ValueError(f"depth must be at least 2, got {n}: one layer has no orbit of period 2")

    def high_of(t: Tensor) -> Tensor:
        return (phi * (1 + t ** (n - 1)) / (1 + t ** (2 * n - 1))) ** (1 / n)

    # In the logarithm of t both ends are resolved; the sum is (1 - t^N) / (1 - t).
    low, high = torch.full_like(phi, -60.0), torch.zeros_like(phi)
    for _ in range(12 * phi.dtype.itemsize + 8):
        middle = (low + high) / 2
        t = middle.exp()
        powers = sum((t**k for k in range(1, n)), torch.ones_like(t))
        held = lr * phi * high_of(t) ** (n - 2) * t ** (n - 1) * powers
        beyond = held < 1 + t ** (2 * n - 1)
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    oscillates = lr * n * phi ** (2 - 2 / n) > 2
    t = torch.where(oscillates, ((low + high) / 2).exp(), 1.0)
    b = high_of(t)
    return PeriodTwoOrbit(t * b, b, phi, lr, n)
