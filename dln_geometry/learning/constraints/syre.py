"""Remove symmetries: weight decay towards a random point instead of zero."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from dln_geometry.learning.constraints.ownership import own_parameters
from dln_geometry.support import as_module_generator, as_positive, normal

M = TypeVar("M", bound=nn.Module)


class Syre(nn.Module):
    """The parametrisation that `syre_` registers: ``q = scale * z + offset``, without scale 1."""

    offset: Tensor
    scale: Tensor | None

    def __init__(self, offset: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)

    def forward(self, z: Tensor) -> Tensor:
        """Return the parameter q."""
        return self.offset + (z if self.scale is None else self.scale * z)

    def right_inverse(self, q: Tensor) -> Tensor:
        """Return the z of a parameter."""
        z = q - self.offset
        return z if self.scale is None else z / self.scale


def syre_(
    module: M,
    names: str | Iterable[str] | None = None,
    *,
    sigma: float | None = None,
    anisotropy: float = 0.0,
    generator: torch.Generator | int | None = None,
) -> M:
    r"""Remove the symmetries of a loss, so that no parameters collapse onto their fixed sets.

    Each parameter becomes ``q = z + q_0`` with a fixed random ``q_0 ~ N(0, sigma^2)``: weight decay
    acts on z, ``f(z + q_0) + gamma |z|^2`` for a `weight_decay` of ``2 gamma``. No mirror is a
    symmetry of both terms.

    Parameters
    ----------
    module : Module
        Changed in place: its function stays, its state dict holds q_0. Make the optimiser
        afterwards.
    names : str or iterable of str, optional
        Of the parameters, dotted; all that are floating and trained if not given. If one is tied,
        lazy or parametrised already, no parameter is changed.
    sigma : float, optional
        Standard deviation of q_0. If not given ``0.01 / sqrt(d)`` with d the number of inputs of
        the layer (the entries of a row of its weight): a hundredth of a usual initialisation.
        Vectors take the d of the weight beside them, or their own length.
    anisotropy : float
        In [0, 1): the decay of each entry is multiplied by a random number, uniform between
        ``1 - anisotropy`` and ``1 + anisotropy``, which also breaks rotations for good.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; if not given ``torch.manual_seed`` decides.

    References
    ----------
    Ziyin, Xu, Chuang, Remove symmetries to control model expressivity, arXiv 2408.15495.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 2)
    >>> before = layer.weight.detach().clone()
    >>> bool((dln.learning.syre_(layer).weight - before).abs().max() < 1e-6)
    True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if sigma is not None:
        sigma = as_positive(sigma, "sigma", zero=True)
    spread = as_positive(anisotropy, "anisotropy", zero=True)
    if spread >= 1:
        raise ValueError(f"anisotropy must be below 1, got {anisotropy!r}")
    if names is None:
        pairs = module.named_parameters()
        names = [n for n, p in pairs if p.requires_grad and (is_lazy(p) or p.is_floating_point())]
        if not names:
            raise ValueError("module must have parameters to change, got none")
    # Find all before changing any: an error leaves the module as it was.
    sites = own_parameters(module, names, "names")
    sizes = [0.01 / math.sqrt(_inputs(owner, p)) for owner, _, p in sites]
    source = as_module_generator(generator, sites[0][2].device)
    for (owner, leaf, p), size in zip(sites, sizes, strict=True):
        scale = None
        offset = normal(p.shape, source, p.dtype, p.device) * (size if sigma is None else sigma)
        if spread > 0:
            uniform = torch.rand(p.shape, generator=source, dtype=p.dtype, device=source.device)
            # The penalty is |z|^2 = |(q - q_0) / scale|^2: the decay of q is 1 / scale^2.
            scale = (1 + spread * (2 * uniform.to(p.device) - 1)).rsqrt()
        parametrize.register_parametrization(owner, leaf, Syre(offset, scale))
    return module


def _inputs(owner: nn.Module, p: Tensor) -> int:
    """Return the number of inputs of the layer that a parameter belongs to."""
    matrices = [w for w in (p, *owner.parameters(recurse=False)) if w.ndim >= 2]
    return max(matrices[0].numel() // matrices[0].shape[0] if matrices else p.numel(), 1)
