"""Copies of modules without what wraps them: data parallelism, compilation, averaging."""

from __future__ import annotations

import copy
import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


class Bare(nn.Module):
    """A module in the place of its wrapper, so that its parameters keep their names."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.inner_name = name
        self.add_module(name, inner)
        self.training = inner.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return getattr(self, self.inner_name)(*args, **kwargs)


def bare_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module, with the same names, in which nothing is wrapped.

    The wrappers are ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and what
    ``torch.compile`` returns; a TypeError says that a module cannot be copied.
    """
    name = _wrapped_name(module)
    if name is not None:
        return Bare(name, bare_copy(getattr(module, name)))
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise TypeError(
            "module must be one that copy.deepcopy can copy (the hooks of the old "
            f"torch.nn.utils.weight_norm cannot: use torch.nn.utils.parametrizations): {error}"
        ) from error
    # A module that is called in two places stays one module.
    made: dict[int, nn.Module] = {}
    for parent in list(twin.modules()):
        for key, child in parent._modules.items():
            if child is not None and (name := _wrapped_name(child)) is not None:
                bare = made.setdefault(id(child), Bare(name, getattr(child, name)))
                parent._modules[key] = bare
    return twin


def _wrapped_name(module: nn.Module) -> str | None:
    """Return the name under which a wrapper holds its module, `None` for other modules."""
    if isinstance(module, DataParallel | DistributedDataParallel | AveragedModel):
        return "module"
    # What torch.compile returns; to import its class takes a second.
    compiled = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", ())
    return "_orig_mod" if isinstance(module, compiled) else None
