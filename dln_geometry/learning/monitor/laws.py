r"""The exact motion of charges under every step of stochastic gradient descent.

A step of ``torch.optim.SGD`` is, with the gradient g of a batch, the buffer v and numbers that may
change from step to step (learning rate ``eta``, momentum b, decay k; ``s = 1 - dampening``, 1 in
the first step of a buffer),

``d = g + k q``,  ``v+ = b v + s d``,  ``q+ = q - eta u``,
``u = v+``, with Nesterov's momentum ``u = d + b v+``, without momentum ``u = d``.

*Quadratic charges.* Let ``B(x, y)`` be bilinear with ``B(y, x) = B(x, y)^T`` and ``B(q, g) = 0``:
that is the symmetry, for the loss of each batch. For scale B is the product ``<x, y>`` of the
slices of a unit, for rescale the difference of those of the two sides, for the gauge of
``W_2 W_1`` the matrix ``y_1 x_1^T - x_2^T y_2``. With ``C = B(q, q)`` and ``R = B(q, v)``,

``P := B(q, v+) = b R + s k C``,  ``B(q, u) = P`` (Nesterov: ``k C + b P``; no momentum: ``k C``),
``C+ = C - eta (B(q, u) + B(q, u)^T) + eta^2 B(u, u)``,  ``R+ = B(q+, v+) = P - eta B(u, v+)``.

Nothing else is needed: the first line uses the symmetry, the others are the step itself. On the
right stand products of the buffers alone. Heavy ball needs ``B(v+, v+)``; otherwise, with
``B(d, d) = B(g, g) + k^2 C`` and ``X := B(d, v) = B(g, v) + k R``,

``B(v+, v+) = b^2 B(v, v) + b (X + X^T) + B(d, d)``,  ``B(d, v+) = b X + B(d, d)``,
``B(u, v+) = B(d, v+) + b B(v+, v+)``,
``B(u, u) = B(d, d) + b (B(d, v+) + B(d, v+)^T) + b^2 B(v+, v+)``.

Where B is a number, ``2 B(d, v+) = B(v+, v+) + B(d, d) - b^2 B(v, v)`` saves the product of two
different tensors.

*Several learning rates.* If the parts j of a group have their own ``eta_j`` and ``k_j``, the
symmetry binds their sum alone, and ``C = sum_j (eta_1 / eta_j) B_j(q, q)`` has the law

``C+ = C - eta_1 (B(q, u) + B(q, u)^T) + eta_1 sum_j eta_j B_j(u, u)``,
``R+ = P - sum_j eta_j B_j(u, v+)``,  ``P = b R + s sum_j k_j B_j(q, q)``.

The last sum is ``k_1 C`` where ``eta_j k_j`` is the same for all; otherwise the squares of the
smaller parts are measured. Momentum must be common.

*Linear charges* ``c = <q, n>`` with ``<g, n> = 0``: with ``w = <v, n>``,
``w+ = b w + s k c``, and ``c+ = c - eta w+``, or with Nesterov's momentum
``c+ = c - eta (k c + b w+)``. No gradient enters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.monitor.products import Snapshot, StepOptions

__all__ = ["Law", "present", "weighted"]


class Law:
    """Charges of some groups with the same options: predicted from step to step, and measured.

    Parameters
    ----------
    groups : sequence of SymmetricGroup
        Whose charges these are.
    slots : sequence of tuple of str
        Names of the parameters that share options; the largest ones first.
    """

    def __init__(self, groups: Sequence[SymmetricGroup], slots: Sequence[tuple[str, ...]]) -> None:
        self.groups = tuple(groups)
        self.slots = tuple(slots)
        self.names = tuple(name for slot in slots for name in slot)
        self.charges: Tensor | None = None
        self.momenta: Tensor | None = None
        self.velocities: Tensor | None = None
        self.owner = torch.zeros(0, dtype=torch.long)
        self._weights: tuple[float, ...] = (1.0,) * len(self.slots)
        self._pending: tuple[Any, ...] | None = None
        self._masks: dict[tuple[str, frozenset[str]], Tensor] = {}

    def settle(self) -> None:
        """Make up for steps that were only noted, before charges are looked at."""

    def pairs(self, snapshot: Snapshot, first: str, second: str) -> Tensor:
        """Return ``B_j(first, second)`` for every slot, shape (slots, ...)."""
        raise NotImplementedError

    def transposed(self, x: Tensor) -> Tensor:
        """Return the transposes of matrices; numbers are their own."""
        return x

    def mask(self, names: frozenset[str]) -> Tensor:
        """Return which charges belong to groups that hold any of these parameters."""
        raise NotImplementedError

    def sizes(self, snapshot: Snapshot) -> Tensor:
        """Return what a deviation of each charge is compared with."""
        raise NotImplementedError

    def summary(self, charges: Tensor) -> Tensor:
        """Return one number for each group: the sum of its units."""
        zero = torch.zeros(len(self.groups), dtype=charges.dtype, device=charges.device)
        return zero.index_add_(0, self.owner, charges)

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest value of each group."""
        zero = torch.zeros(len(self.groups), dtype=values.dtype, device=values.device)
        return zero.scatter_reduce_(0, self.owner, values, "amax")

    def owners(self) -> Tensor:
        """Return the number of the group that each single charge belongs to."""
        return self.owner

    def check(self, options: Mapping[str, StepOptions]) -> None:
        """Refuse options that differ inside a group in more than rate and decay.

        Raises
        ------
        ValueError
            If they do.
        """
        self._ratios(self._options(options))

    def measured(self, snapshot: Snapshot) -> Tensor:
        """Return the charges as they are."""
        pairs = self.pairs(snapshot, "q", "q")
        return weighted(pairs, self._weights)

    def begin(self, snapshot: Snapshot) -> None:
        """Take the charges as they are for the prediction."""
        self._weights = self._ratios(self._options(snapshot.options))
        self.charges = self.measured(snapshot)
        self.momenta = self.velocities = self._pending = None

    def before(self, snapshot: Snapshot, held: frozenset[str], fresh: frozenset[str]) -> None:
        """Prepare a step: gradients are known, nothing has moved.

        Parameters
        ----------
        snapshot : Snapshot
            Of this moment.
        held : frozenset of str
            Names of the parameters without a gradient, which the step leaves alone.
        fresh : frozenset of str
            Names of those without a buffer.
        """
        options = self._options(snapshot.options)
        first = options[0]
        ratios = self._ratios(options)
        if ratios != self._weights:
            # Another charge: momenta go on, but this one must be looked at.
            self._weights = ratios
            self.charges = self.measured(snapshot)
        c = self.charges
        assert c is not None
        decay = self._decay(snapshot, options, c)
        b = first.momentum
        if not b:
            w = self._mixed_squares(snapshot, options, c, decay)
            self.momenta = self.velocities = None
            self._moved(held, c - first.lr * (2 * decay - w), None, None)
            return
        if self.momenta is None:
            self.momenta = self.pairs(snapshot, "q", "v").sum(0)
        s: Any = 1 - first.dampening
        if first.dampening and not fresh.isdisjoint(self.names):
            s = s + (1 - s) * self.mask(fresh).to(c.dtype)
        # Momenta are only read here: in place.
        p = self.momenta.mul(b)
        p = p.add_(decay, alpha=s) if isinstance(s, float | int) else p + s * decay
        if not first.nesterov:
            self._pending = (options, p, held)
            return
        self._nesterov(snapshot, options, p, decay, held)

    def after(self, snapshot: Snapshot) -> None:
        """Finish a step: parameters and buffers have moved."""
        if self._pending is None:
            return
        options, p, held = self._pending
        self._pending = None
        assert self.charges is not None
        w = weighted(self.pairs(snapshot, "v", "v"), [o.lr for o in options])
        c = self.charges + options[0].lr * (w - p - self.transposed(p))
        self._moved(held, c, p - w, None)

    def _nesterov(
        self,
        snapshot: Snapshot,
        options: Sequence[StepOptions],
        p: Tensor,
        decay: Tensor,
        held: frozenset[str],
    ) -> None:
        first, rates = options[0], [o.lr for o in options]
        c, r, b = self.charges, self.momenta, first.momentum
        assert c is not None
        assert r is not None
        if self.velocities is None:
            self.velocities = self.pairs(snapshot, "v", "v")
        if len(options) == 1:
            k = first.weight_decay
            dd = self.pairs(snapshot, "g", "g")
            dv = self.pairs(snapshot, "g", "v")
            if k:
                dd, dv = dd + k * k * c, dv + k * r
        else:
            dd, dv = self.pairs(snapshot, "d", "d"), self.pairs(snapshot, "d", "v")
        vv = b * b * self.velocities + b * (dv + self.transposed(dv)) + dd
        d_after = b * dv + dd
        uv = d_after + b * vv
        uu = dd + b * (d_after + self.transposed(d_after)) + b * b * vv
        qu = decay + b * p
        c = c - first.lr * (qu + self.transposed(qu) - weighted(uu, rates))
        self._moved(held, c, p - weighted(uv, rates), vv)

    def _moved(
        self,
        held: frozenset[str],
        charges: Tensor,
        momenta: Tensor | None,
        velocities: Tensor | None,
    ) -> None:
        """Take over the values after a step, but for groups that it left alone."""
        if held and not held.isdisjoint(self.names):
            stay = self.mask(held)
            charges = torch.where(stay, present(self.charges, charges), charges)
            if momenta is not None:
                momenta = torch.where(stay, present(self.momenta, momenta), momenta)
            if velocities is not None:
                velocities = torch.where(stay, present(self.velocities, velocities), velocities)
        self.charges, self.momenta, self.velocities = charges, momenta, velocities

    def _decay(self, snapshot: Snapshot, options: Sequence[StepOptions], c: Tensor) -> Tensor:
        """Return ``sum_j k_j B_j(q, q)``."""
        first = options[0]
        if len(options) == 1:
            return first.weight_decay * c
        excess = [
            o.weight_decay - first.weight_decay * w
            for o, w in zip(options, self._weights, strict=True)
        ]
        if not any(excess):
            return first.weight_decay * c
        return first.weight_decay * c + weighted(self.pairs(snapshot, "q", "q"), excess)

    def _mixed_squares(
        self, snapshot: Snapshot, options: Sequence[StepOptions], c: Tensor, decay: Tensor
    ) -> Tensor:
        """Return ``sum_j eta_j B_j(d, d)``."""
        rates = [o.lr for o in options]
        if len(options) > 1 and any(o.weight_decay for o in options):
            return weighted(self.pairs(snapshot, "d", "d"), rates)
        squares = weighted(self.pairs(snapshot, "g", "g"), rates)
        k = options[0].weight_decay
        return squares + (rates[0] * k) * decay if k else squares

    def _options(self, by_name: Mapping[str, StepOptions]) -> list[StepOptions]:
        """Return the options of every slot; they may differ in rate and decay alone.

        Raises
        ------
        ValueError
            If they do not.
        """
        options = [by_name[slot[0]] for slot in self.slots]
        for field in ("momentum", "dampening", "nesterov", "maximize"):
            if len({getattr(o, field) for o in options}) > 1:
                raise ValueError(
                    f"{field} must be the same for all parameters of a symmetric group, got "
                    f"{[getattr(o, field) for o in options]} for {self.names}"
                )
        return options

    def _ratios(self, options: Sequence[StepOptions]) -> tuple[float, ...]:
        """Return ``eta_1 / eta_j``."""
        if len(options) == 1:
            return (1.0,)
        rates = [float(o.lr) for o in options]
        if not any(rates):
            return self._weights
        if not all(rates):
            raise ValueError(
                f"lr must not be zero for some parameters of a symmetric group alone, got {rates} "
                f"for {self.names}"
            )
        return tuple(rates[0] / rate for rate in rates)

    def state(self) -> dict[str, Any]:
        """Return what a prediction goes on from."""
        self.settle()
        return {
            "charges": self.charges,
            "momenta": self.momenta,
            "velocities": self.velocities,
            "weights": list(self._weights),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        device = self.owner.device
        for name in ("charges", "momenta", "velocities"):
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(device))
        self._weights = tuple(state["weights"])
        self._pending = None


def weighted(values: Tensor, weights: Sequence[Any]) -> Tensor:
    """Return ``sum_j weights_j values_j``."""
    if len(weights) == 1:
        return (
            values[0]
            if isinstance(weights[0], float) and weights[0] == 1.0
            else weights[0] * values[0]
        )
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


def present(x: Tensor | None, otherwise: Tensor | None) -> Tensor:
    """Return a tensor that must be there, or zeros of the other one's shape."""
    if x is not None:
        return x
    assert otherwise is not None
    return torch.zeros_like(otherwise)
