"""The weight decay of differentiable constraints: for optimisers, as a term, as a norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dln_geometry.learning.constraints.dcs import DCS
from dln_geometry.support import as_positive


def dcs_parameter_groups(
    module: nn.Module, kappa: float | Mapping[str, float], *, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the parameter groups for an optimiser: decay kappa on the factors alone.

    There is a group for each kappa, and one for the other parameters if there are any.

    The norm is the least sum of squares of factors, so that the decay of factors must be the
    gradient of these squares, added to the gradient of the loss before momentum and scaling
    (coupled). Decoupled decay, which shrinks the factors by themselves, has other points of rest
    in adaptive methods, where the constraint is not kept. The groups say
    ``decoupled_weight_decay=False``: AdamW of torch 2.7 and later, NAdam and RAdam then couple the
    decay of the factors, and keep their own for the rest. Optimisers with decoupled decay that do
    not know this option (Muon, Adafactor, Lion, AdamW of torch 2.6) minimise another objective:
    train the factors with another optimiser, or give kappa 0 and add `dcs_penalty` to the loss.

    Parameters
    ----------
    module : Module
        With parameters rewritten by `dcs_`; one without any is refused.
    kappa : float or mapping of str to float
        The multiple of the norm, one for all or by the name of the parameter.
    weight_decay : float
        Of all other parameters.

    Examples
    --------
    >>> net = dln.learning.dcs_(torch.nn.Linear(3, 2), "weight", groups="row")
    >>> groups = dln.learning.dcs_parameter_groups(net, 0.1)
    >>> [group["weight_decay"] for group in groups]
    [0.1, 0.0]
    >>> optimiser = torch.optim.SGD(groups, lr=0.1)
    """
    rate = as_positive(weight_decay, "weight_decay", zero=True)
    sites = dcs_sites(module)
    factors = _factors(sites, kappa)
    by_rate: dict[float, list[Tensor]] = {}
    for u, k in factors.values():
        by_rate.setdefault(k, []).append(u)
    coupled: dict[str, Any] = {"decoupled_weight_decay": False}
    groups = [{"params": us, "weight_decay": k, **coupled} for k, us in by_rate.items()]
    rest = [p for p in module.parameters() if id(p) not in factors]
    return [*groups, {"params": rest, "weight_decay": rate}] if rest else groups


def dcs_penalty(module: nn.Module, kappa: float | Mapping[str, float]) -> Tensor:
    """Return ``kappa/2`` times the squares of the factors, a term to add to the loss.

    For optimisers without decay (LBFGS), or with decoupled decay; parameters as in
    `dcs_parameter_groups`.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = net.weight.copy_(torch.tensor([[3.0, -4.0]]))
    >>> _ = dln.learning.dcs_(net, "weight")
    >>> penalty = dln.learning.dcs_penalty(net, kappa=0.1)
    >>> bool(penalty >= 0.1 * 7)  # kappa |q|_1, and more unless the factors are balanced
    True
    """
    terms = [k * (u.square().sum() / 2) for u, k in _factors(dcs_sites(module), kappa).values()]
    return torch.stack(terms).sum()


def dcs_norm(module: nn.Module) -> dict[str, Tensor]:
    """Return the norm of each parameter rewritten by `dcs_`, by its name.

    It is ``|O^T q|_1``, the sum of lengths of the groups, or the nuclear norm; for N > 2 factors
    ``N/2`` times the sum of ``size^{2/N}``.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = net.weight.copy_(torch.tensor([[3.0, -4.0]]))
    >>> _ = dln.learning.dcs_(net, "weight")
    >>> dln.learning.dcs_norm(net)
    {'weight': tensor(7., grad_fn=<MulBackward0>)}
    """
    return {name: site.norm(site(*parts)) for name, (site, parts) in dcs_sites(module).items()}


def dcs_sites(module: nn.Module) -> dict[str, tuple[DCS, list[Tensor]]]:
    """Return the parametrisation and the new parameters of each rewritten parameter, by name."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    found = {}
    for path, owner in module.named_modules():
        if not parametrize.is_parametrized(owner):
            continue
        for leaf, chain in owner.parametrizations.items():  # pyright: ignore
            if isinstance(chain[0], DCS):
                originals = [getattr(chain, f"original{i}") for i in range(chain.ntensors)]
                found[f"{path}.{leaf}" if path else leaf] = (chain[0], originals)
    if not found:
        raise ValueError("module must have a parameter rewritten by dcs_, got none")
    return found


def _factors(
    sites: Mapping[str, tuple[DCS, list[Tensor]]], kappa: float | Mapping[str, float]
) -> dict[int, tuple[Tensor, float]]:
    """Return all factors, each once with its kappa, by their id: modules may share some."""
    found: dict[int, tuple[Tensor, float]] = {}
    for name, k in _kappas(sites, kappa).items():
        site, originals = sites[name]
        for u in site.decayed(originals):
            if found.setdefault(id(u), (u, k))[1] != k:
                raise ValueError(f"kappa must be the same for tied factors, got {k} for {name!r}")
    return found


def _kappas(names: Mapping[str, Any], kappa: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(kappa, Mapping):
        return dict.fromkeys(names, as_positive(kappa, "kappa", zero=True))
    if set(kappa) != set(names):
        raise ValueError(f"kappa must have the names {sorted(names)}, got {sorted(kappa)}")
    return {name: as_positive(kappa[name], f"kappa[{name!r}]", zero=True) for name in names}
