"""Products and decompositions of batches of small matrices by numpy, where it is the quicker one.

torch multiplies such batches by a plain loop, numpy by BLAS: of 1000 in double precision 86 us for
153 at 4 x 4, 122 for 481 at 6 x 6, and 0.7 of the time up to 32 x 32; at 2 x 2 and 3 x 3 torch is
ahead. LAPACK takes 0.84 to 0.92 of torch's time. No derivative passes here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from dln_geometry.geometry.kernel.jacobi import small_svd

_FEWEST, _LARGEST = 4, 32
"""Rows and columns of the matrices that numpy is given."""

_ON_THREADS = 2**13
"""Numbers of a batch up to which this holds for products where torch has several threads."""


def quick_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, equal to rounding."""
    fits = _is_small(a) and _FEWEST <= b.shape[-1] <= _LARGEST
    alone = a.numel() <= _ON_THREADS or torch.get_num_threads() == 1
    if fits and alone and _is_memory(a) and _is_memory(b):
        with np.errstate(all="ignore"):  # as torch, which does not warn of what overflows
            return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))
    return a @ b


def quick_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `small_svd`, whose signs may be others."""
    # numpy computes in double precision whatever the matrix has.
    if x.dtype == torch.float64 and x.ndim > 2 and _is_small(x) and _is_memory(x):
        try:
            u, s, vh = np.linalg.svd(x.numpy(), full_matrices=False)
        except np.linalg.LinAlgError:
            return small_svd(x)
        return torch.from_numpy(u), torch.from_numpy(s), torch.from_numpy(vh)
    return small_svd(x)


def _is_small(x: Tensor) -> bool:
    m, n = x.shape[-2:]
    return _FEWEST <= m <= _LARGEST and _FEWEST <= n <= _LARGEST


def _is_memory(x: Tensor) -> bool:
    """Tell whether a tensor is memory of the host, and nothing asks for the operations of torch."""
    return (
        type(x) is Tensor
        and x.dtype in (torch.float32, torch.float64)
        and x.device.type == "cpu"
        and not (x.requires_grad or x.is_neg() or torch.is_grad_enabled())
        and forward_ad._current_level < 0
        and not is_functorch_wrapped_tensor(x)
        # Of this thread: is_in_torch_dispatch_mode() tells of all.
        and torch._C._len_torch_dispatch_stack() == 0
    )
