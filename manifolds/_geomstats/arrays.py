"""Arrays of geomstats' backend as tensors and back, and arguments that several classes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor

from manifolds._convert import to_numpy, to_torch


def as_tensor(x: Any, *, like: Tensor | None = None) -> Tensor:
    """Return an array of geomstats' backend as a real floating tensor.

    Integers, booleans and lists of numbers become the backend's default float. The result has the
    dtype and device of `like`, if given.
    """
    tensor = to_torch(x if hasattr(x, "dtype") else gs.array(x), like=like)
    if tensor.is_floating_point():
        return tensor
    return tensor.to(to_torch(gs.zeros(1)).dtype)


def to_backend(x: Tensor) -> Any:
    """Return a tensor as an array of the backend: itself, with its graph, if that is torch."""
    return x if gs.__name__.endswith("pytorch") else to_numpy(x)


def as_layers(
    point: Any, widths: Sequence[int], *, like: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Cut a network that geomstats holds as one array, shape (..., N, D, D), into its N layers.

    Layer p stands in the first ``d_p`` rows and ``d_{p-1}`` columns of slice ``p - 1``, D is the
    largest of the widths ``(d_0, ..., d_N)``.
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
    """Return matrices as one tensor, padded by zeros, shape (..., N, D, D) with D = `side`."""
    padded = [
        torch.nn.functional.pad(w, (0, side - w.shape[-1], 0, side - w.shape[-2])) for w in layers
    ]
    return torch.stack(torch.broadcast_tensors(*padded), -3)


def is_zero(x: Tensor, atol: float, axes: int) -> Any:
    """Tell which arrays, the last `axes` dimensions of x, have entries of at most `atol`."""
    return to_backend((x.abs() <= atol).flatten(-axes).all(-1))


def gram_schmidt(x: Tensor) -> Tensor:
    """Orthonormalise the columns one after the other, by the QR whose R has a positive diagonal.

    Of normal matrices the result follows the uniform (Haar) law exactly.
    """
    q, upper = torch.linalg.qr(x)
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return q * signs.to(q.dtype).unsqueeze(-2)


def batched(shape: tuple[int, ...], n_samples: int) -> tuple[int, ...]:
    """Return the shape of this many arrays; one has no leading dimension."""
    return shape if n_samples == 1 else (n_samples, *shape)


def check_one_point(n_vectors: int, batch: Sequence[int]) -> None:
    """Refuse to draw several vectors at several points."""
    if n_vectors != 1 and len(batch) > 0:
        raise ValueError(
            f"n_vectors must be 1 at several points, got {n_vectors} at points of shape "
            f"{tuple(batch)}"
        )


def direction_of(metric: Any, base_point: Any, direction: Any, end_point: Any) -> Any:
    """Return the velocity of a transport: the direction if given, else the logarithm of the end."""
    if direction is None:
        if end_point is None:
            raise ValueError("direction or end_point must be given, got neither")
        direction = metric.log(end_point, base_point)
    return direction
