"""The decay of differentiable constraints that leaves a wanted share of coordinates at zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dln_geometry.learning.constraints.weight_decay import dcs_sites
from dln_geometry.support import as_positive, shown

# The first kappa where the groups say none, and how far one step may change it.
_FIRST, _LARGEST = 1e-4, 1.5


class SparsityControl:
    """Set kappa during training such that a wanted share of the coordinates becomes zero.

    Each `step` counts the sizes (entries, rows, singular values: what the norm of `dcs_` adds up)
    that are zero, and multiplies kappa by ``exp(rate (target - share))``, for all parameters that
    `dcs_` rewrote. Call it every few steps of the optimiser: the factors need about ``1 / (lr
    kappa)`` steps to follow. Where the share grows with kappa it comes to rest at the target; the
    network then solves the problem with the norm at this kappa.

    Parameters
    ----------
    module : Module
        With parameters rewritten by `dcs_`.
    optimizer : torch.optim.Optimizer
        Over the groups of `dcs_parameter_groups`; its decay of the factors is changed.
    target : float
        Share of the sizes to become zero, in (0, 1).
    rate : float
        Gain of the control.
    threshold : float
        Sizes up to this multiple of the root mean square of the sizes of their parameter count as
        zero: they decay exponentially.

    Examples
    --------
    >>> layer = dln.learning.dcs_(torch.nn.Linear(8, 2), "weight")
    >>> optimizer = torch.optim.SGD(dln.learning.dcs_parameter_groups(layer, 0.1), lr=0.1)
    >>> control = dln.learning.SparsityControl(layer, optimizer, target=0.5, rate=0.2)
    >>> share, kappa = control.step()
    >>> share, round(kappa, 4)  # nothing is zero yet: 0.1 exp(0.2 * 0.5)
    (0.0, 0.1105)
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        target: float,
        *,
        rate: float = 0.1,
        threshold: float = 1e-3,
    ) -> None:
        self._sites = dcs_sites(module)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {shown(optimizer)}")
        self.target = as_positive(target, "target")
        if self.target >= 1:
            raise ValueError(f"target must be below 1, got {target}")
        self.rate = as_positive(rate, "rate")
        self.threshold = as_positive(threshold, "threshold", zero=True)
        factors = {id(u) for site, parts in self._sites.values() for u in site.decayed(parts)}
        held = [(group, {id(p) for p in group["params"]}) for group in optimizer.param_groups]
        self._groups: list[dict[str, Any]] = [g for g, own in held if own & factors]
        if any((own & factors) and own - factors for _, own in held) or not factors <= set().union(
            *(own for _, own in held)
        ):
            raise ValueError(
                "optimizer must hold all factors, in groups without other parameters: make it from "
                "dcs_parameter_groups"
            )
        kappas = {float(group["weight_decay"]) for group in self._groups}
        if len(kappas) > 1:
            raise ValueError(f"optimizer must have one kappa for all factors, got {sorted(kappas)}")
        self._groups[0]["weight_decay"] = kappas.pop() or _FIRST

    @property
    def kappa(self) -> float:
        """The present decay of the factors."""
        return float(self._groups[0]["weight_decay"])

    @torch.no_grad()
    def step(self) -> tuple[float, float]:
        """Return the share of zero sizes, and kappa after its change."""
        zero, count = 0, 0
        for site, parts in self._sites.values():
            sizes = site.redundancy.sizes(site.coordinates(site(*parts))).double()
            bound = self.threshold * sizes.square().mean().sqrt()
            zero, count = zero + int((sizes <= bound).sum()), count + sizes.numel()
        share = zero / count
        factor = math.exp(self.rate * (self.target - share))
        kappa = self.kappa * min(max(factor, 1 / _LARGEST), _LARGEST)
        for group in self._groups:
            group["weight_decay"] = kappa
        return share, kappa
