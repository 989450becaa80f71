"""The weight decay of differentiable constraints: for optimisers, as a term, as a norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dln_geometry.learning.constraints.dcs import DCS
from dln_geometry.learning.constraints.ownership import as_rate

__all__ = ["dcs_norm", "dcs_parameter_groups", "dcs_penalty"]


def dcs_parameter_groups(
    module: nn.Module, kappa: float | Mapping[str, float], *, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the parameter groups for an optimiser: decay kappa on the factors alone.

    Parameters
    ----------
    module : Module
        With parameters rewritten by `dcs_`.
    kappa : float or mapping of str to float
        The multiple of the norm, one for all or by the name of the parameter.
    weight_decay : float
        Of all other parameters.

    Returns
    -------
    list of dict
        A group for each kappa, and one for the others if there are any; ready for
        ``torch.optim.SGD(groups, lr=...)``.

    Raises
    ------
    TypeError
        If a decay is not a number.
    ValueError
        If a decay is negative, the module has no rewritten parameter, or names do not match.

    Examples
    --------
    >>> from dln_geometry.learning import dcs_
    >>> net = dcs_(torch.nn.Linear(3, 2), "weight", groups="row")
    >>> groups = dcs_parameter_groups(net, 0.1)
    >>> [group["weight_decay"] for group in groups]
    [0.1, 0.0]
    >>> optimiser = torch.optim.SGD(groups, lr=0.1)
    """
    rate = as_rate(weight_decay, "weight_decay")
    factors: dict[float, list[Tensor]] = {}
    taken: set[int] = set()
    for name, k in _kappas(module, kappa).items():
        site = dict(_sites(module))[name]
        chosen = site[1] if site[0].mirror is None else site[1][1:]
        factors.setdefault(k, []).extend(chosen)
        taken.update(id(p) for p in chosen)
    groups = [{"params": params, "weight_decay": k} for k, params in factors.items()]
    rest = [p for p in module.parameters() if id(p) not in taken]
    return [*groups, {"params": rest, "weight_decay": rate}] if rest else groups


def dcs_penalty(module: nn.Module, kappa: float | Mapping[str, float]) -> Tensor:
    """Return ``kappa/2`` times the squares of the factors, to be added to the loss.

    It is the same as the decay of `dcs_parameter_groups`, for optimisers that have none (LBFGS).

    Parameters
    ----------
    module, kappa
        As in `dcs_parameter_groups`.

    Raises
    ------
    TypeError, ValueError
        As in `dcs_parameter_groups`.
    """
    sites = dict(_sites(module))
    terms = [
        k * sites[name][0].penalty(sites[name][1]) for name, k in _kappas(module, kappa).items()
    ]
    return torch.stack(terms).sum()


def dcs_norm(module: nn.Module) -> dict[str, Tensor]:
    """Return the norm that is penalised of each rewritten parameter, by its name.

    Parameters
    ----------
    module : Module
        With parameters rewritten by `dcs_`.

    Returns
    -------
    dict of str to Tensor
        ``|O^T q|_1``, the sum of lengths of the groups, or the nuclear norm; for more than two
        factors ``N/2`` times the sum of ``size^{2/N}``.

    Raises
    ------
    ValueError
        If the module has no rewritten parameter.
    """
    sites = dict(_sites(module))
    _kappas(module, 0.0)
    return {name: site.norm(site(*originals)) for name, (site, originals) in sites.items()}


def _sites(module: nn.Module) -> Iterator[tuple[str, tuple[DCS, list[Tensor]]]]:
    """Yield the rewritten parameters: name, parametrisation, and its originals."""
    for path, owner in module.named_modules():
        if not parametrize.is_parametrized(owner):
            continue
        for leaf, chain in owner.parametrizations.items():  # pyright: ignore
            if isinstance(chain[0], DCS):
                originals = [getattr(chain, f"original{i}") for i in range(chain.ntensors)]
                yield (f"{path}.{leaf}" if path else leaf), (chain[0], originals)


def _kappas(module: nn.Module, kappa: float | Mapping[str, float]) -> dict[str, float]:
    names = [name for name, _ in _sites(module)]
    if not names:
        raise ValueError("module must have a parameter rewritten by dcs_, got none")
    if not isinstance(kappa, Mapping):
        return dict.fromkeys(names, as_rate(kappa, "kappa"))
    if set(kappa) != set(names):
        raise ValueError(f"kappa must have the names {sorted(names)}, got {sorted(kappa)}")
    return {name: as_rate(kappa[name], f"kappa[{name!r}]") for name in names}
