"""What the tests of symmetries share."""

from __future__ import annotations

import torch

F64 = torch.float64


def random(shape, generator, dtype=F64):
    return torch.randn(shape, generator=generator, dtype=dtype)
