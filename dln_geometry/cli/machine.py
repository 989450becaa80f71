"""Where and in which type a command computes, and its source of randomness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dln_geometry.cli.files import option
from dln_geometry.support import as_device, as_seed

_TYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Machine:
    """Device and type; ``generator(k)`` is the source of the seed after k others."""

    device: torch.device
    dtype: torch.dtype
    seed: int

    def generator(self, offset: int = 0) -> torch.Generator:
        """Return a generator on the CPU: a seed means the same numbers on every device."""
        return torch.Generator().manual_seed(self.seed + offset)

    def tensor(self, x: Any) -> torch.Tensor:
        """Return numbers on the device, in the type."""
        return torch.as_tensor(x).to(device=self.device, dtype=self.dtype)


def as_machine(device: str, dtype: str, seed: int = 0) -> Machine:
    """Return the machine of ``--device``, ``--dtype`` and ``--seed``; two seeds may be used."""
    with option("seed"):
        as_seed(as_seed(seed, "seed") + 1, "seed")
    if dtype not in _TYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_TYPES)}, got {dtype}")
    with option("device"):
        place = as_device(device)
    if place.type == "mps" and dtype == "float64":
        raise ValueError("--dtype must be float32 on the device mps, got float64")
    return Machine(place, _TYPES[dtype], seed)
