"""The decay of differentiable constraints that leaves a wanted share of coordinates at zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    `dcs_` rewrote together, or for each with a target of its own. Call it every few steps of the
    optimiser: the factors need about ``1 / (lr kappa)`` steps to follow. Where the share grows with
    kappa it comes to rest at the target; the network then solves the problem with the norm at this
    kappa.

    Parameters
    ----------
    module : Module
        With parameters rewritten by `dcs_`.
    optimizer : torch.optim.Optimizer
        Over the groups of `dcs_parameter_groups`; its decay of the factors is changed. With several
        targets its groups are divided: make schedulers afterwards.
    target : float or mapping of str to float
        Share of the sizes to become zero, in (0, 1), or that of each parameter by its name; those
        that are not named keep their kappa.
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
        target: float | Mapping[str, float],
        *,
        rate: float = 0.1,
        threshold: float = 1e-3,
    ) -> None:
        sites = dcs_sites(module)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {shown(optimizer)}")
        several = isinstance(target, Mapping)
        if several and (not target or not set(target) <= set(sites)):
            raise ValueError(f"target must name some of {sorted(sites)}, got {list(target)}")
        self.target = _as_targets(target) if several else _as_share(target, "target")
        self.rate = as_positive(rate, "rate")
        self.threshold = as_positive(threshold, "threshold", zero=True)
        named = [[name] for name in self.target] if isinstance(self.target, dict) else [list(sites)]
        factors = {name: _factors_of(sites[name]) for name in sites}
        _check_groups(optimizer, set().union(*factors.values()))
        # The sites, groups and target of each kappa, by the name of the parameter if there is one.
        self._parts: dict[str, tuple[list[Any], list[dict[str, Any]], float]] = {}
        taken: set[int] = set()
        for names in named:
            own = set().union(*(factors[name] for name in names))
            if taken & own:
                raise ValueError(f"target must not name tied parameters, got {names[0]!r}")
            taken |= own
            share = self.target[names[0]] if isinstance(self.target, dict) else self.target
            groups = _own_groups(optimizer, own)
            kappas = {float(group["weight_decay"]) for group in groups}
            if len(kappas) > 1:
                raise ValueError(
                    "optimizer must have one kappa for all factors without targets of their own, "
                    f"got {sorted(kappas)}"
                )
            for group in groups:
                group["weight_decay"] = max(kappas) or _FIRST
            key = names[0] if several else ""
            self._parts[key] = ([sites[name] for name in names], groups, share)

    @property
    def kappa(self) -> Any:
        """The present decay of the factors, by name if there are several targets."""
        return self._told(
            {key: float(g[0]["weight_decay"]) for key, (_, g, _) in self._parts.items()}
        )

    @torch.no_grad()
    def step(self) -> tuple[Any, Any]:
        """Return the share of zero sizes, and kappa after its change.

        With several targets these are dicts by the names of the parameters.
        """
        shares: dict[str, float] = {}
        for key, (sites, groups, target) in self._parts.items():
            zero, count = 0, 0
            for site, parts in sites:
                sizes = site.redundancy.sizes(site.coordinates(site(*parts))).double()
                bound = self.threshold * sizes.square().mean().sqrt()
                zero, count = zero + int((sizes <= bound).sum()), count + sizes.numel()
            shares[key] = zero / count
            factor = math.exp(self.rate * (target - shares[key]))
            kappa = groups[0]["weight_decay"] * min(max(factor, 1 / _LARGEST), _LARGEST)
            for group in groups:
                group["weight_decay"] = kappa
        return self._told(shares), self.kappa

    def _told(self, found: dict[str, float]) -> Any:
        return found if isinstance(self.target, dict) else found[""]


def _as_share(value: Any, name: str) -> float:
    share = as_positive(value, name)
    if share >= 1:
        raise ValueError(f"{name} must be below 1, got {value}")
    return share


def _as_targets(target: Mapping[str, Any]) -> dict[str, float]:
    return {name: _as_share(value, f"target[{name!r}]") for name, value in target.items()}


def _factors_of(site: tuple[Any, list[Any]]) -> set[int]:
    return {id(u) for u in site[0].decayed(site[1])}


def _check_groups(optimizer: Optimizer, factors: set[int]) -> None:
    """Refuse an optimiser whose groups mix factors with other parameters, or lack some."""
    held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    mixed = any((own & factors) and own - factors for own in held)
    if mixed or not factors <= set().union(*held):
        raise ValueError(
            "optimizer must hold all factors, in groups without other parameters: make it from "
            "dcs_parameter_groups"
        )


def _own_groups(optimizer: Optimizer, own: set[int]) -> list[dict[str, Any]]:
    """Return the groups of these factors; a group that has others, too, is divided."""
    found: list[dict[str, Any]] = []
    for group in list(optimizer.param_groups):
        params = group["params"]
        mine = [p for p in params if id(p) in own]
        if len(mine) == len(params):
            found.append(group)
        elif mine:
            # The state of the optimiser belongs to the parameters: it stays.
            group["params"] = [p for p in params if id(p) not in own]
            optimizer.param_groups.append({**group, "params": mine})
            found.append(optimizer.param_groups[-1])
    return found
