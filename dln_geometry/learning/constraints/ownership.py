"""Find the submodule that owns a parameter, and refuse parameters that cannot be rewritten."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dln_geometry.support import shared_pair, shown


def own_parameters(module: Any, names: Any, what: str) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return `own_parameter` of one name or of several, each once; `what` is the argument."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    chosen = [names] if isinstance(names, str) else names
    if not isinstance(chosen, Iterable) or isinstance(chosen, bytes | Tensor):
        raise TypeError(f"{what} must be a name or several, got {type(names).__name__}")
    chosen = list(chosen)
    if not chosen:
        raise ValueError(f"{what} must hold at least one name, got none")
    sites = [own_parameter(module, name) for name in chosen]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{what} must hold each name once, got {chosen}")
    return sites


def own_parameter(module: Any, name: Any) -> tuple[nn.Module, str, nn.Parameter]:
    """Return the submodule that owns a parameter, its name there, and the parameter."""
    if not isinstance(name, str):
        raise TypeError(f"name must be that of a parameter, a string, got {shown(name)}")
    everything = dict(module.named_parameters(remove_duplicate=False))
    path, _, leaf = name.rpartition(".")
    if name not in everything:
        owner = dict(module.named_modules(remove_duplicate=False)).get(path)
        if owner is not None and parametrize.is_parametrized(owner, leaf):
            raise ValueError(f"parameter {name!r} must be plain, got one that is parametrised")
        raise ValueError(
            f"module must have the parameter {name!r}, got {', '.join(everything) or 'none'}"
        )
    parameter = everything[name]
    if nn.parameter.is_lazy(parameter):
        raise ValueError(f"parameter {name!r} must have a shape, got a lazy one: call the module")
    if not parameter.is_floating_point():
        raise TypeError(f"parameter {name!r} must be real, got {parameter.dtype}")
    if parameter.is_meta:
        raise ValueError(f"parameter {name!r} must have values, got one on the meta device")
    if parameter.is_inference():
        raise ValueError(
            f"parameter {name!r} must be made outside torch.inference_mode, got one made inside"
        )
    if not bool(torch.isfinite(parameter).all()):
        raise ValueError(f"parameter {name!r} must be finite, got NaN or infinite entries")
    tied = [other for other, p in everything.items() if p is parameter or _overlap(p, parameter)]
    if len(tied) > 1:
        raise ValueError(f"parameter {name!r} must not be tied, got one under {tied}")
    return module.get_submodule(path), leaf, parameter


def _overlap(p: nn.Parameter, q: nn.Parameter) -> bool:
    """Tell whether two different parameters share memory."""
    return not nn.parameter.is_lazy(p) and shared_pair([p.detach(), q.detach()]) is not None
