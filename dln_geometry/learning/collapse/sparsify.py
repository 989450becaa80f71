"""Finish sparse training: set small weights to zero, and remove the units that are off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dln_geometry.learning.collapse.detection import MirrorFamily
from dln_geometry.learning.collapse.pruning import outputs_of, pruned
from dln_geometry.learning.functional import as_arguments, bare_copy, parameters_of
from dln_geometry.support import as_flag, as_positive, shown


@dataclass(frozen=True, eq=False)
class Sparsified:
    """A sparse model and what was done; made by `sparsify`.

    Attributes
    ----------
    model : Module
        The smaller model, a copy.
    threshold : float
        Entries up to this multiple of the root mean square of their parameter became zero.
    zeros, sizes : dict of str to int
        Zero entries and all entries of every parameter chosen, before units were removed.
    removed : tuple of (MirrorFamily, tuple of int)
        Units that were removed, by family. A grouped convolution counts as that of all channels,
        with zeros between its groups.
    kept : tuple of (MirrorFamily, tuple of int, str)
        Units that are off but had to stay, and why.
    parameters : tuple of int
        Number of parameters before and after.
    change : float
        Largest change of an output by the threshold, relative to the largest output. The removal
        of units changes outputs by rounding only.

    Examples
    --------
    >>> net, x = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)), torch.ones(4, 2)
    >>> report = dln.learning.sparsify(net, x)
    >>> report.removed, report.parameters
    ((), (13, 13))
    """

    model: nn.Module
    threshold: float
    zeros: Mapping[str, int]
    sizes: Mapping[str, int]
    removed: tuple[tuple[MirrorFamily, tuple[int, ...]], ...]
    kept: tuple[tuple[MirrorFamily, tuple[int, ...], str], ...]
    parameters: tuple[int, int]
    change: float

    @property
    def sparsity(self) -> float:
        """Share of the entries chosen that are zero."""
        return sum(self.zeros.values()) / max(1, sum(self.sizes.values()))

    def __str__(self) -> str:
        lines = [
            f"{self.sparsity:.1%} of {sum(self.sizes.values())} entries are zero; parameters: "
            f"{self.parameters[0]} before, {self.parameters[1]} after"
        ]
        for family, units in self.removed:
            lines.append(f"removed {len(units)} of {family.units} units: {', '.join(family.names)}")
        for family, units, why in self.kept:
            lines.append(f"kept {len(units)} units of {', '.join(family.names)}: {why}")
        return "\n".join(lines)


def sparsify(
    model: nn.Module,
    example_input: Any,
    *,
    threshold: float | None = None,
    target: float | None = None,
    names: str | Iterable[str] | None = None,
    remove: bool = True,
) -> Sparsified:
    """Set small weights to zero and remove the units that are then off, into a smaller model.

    A unit is off if the weights that read it are zero, or those that make it, or its gain in a
    batch normalisation: then it is constant, and the constant goes into the biases of the layers
    that read it. Units are followed through the operations of one forward pass, so that they are
    removed from linear layers (transposed ones of transformers, too), `DeepLinear`, convolutions,
    normalisations, embeddings and plain parameters, also through flattening, concatenations, gates
    and residual connections. In grouped convolutions as many channels stay in each group, or none;
    in group normalisations whole groups go. A removal that would change the outputs (a layer
    normalisation over the units) is not made, nor one of units whose number the code of the model
    names (heads of an attention) or that feed themselves (recurrent cells; their inputs can go).
    Several layers may empty each other in turn. One unit of each family stays.

    Parameters
    ----------
    model : Module
        Not changed. Parametrised parameters (by `dcs_` or weight_norm) become plain in the copy.
    example_input
        As in `symmetries_of`: the model without the units must have the same outputs on it, in
        evaluation mode, for which all of this holds.
    threshold : float, optional
        Multiple of the root mean square of each parameter, up to which its entries become zero; by
        default the square root of the machine epsilon, what decay leaves of zeros.
    target : float, optional
        In place of a threshold: the share of the chosen entries that become zero, the smallest
        relative to the root mean square of their parameter.
    names : str or iterable of str, optional
        Patterns of the parameters to threshold ("*.weight", "layer?.*"); by default all with two
        axes or more.
    remove : bool
        Whether units are removed, or only set to zero.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> with torch.no_grad():
    ...     _ = net[2].weight[:, 1].zero_()
    >>> report = dln.learning.sparsify(net, torch.randn(5, 2))
    >>> print(report)
    11.1% of 9 entries are zero; parameters: 13 before, 9 after
    removed 1 of 3 units: 0.weight, 0.bias, 2.weight
    >>> report.model[0]
    Linear(in_features=2, out_features=2, bias=True)
    """
    if threshold is not None and target is not None:
        raise ValueError("target must not be given with a threshold, got both")
    level = None if threshold is None else as_positive(threshold, "threshold", zero=True)
    share = None if target is None else as_positive(target, "target", zero=True)
    if share is not None and share >= 1:
        raise ValueError(f"target must be below 1, got {target}")
    remove = as_flag(remove, "remove")
    parameters_of(model)
    twin = bare_copy(model)
    modes = {name: m.training for name, m in twin.named_modules()}
    for module in list(twin.modules()):
        if parametrize.is_parametrized(module):
            held: Any = module.parametrizations
            for leaf in list(held):
                parametrize.remove_parametrizations(module, leaf)
    twin.eval()
    params = dict(twin.named_parameters())
    for name, p in params.items():
        if p.is_meta:
            raise ValueError(f"model must have values, got {name!r} on the meta device")
        if not bool(torch.isfinite(p).all()):
            raise ValueError(f"model must have finite parameters, got NaN or infinity in {name!r}")
    before = sum(p.numel() for p in params.values())
    chosen = _chosen_names(params, names)
    call = as_arguments(example_input)
    dense = outputs_of(twin, call)
    if not any(bool(torch.isfinite(y).any()) for y in dense):
        raise ValueError("example_input must give outputs with finite entries, got none")
    level = _thresholded([params[n] for n in chosen], level, share)
    zeros = {n: int((params[n] == 0).sum()) for n in chosen}
    sizes = {n: params[n].numel() for n in chosen}
    thin = outputs_of(twin, call)
    removed: Any = ()
    kept: Any = ()
    if remove:
        twin, removed, kept = pruned(twin, call)
    for name, module in twin.named_modules():
        module.training = modes.get(name, module.training)
    size = max((float(y.abs().max()) for y in dense if y.numel()), default=0.0)
    moved = max(
        (float((a - b).abs().max()) for a, b in zip(dense, thin, strict=True) if a.numel()),
        default=0.0,
    )
    after = sum(p.numel() for p in twin.parameters())
    change = moved / size if moved else 0.0
    sides = tuple(removed), tuple(kept)
    return Sparsified(twin, level, zeros, sizes, *sides, (before, after), change)


def _chosen_names(params: Mapping[str, Tensor], names: Any) -> list[str]:
    if names is None:
        return [n for n, p in params.items() if p.ndim > 1 and p.is_floating_point()]
    patterns = [names] if isinstance(names, str) else names
    if isinstance(patterns, bytes | Tensor) or not isinstance(patterns, Iterable):
        raise TypeError(f"names must be patterns of names, got {shown(names)}")
    found: dict[str, None] = {}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"names must hold patterns of names, got {shown(pattern)}")
        own = [n for n in params if fnmatchcase(n, pattern)]
        if not own:
            raise ValueError(f"names must match parameters, {sorted(params)}, got {pattern!r}")
        found.update(dict.fromkeys(own))
    if not found:
        raise ValueError(f"names must hold at least one pattern, got {shown(names)}")
    return list(found)


@torch.no_grad()
def _thresholded(params: Sequence[Tensor], level: float | None, share: float | None) -> float:
    """Set small entries to zero in place; return the multiple of the root mean squares."""
    sizes = [float(p.double().square().mean().sqrt()) if p.numel() else 0.0 for p in params]
    if share is not None:
        ratios = [
            p.abs().double().flatten() / (size or 1.0)
            for p, size in zip(params, sizes, strict=True)
        ]
        pool = torch.cat([r.cpu() for r in ratios]) if ratios else torch.zeros(0)
        count = math.floor(share * len(pool))
        level = float(pool.kthvalue(count).values) if count else 0.0
    for p, size in zip(params, sizes, strict=True):
        own = math.sqrt(torch.finfo(p.dtype).eps) if level is None else level
        p.masked_fill_(p.abs().double() <= own * size, 0.0)
    if level is not None:
        return level
    return max((math.sqrt(torch.finfo(p.dtype).eps) for p in params), default=0.0)
