r"""Variances that normalisations divide by, as training meets them: they set the tolerances.

A normalisation by ``sqrt(var + eps)`` keeps the share ``eps / (var + eps)`` of a change of scale,
in an output of size ``sqrt(var / (var + eps))``, and multiplies gradients, with their rounding
errors, by the gain ``1 / sqrt(var + eps)``. Where the variance is small, the scale symmetry is
broken and the rounding errors are large through no fault of the training loop.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.products import wide_dtype

_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class Variances:
    """Shares and gains of the normalisations of some groups in the forward passes of a loop.

    It looks at a pass in training mode, with gradients, where `wanted` says so. In compiled modules
    it sees none: then a share of eps and a gain of 1 stand, those of a variance of 1.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[SymmetricGroup], wanted: Callable[[], bool]
    ) -> None:
        named = dict(module.named_modules())
        self._wanted = wanted
        self._norms = [_norms_of(group, named) for group in groups]
        # Shifts are undone exactly, whatever the epsilon.
        self._scales = [group.kind == "scale" for group in groups]
        self._found: dict[int, Tensor] = {}
        modules = {id(m): m for norms in self._norms for m in norms}
        self.handles = [m.register_forward_pre_hook(Witness(self)) for m in modules.values()]

    def note(self, module: nn.Module, x: Any) -> None:
        """Note the share and the gain of one pass; of several the largest."""
        if not (self._wanted() and module.training and torch.is_grad_enabled()):
            return
        # Inside torch.func values are of no use after the transform.
        if not isinstance(x, Tensor) or is_functorch_wrapped_tensor(x):
            return
        if not x.is_floating_point() or not x.numel():
            return
        figures = _share_and_gain(module, x.detach())
        before = self._found.get(id(module))
        self._found[id(module)] = figures if before is None else torch.maximum(before, figures)

    def take(self, epsilons: Tensor) -> tuple[Tensor, Tensor]:
        """Return share and gain of each group since the last call, shape (groups,).

        `epsilons` are the least shares.
        """
        shares, gains = list(epsilons.unbind()), list(torch.ones_like(epsilons).unbind())
        for k, norms in enumerate(self._norms):
            for figures in (self._found[id(m)] for m in norms if id(m) in self._found):
                share, gain = figures.to(epsilons)
                gains[k] = torch.maximum(gains[k], gain)
                if self._scales[k]:
                    shares[k] = torch.maximum(shares[k], share)
        self._found.clear()
        return torch.stack(shares), torch.stack(gains)


class Witness:
    """The hook of a normalisation; copies and pickles of the module carry it without effect."""

    # Hooks that change nothing do not hide a symmetry of the module.
    changes_nothing = True

    def __init__(self, variances: Variances | None = None) -> None:
        self._variances = None if variances is None else weakref.ref(variances)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or self._variances is None or not args:
            return
        variances = self._variances()
        if variances is not None:
            variances.note(module, args[0])

    def __deepcopy__(self, memo: Any) -> Witness:
        return Witness()

    def __reduce__(self) -> tuple[Any, ...]:
        return Witness, ()


class AutocastWitness:
    """A hook of the module that notes the coarsest type that autocast computes in."""

    changes_nothing = True

    def __init__(self, module: nn.Module) -> None:
        self.eps = 0.0
        self._handle: Any = module.register_forward_pre_hook(self)

    def remove(self) -> None:
        """Take the hook out of the module."""
        if self._handle is not None:
            self._handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        # Handles cannot be copied once their module is gone.
        return {**self.__dict__, "_handle": None}

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            return
        for kind in {x.device.type for x in args if isinstance(x, Tensor)}:
            if torch.is_autocast_enabled(kind):
                self.eps = max(self.eps, torch.finfo(torch.get_autocast_dtype(kind)).eps)


def _norms_of(group: SymmetricGroup, named: dict[str, nn.Module]) -> list[nn.Module]:
    """Return the normalisations that make a scale or translation a symmetry."""
    if group.kind not in ("scale", "translation"):
        return []
    # A module of torch's own is traced inside a container, as its child "0".
    found = [named.get(name, named.get(name.removeprefix("0."))) for name in group.through]
    return [m for m in found if isinstance(m, _NORMS)]


@torch.no_grad()
def _share_and_gain(module: Any, x: Tensor) -> Tensor:
    """Return the mean over samples of share and gain, of the unit where it is largest, shape (2,).

    The share is that of an output of the size that it has.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        dims = tuple(range(-len(module.normalized_shape), 0))
        centred = isinstance(module, nn.LayerNorm)
        variance = x.var(dims, correction=0) if centred else x.square().mean(dims)
        variance = variance.reshape(-1, 1)
    elif isinstance(module, nn.GroupNorm):
        variance = x.reshape(x.shape[0], module.num_groups, -1).var(-1, correction=0)
    elif isinstance(module, _BatchNorm):
        variance = x.transpose(0, 1).flatten(1).var(1, correction=0)[None]
    else:
        # Without a batch, the channels come first.
        batch = x if x.shape[0] != module.num_features or x.ndim > 2 else x[None]
        variance = batch.flatten(2).var(-1, correction=0)
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    total = variance + eps
    share = eps / total * (variance / total).sqrt()
    figures = torch.stack([share, total.rsqrt()])
    return figures.mean(1).amax(1).to(wide_dtype(x.device))
