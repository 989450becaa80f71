from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import dln_geometry as dln
from dln_geometry import losses

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
BITS = {"float32": 24, "tf32": 11, "bf16": 8}


class RoundedFactors(TorchDispatchMode):
    """Round the factors of every product of float32 matrices to so many bits."""

    def __init__(self, bits):
        super().__init__()
        self.cut = 24 - bits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.removeprefix("aten::") in PRODUCTS and self.cut:
            args = tree_map(self.rounded, args)
        return func(*args, **(kwargs or {}))

    def rounded(self, x):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            return x
        half = 1 << (self.cut - 1)
        whole = x.contiguous().view(torch.int32) + half
        return (whole & ~((1 << self.cut) - 1)).view(torch.float32)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("depth", [2, 2.5, 3, 4, math.inf])
def test_errors_are_a_few_units_of_the_last_place(depth, precision, generator):
    target = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    start = dln.Collapsed.random(
        (12, 9), 4, depth, scale=0.5, generator=generator, dtype=torch.float64
    )
    options = {"t_end": 1.0 if math.isinf(depth) else 2.0 / depth, "save_at": 2}
    exact = dln.gradient_flow(losses.Quadratic(target), start, **options).final.matrix
    with RoundedFactors(BITS[precision]):
        path = dln.gradient_flow(
            losses.Quadratic(target.float()),
            start.to(torch.float32),
            rtol=1e-5,
            precision=precision,
            **options,
        )
    gap = torch.linalg.matrix_norm(path.final.matrix.double() - exact)
    unit = max(2.0 ** -BITS[precision], 1e-5)
    assert float(gap / torch.linalg.matrix_norm(exact)) <= 4 * unit


def test_the_setting_of_torch_is_restored():
    before = torch.get_float32_matmul_precision()
    seen = []

    def look(x):
        seen.append(torch.get_float32_matmul_precision())
        return 0.5 * x.square().sum()

    start = dln.EndToEnd.of(torch.eye(2), 2)
    dln.gradient_flow(losses.from_callable(look), start, t_end=0.1, precision="tf32")
    assert "high" in seen
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ValueError, match="precision must be None for a start in torch.float64"):
        dln.gradient_flow(
            losses.Quadratic(torch.eye(2)), start.to(torch.float64), t_end=0.1, precision="bf16"
        )
