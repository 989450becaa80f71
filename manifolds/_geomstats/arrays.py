"""Arrays of geomstats' backend as tensors and back, and arguments that several classes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor

from dln_geometry.support import as_count, as_positive, read_array
from manifolds._convert import to_numpy, to_torch


def as_tensor(x: Any, *, like: Tensor | None = None, name: str = "x") -> Tensor:
    """Return an array of the backend as a real floating tensor, of the dtype and device of `like`.

    Integers, booleans and lists of numbers become the backend's default float.
    """
    tensor, own = read_array(x, name)
    if like is not None:
        return tensor.to(dtype=like.dtype, device=like.device)
    usual = own and tensor.is_floating_point()
    return tensor if usual else tensor.to(to_torch(gs.zeros(1)).dtype)


def as_samples(n_samples: Any, bound: Any) -> tuple[int, float]:
    """Return the number and the size of random points."""
    return as_count(n_samples, "n_samples"), as_positive(bound, "bound")


def as_inexact(rtol: Any) -> float:
    """Return a relative tolerance below 1."""
    if as_positive(rtol, "rtol") >= 1.0:
        raise ValueError(f"rtol must be below 1, got {rtol}")
    return as_positive(rtol, "rtol")


def to_backend(x: Tensor) -> Any:
    """Return a tensor as an array of the backend: itself, with its graph, if that is torch."""
    return x if gs.__name__.endswith("pytorch") else to_numpy(x)


def as_layers(x: Any, widths: Sequence[int], *, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Cut a network that geomstats holds as one array, shape (..., N, D, D), into its N layers.

    Layer p stands in the first ``d_p`` rows and ``d_{p-1}`` columns of slice ``p - 1``, D is the
    largest of the widths ``(d_0, ..., d_N)``.
    """
    tensor = as_tensor(x, like=like)
    depth, side = len(widths) - 1, max(widths)
    if tuple(tensor.shape[-3:]) != (depth, side, side):
        raise ValueError(
            f"point must have shape (..., {depth}, {side}, {side}) for the widths "
            f"{tuple(widths)}, got {tuple(tensor.shape)}"
        )
    return tuple(tensor[..., p, : widths[p + 1], : widths[p]] for p in range(depth))


def to_padded(layers: Sequence[Tensor], side: int) -> Tensor:
    """Return matrices as one tensor, padded by zeros, shape (..., N, D, D) with D = `side`."""
    pads = [(0, side - w.shape[-1], 0, side - w.shape[-2]) for w in layers]
    padded = map(torch.nn.functional.pad, layers, pads)
    return torch.stack(torch.broadcast_tensors(*padded), -3)


def is_zero(x: Tensor, atol: float, axes: int) -> Any:
    """Tell which arrays, the last `axes` dimensions of x, have entries of at most `atol`."""
    return to_backend((x.abs() <= atol).flatten(-axes).all(-1))


def gram_schmidt(x: Tensor) -> Tensor:
    """Return Q of the QR with a positive diagonal of R: Haar distributed for normal matrices."""
    q, upper = torch.linalg.qr(x)
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return q * signs.to(q.dtype).unsqueeze(-2)


def batched(shape: tuple[int, ...], n_samples: int) -> tuple[int, ...]:
    """Return the shape of this many arrays; one has no leading dimension."""
    return shape if n_samples == 1 else (n_samples, *shape)


def normal_vectors(n_vectors: int, batch: Sequence[int], shape: Sequence[int]) -> Any:
    """Draw normal arrays by geomstats' generator: several at one point, or one at every point."""
    if n_vectors != 1 and len(batch) > 0:
        raise ValueError(
            f"n_vectors must be 1 at several points, got {n_vectors} at points of shape "
            f"{tuple(batch)}"
        )
    return gs.random.normal(size=batched((*batch, *shape), n_vectors))


def direction_of(metric: Any, base_point: Any, direction: Any, end_point: Any) -> Any:
    """Return the velocity of a transport: the direction if given, else the logarithm of the end."""
    if direction is None and end_point is None:
        raise ValueError("direction or end_point must be given, got neither")
    return metric.log(end_point, base_point) if direction is None else direction
