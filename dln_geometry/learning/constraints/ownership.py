"""Find the submodule that owns a parameter, and refuse parameters that cannot be rewritten."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def own_parameter(module: Any, name: Any) -> tuple[nn.Module, str, nn.Parameter]:
    """Return the submodule that owns a parameter, its name there, and the parameter."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    everything = dict(module.named_parameters(remove_duplicate=False))
    path, _, leaf = str(name).rpartition(".")
    if name not in everything:
        owner = dict(module.named_modules()).get(path)
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
    tied = [other for other, p in everything.items() if p is parameter]
    if len(tied) > 1:
        raise ValueError(f"parameter {name!r} must not be tied, got one under {tied}")
    return module.get_submodule(path), leaf, parameter
