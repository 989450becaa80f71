"""Random numbers from the user's generator, and checks of its arguments."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Above it noise is below the rounding of the repulsion, and the square of the index overflows.
_MOST_INDEX = 1e30


def normal(
    shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype, device: Any = None
) -> Tensor:
    """Draw standard normal numbers where the generator lives, and move them to the device."""
    draw = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    return draw if device is None and draw.device.type == "cpu" else draw.to(device or "cpu")


def chi(degrees: Tensor, batch: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw chi variables with these (real, positive) degrees of freedom, shape (*batch, k)."""
    half = (0.5 * degrees).expand(*batch, *degrees.shape).to(generator.device).contiguous()
    return (2.0 * torch._standard_gamma(half, generator=generator)).sqrt().to(degrees.device)


def as_index(dyson_index: Any) -> float:
    """Return a Dyson index in (0, inf]."""
    if isinstance(dyson_index, bool) or not isinstance(dyson_index, numbers.Real):
        raise TypeError(f"dyson_index must be a number in (0, inf], got {dyson_index!r}")
    if not float(dyson_index) > 0:
        raise ValueError(f"dyson_index must be positive (inf is allowed), got {dyson_index}")
    index = float(dyson_index)
    return index if math.isinf(index) else min(index, _MOST_INDEX)


def as_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Return the user's generator, or a fresh one; the global one is never touched."""
    if generator is None:
        generator = torch.Generator(device=device)
        generator.seed()
    elif not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    return generator
