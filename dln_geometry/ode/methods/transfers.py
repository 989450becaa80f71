"""Numbers between the host and the device: without a wait there, with one back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(x: np.ndarray, like: Tensor) -> Tensor:
    """Copy a host array to the dtype and device of a tensor without waiting for the device."""
    return torch.from_numpy(x).to(like.device, like.dtype, non_blocking=True)


def fetch(pieces: list[Tensor]) -> np.ndarray:
    """Copy numbers to the host: only here does the host wait for the device.

    Examples
    --------
    >>> dln.ode.fetch([torch.ones(2), torch.zeros(1)])
    array([1., 1., 0.])
    """
    if all(x.device.type == "cpu" for x in pieces):
        return np.concatenate([x.numpy().ravel() for x in pieces], dtype=np.float64)
    flat = pieces[0].reshape(-1) if len(pieces) == 1 else torch.cat([x.reshape(-1) for x in pieces])
    return flat.cpu().numpy().astype(np.float64)
