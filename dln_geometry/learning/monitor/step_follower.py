r"""Charges under any optimiser: from the step that it takes, and the identity of Noether.

A step moves ``q+ = q + d + s``, where ``d = -eta k q`` is decoupled decay and s is the rest. A
charge ``C = B(q, q)`` then moves by

``C+ = C + 2 B(q, d) + 2 B(q, s) + B(d + s, d + s)``

(for a gauge the symmetric parts, for a translation ``c+ = c + <d, n> + <s, n>``). Gradient descent
has ``s = -eta g``, and the symmetry of the loss says ``B(q, g) = 0``: its step drifts by squares
alone. A preconditioner, an orthogonalisation or a momentum turns s away from g, and ``2 B(q, s)``
is the drift that breaks the symmetry. The law cannot fail inside a step; the symmetry of the loss
is told by ``B(q, g)``, relative to ``|q| |g|``, which is part of the residual (for translations
``<g, n>`` relative to all gradients).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dln_geometry.learning.monitor.following import Follower, laws_of
from dln_geometry.learning.monitor.group_laws import GaugeLaw, LinearLaw
from dln_geometry.learning.monitor.laws import BilinearLaw, Groups, Law
from dln_geometry.learning.monitor.products import Products, Snapshot, wide_dtype

# Optimisers whose decay multiplies the parameters, and those whose decay is part of the gradient.
_DECOUPLED = ("AdamW", "Muon", "Adafactor", "Lion", "SGDW")
_COUPLED = ("Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "SGD", "LBFGS")
_CAUSES = {
    "preconditioner": (
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "Adamax",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "Adafactor",
    ),
    "orthogonalisation": ("Muon",),
    "sign": ("Rprop", "Lion"),
    "momentum": ("SGD",),
    "averaging": ("ASGD",),
    "curvature": ("LBFGS",),
}


class StepSnapshot(Snapshot):
    """Parameters, gradients and pieces of a step in double precision, on their own memory."""

    def __init__(
        self, products: Products, params: Mapping[str, Tensor], kinds: Mapping[str, Any]
    ) -> None:
        super().__init__(products, params, {}, {})
        self._tensors = {kind: dict(tensors) for kind, tensors in kinds.items()}


class StepFollower(Follower):
    """Applies the law of the step taken to the steps of any optimiser."""

    def __init__(self, optimizer: Optimizer, groups: Groups, named: Mapping[str, Tensor]) -> None:
        self.optimizer = optimizer
        self.params = {n: named[n] for n in dict.fromkeys(n for g in groups for n in g.names)}
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._group_of_name = {n: group_of[id(p)] for n, p in self.params.items()}
        self._products, self._laws = laws_of(groups, self.params, dict.fromkeys(self.params, 0))
        self.groups = tuple(g for law in self._laws for g in law.groups)
        self.labels = self.named_groups()
        self.cause = _cause_of(optimizer)
        # Of the last step that was followed: its drifts, and the size of B(q, g).
        self.drifts: dict[str, Tensor] = {}
        self._off: list[Tensor] | None = None
        self._before: StepSnapshot | None = None
        # Of an optimiser that is not known decay cannot be told from the rest of its steps.
        self._is_decay_known = True

    def snapshot(self) -> StepSnapshot:
        """Return copies of the parameters and gradients of this moment."""
        q = {n: self._wide(p) for n, p in self.params.items()}
        return StepSnapshot(self._products, self.params, {"q": q})

    def begin(self, snapshot: Snapshot) -> None:
        for law in self._laws:
            law.forget()
            law.charges = law.measured(snapshot)
        self._off = None

    def before(self, snapshot: Snapshot, held: frozenset[str]) -> None:
        """Keep the parameters, and decoupled decay as it will be; test the identity of Noether."""
        assert isinstance(snapshot, StepSnapshot)
        q: dict[str, Any] = snapshot.tensors("q")
        gradients: dict[str, Any] = {}
        decays: dict[str, Any] = {}
        for name, p in self.params.items():
            group = self._group_of_name[name]
            gradients[name] = None if p.grad is None else self._wide(p.grad)
            state = self.optimizer.state.get(p, {})
            rate = 0.0 if name in held else _decoupled(self.optimizer, group, state)
            if rate is None:
                rate, self._is_decay_known = 0.0, False
            # A rate that is a tensor may be on the device.
            decays[name] = None if isinstance(rate, float) and not rate else q[name] * -rate
        kinds = {"q": q, "g": gradients, "d": decays}
        self._before = StepSnapshot(self._products, self.params, kinds)
        self._off = []
        for law in self._laws:
            off = law.largest(_first_order(law, self._before, "g").abs() / 2.0)
            size = _largest_norms(law, q, gradients)
            self._off.append(torch.where(off == 0, off, off / size))

    def after(self, snapshot: Snapshot) -> None:
        """Move the charges by the law of the step that was taken."""
        if self._before is None:
            return
        before, self._before = self._before, None
        old: dict[str, Any] = before.tensors("q")
        new: dict[str, Any] = snapshot.tensors("q")
        decays = before.tensors("d")
        step = {n: new[n] - x for n, x in old.items()}
        rest = {n: x if decays[n] is None else x - decays[n] for n, x in step.items()}
        whole = StepSnapshot(
            self._products, self.params, {"q": old, "d": decays, "s": rest, "t": step}
        )
        drifts: dict[str, list[Tensor]] = {"decay": [], self.cause or "step": [], "square": []}
        for law in self._laws:
            decay, turned = _first_order(law, whole, "d"), _first_order(law, whole, "s")
            square = _squared(law, whole)
            assert law.charges is not None
            law.charges = law.charges + (decay + turned + square)
            for name, value in zip(drifts, (decay, turned, square), strict=True):
                drifts[name].append(law.summary(value))
        self.drifts = {name: torch.cat(values) for name, values in drifts.items()}

    def deviations(self, index: int, law: Law, off: Tensor, size: Tensor) -> Tensor:
        """Return the larger of the deviation and of the size of B(q, g), both relative."""
        residual = super().deviations(index, law, off, size)
        return residual if self._off is None else torch.maximum(residual, self._off[index])

    def drift_of(self, index: int) -> dict[str, float]:
        """Return the drifts of one group in the last step that was followed."""
        return {
            name: float(values[index])
            for name, values in self.drifts.items()
            if name != "decay" or self._is_decay_known
        }

    def _wide(self, x: Tensor) -> Tensor:
        return x.detach().to(wide_dtype(x.device), copy=True)


def _first_order(law: Law, snapshot: Snapshot, kind: str) -> Tensor:
    """Return ``2 B(q, x)``, its symmetric part, of a quadratic law; ``<x, n>`` of a linear one."""
    if isinstance(law, LinearLaw):
        return law.sums_of(snapshot.tensors(kind))
    assert isinstance(law, BilinearLaw)
    pairs = law.pairs(snapshot, "q", kind).sum(0)
    return pairs + (pairs.mT if isinstance(law, GaugeLaw) else pairs)


def _squared(law: Law, snapshot: Snapshot) -> Tensor:
    if isinstance(law, LinearLaw):
        return torch.zeros_like(law.sums_of(snapshot.tensors("s")))
    assert isinstance(law, BilinearLaw)
    return law.pairs(snapshot, "t", "t").sum(0)


def _largest_norms(law: Law, q: Mapping[str, Any], g: Mapping[str, Any]) -> Tensor:
    """Return ``|q| |g|`` over the parameters of each group; for translations ``|g|`` over all.

    The gradient of a bias before a normalisation is zero but for rounding, which is small against
    the gradients of other parameters alone.
    """
    if isinstance(law, LinearLaw):
        norms = [
            torch.linalg.vector_norm(x).to(law.owner.device) for x in g.values() if x is not None
        ]
        zero = torch.zeros((), device=law.owner.device, dtype=wide_dtype(law.owner.device))
        return torch.stack([zero, *norms]).norm().expand(len(law.groups))
    sizes = []
    for group in law.groups:
        found = [n for n in group.names if g[n] is not None]
        norms = [
            torch.stack([torch.linalg.vector_norm(x[n]).to(law.owner.device) for n in found]).norm()
            if found
            else torch.zeros((), device=law.owner.device, dtype=wide_dtype(law.owner.device))
            for x in (q, g)
        ]
        sizes.append(norms[0] * norms[1])
    return torch.stack(sizes)


def _decoupled(optimizer: Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """Return the share ``eta k`` by which decoupled decay shrinks a parameter in the next step.

    0 where decay is part of the gradient or absent, `None` of an optimiser that is not known.
    """
    own = unwrap(type(optimizer).step)
    # A subclass with steps of its own is another optimiser.
    bases = [k for k in type(optimizer).__mro__ if issubclass(k, Optimizer)]
    kinds = [k for k in bases if unwrap(k.step) is own]
    names = {k.__name__ for k in kinds}
    if "ASGD" in names:
        # The step's own rate, which falls from step to step.
        return group["lambd"] * state.get("eta", group["lr"])
    decay, decoupled = group.get("weight_decay", 0.0), group.get("decoupled_weight_decay")
    if decoupled is None:
        decoupled = not names.isdisjoint(_DECOUPLED)
        if not decoupled and names.isdisjoint(_COUPLED) and (isinstance(decay, Tensor) or decay):
            return None
    rate = group.get("lr", 0.0) * decay if decoupled else 0.0
    return rate if isinstance(rate, Tensor) else float(rate)


def _cause_of(optimizer: Optimizer) -> str:
    """Name what turns the steps of an optimiser away from the gradient."""
    names: Sequence[str] = [kind.__name__ for kind in type(optimizer).__mro__]
    return next((cause for cause, own in _CAUSES.items() if set(own).intersection(names)), "step")
