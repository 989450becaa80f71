"""Random numbers from the user's generator, and checks of its arguments."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support.arguments import as_real, shown

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
    index = as_real(dyson_index, "dyson_index")
    if not index > 0:
        raise ValueError(f"dyson_index must be positive (inf is allowed), got {shown(dyson_index)}")
    return index if math.isinf(index) else min(index, _MOST_INDEX)


def as_generator(generator: Any, device: torch.device) -> torch.Generator:
    """Return the user's generator, one from the user's seed, or a fresh one on the device.

    The global generator is never touched: functions are random by their arguments alone.
    """
    if isinstance(generator, torch.Generator):
        return generator
    seed = None if generator is None else as_seed(generator, "generator")
    made = torch.Generator(device=device)
    made.seed() if seed is None else made.manual_seed(seed)
    return made


def as_module_generator(generator: Any, device: torch.device) -> torch.Generator:
    """Return a generator for a module: without one from the user, ``torch.manual_seed`` decides.

    The global generator of the CPU gives the seed, on whatever device the module lives. Modules and
    in-place initialisers take this one, as users of `torch.nn.init` expect; functions take
    `as_generator`.
    """
    if generator is None:
        generator = int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
    return as_generator(generator, device)


def as_seed(seed: Any, name: str) -> int:
    """Return an integer seed, which a generator of torch takes."""
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, numbers.Integral):
        what = "a torch.Generator or an integer seed" if name == "generator" else "an integer"
        raise TypeError(f"{name} must be {what}, got {type(seed).__name__}")
    number = int(seed)
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} must be a seed from 0 to 2**64 - 1, got {shown(number)}")
    return number
