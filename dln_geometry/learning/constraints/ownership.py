"""Parameters by their names: who owns them, before they are rewritten."""

from __future__ import annotations

import math
import numbers
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["as_rate", "own_parameter"]


def own_parameter(module: Any, name: Any) -> tuple[nn.Module, str, nn.Parameter]:
    """Return the submodule that owns a parameter, its name there, and the parameter.

    Raises
    ------
    TypeError
        If `module` is no module, or the parameter is not real.
    ValueError
        If there is no such parameter, or it is tied, lazy, or parametrised already.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    everything = dict(module.named_parameters(remove_duplicate=False))
    if name not in everything:
        path, _, leaf = str(name).rpartition(".")
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
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf, parameter


def as_rate(value: Any, name: str) -> float:
    """Return a non-negative finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    rate = float(value)
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"{name} must be non-negative and finite, got {value!r}")
    return rate
