"""Between geomstats' backend and the library: arrays in, tensors inside, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor

from manifolds._convert import to_numpy, to_torch

__all__ = ["as_layers", "as_tensor", "to_backend", "to_padded"]


def as_tensor(x: Any, *, like: Tensor | None = None) -> Tensor:
    """Return an array of geomstats' backend as a real floating tensor.

    Integers, booleans and lists of numbers become the backend's default float.

    Parameters
    ----------
    x : array-like
    like : Tensor, optional
        Give it the dtype and device of this tensor.
    """
    tensor = to_torch(x if hasattr(x, "dtype") else gs.array(x), like=like)
    if tensor.is_floating_point():
        return tensor
    return tensor.to(to_torch(gs.zeros(1)).dtype)


def to_backend(x: Tensor) -> Any:
    """Return a tensor as an array of geomstats' backend: itself, with its graph, if that is torch.

    Parameters
    ----------
    x : Tensor
    """
    return x if gs.__name__.endswith("pytorch") else to_numpy(x)


def as_layers(
    point: Any, widths: Sequence[int], *, like: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Cut a network that geomstats holds as one array into its layers.

    Parameters
    ----------
    point : array-like, shape=[..., N, D, D]
        Layer p in the first ``d_p`` rows and ``d_{p-1}`` columns of slice ``p - 1``.
    widths : sequence of int
        ``(d_0, ..., d_N)``; ``D`` is the largest.
    like : Tensor, optional
        Give them the dtype and device of this tensor.

    Returns
    -------
    tuple of Tensor
        ``(W_1, ..., W_N)``, W_p of shape (..., d_p, d_{p-1}).

    Raises
    ------
    ValueError
        If the array has another shape.
    """
    tensor = as_tensor(point, like=like)
    depth, side = len(widths) - 1, max(widths)
    if tuple(tensor.shape[-3:]) != (depth, side, side):
        raise ValueError(
            f"point must have shape (..., {depth}, {side}, {side}) for the widths "
            f"{tuple(widths)}, got {tuple(tensor.shape)}"
        )
    return tuple(tensor[..., p, : widths[p + 1], : widths[p]] for p in range(depth))


def to_padded(layers: Sequence[Tensor], side: int) -> Tensor:
    """Return matrices as one tensor, padded by zeros, shape (..., N, D, D).

    Parameters
    ----------
    layers : sequence of Tensor
        Matrices of at most D rows and columns, of the same leading dimensions up to broadcasting.
    side : int
        The side D.
    """
    padded = [
        torch.nn.functional.pad(w, (0, side - w.shape[-1], 0, side - w.shape[-2])) for w in layers
    ]
    return torch.stack(torch.broadcast_tensors(*padded), -3)
