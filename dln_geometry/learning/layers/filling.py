"""Fill the weights of consecutive linear layers with balanced factors, in place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import EndToEnd, balanced_chain, haar_stiefel
from dln_geometry.support import (
    as_choice,
    as_matrix,
    as_module_generator,
    as_positive,
    as_rank,
    normal,
    shared_pair,
)


def fill_balanced(
    weights: Sequence[Tensor],
    *,
    end_to_end: Any = None,
    distribution: str = "gaussian",
    rank: int | None = None,
    scale: float = 1.0,
    gauge: str | Sequence[Any] | None = "haar",
    generator: torch.Generator | int | None = None,
    name: str = "end_to_end",
) -> None:
    """Overwrite a chain of weights by balanced factors; the options are those of `balanced_`."""
    widths = _widths_of(weights)
    first = weights[0]
    scale = as_positive(scale, "scale")
    as_distribution(distribution)
    if first.is_meta:  # left alone, as by torch.nn.init
        return
    # svd does not exist below single precision.
    dtype = first.dtype if first.dtype.itemsize >= 4 else torch.float32
    batch, device = first.shape[:-2], first.device
    source: Any = None
    if generator is not None or end_to_end is None or isinstance(gauge, str):
        # Otherwise nothing is random, and the global generator stays where it is.
        source = as_module_generator(generator, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if end_to_end is None:
            r = as_rank(min(widths) if rank is None else rank, min(widths), "the smallest width")
            shape = (*batch, widths[-1], widths[0])
            options: dict[str, Any] = {"generator": source, "dtype": dtype, "device": device}
            u, s, vh = _random_svd(shape, r, distribution, **options)
        else:
            x = as_matrix(end_to_end, name, dtype=dtype, device=device)
            u, s, vh = _svd_within(x, widths, batch, rank, name)
        factors = balanced_chain(
            EndToEnd(u, scale * s, vh, len(weights), check=False), widths, gauge, source
        )
        for w, factor in zip(weights, factors, strict=True):
            w.copy_(factor)


def _random_svd(
    shape: tuple[int, ...], r: int, distribution: str, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the thin SVD of a random matrix of rank r, at scale 1; options as in `haar_stiefel`."""
    *batch, m, n = shape
    if distribution == "orthogonal":
        u, v = haar_stiefel(batch, m, r, **options), haar_stiefel(batch, n, r, **options)
        return u, u.new_ones(*batch, r), v.mT
    # A Gaussian matrix on a Haar subspace of dimension r of the narrower side. At full rank the
    # subspace is the whole side, and the entries are independent.
    narrow, wide = min(m, n), max(m, n)
    z = normal((*batch, r, wide), **options)
    frame, s, vh = torch.linalg.svd(z * math.sqrt(narrow / (r * n)), full_matrices=False)
    u = haar_stiefel(batch, narrow, r, **options) @ frame
    return (u, s, vh) if m <= n else (vh.mT, s, u.mT)


def _svd_within(
    x: Tensor, widths: tuple[int, ...], batch: torch.Size, rank: int | None, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD of a given end-to-end matrix, cut to a rank that the widths allow."""
    m, n, k = widths[-1], widths[0], min(widths)
    if tuple(x.shape) not in ((m, n), (*batch, m, n)):
        raise ValueError(f"{name} must have shape {(*batch, m, n)}, got {tuple(x.shape)}")
    r = k if rank is None else as_rank(rank, k, "the smallest width")
    u, s, vh = torch.linalg.svd(x.expand(*batch, m, n), full_matrices=False)
    # The N-th root of a rounding error is not small.
    s = torch.where(s > torch.finfo(s.dtype).eps * max(m, n) * s[..., :1], s, 0.0)
    if rank is None and bool((s[..., r:] > 0).any()):
        raise ValueError(
            f"{name} must have rank at most {k} (the smallest width), got rank "
            f"{int((s > 0).sum(-1).max())}; rank={k} takes the nearest matrix of that rank"
        )
    return u[..., :r], s[..., :r], vh[..., :r, :]


def _widths_of(weights: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the widths ``(d_0, ..., d_N)`` of weights, refusing those that cannot be filled."""
    if len(weights) == 0:
        raise ValueError("weights must hold at least one matrix, got none")
    for p, w in enumerate(weights):
        if not isinstance(w, Tensor) or not w.is_floating_point():
            what = w.dtype if isinstance(w, Tensor) else type(w).__name__
            raise TypeError(f"weights[{p}] must be a real floating tensor, got {what}")
        if torch.nn.parameter.is_lazy(w):
            raise ValueError(f"weights[{p}] must be initialised, got a lazy parameter")
        if w.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"weights[{p}] must be made outside torch.inference_mode, got one made inside: it "
                "cannot be changed in place"
            )
        if w.ndim < 2 or 0 in w.shape:
            raise ValueError(
                f"weights[{p}] must be a non-empty matrix (..., d_{p + 1}, d_{p}), "
                f"got shape {tuple(w.shape)}"
            )
    first = weights[0]
    for p, (before, w) in enumerate(itertools.pairwise(weights), start=1):
        if w.shape[-1] != before.shape[-2] or w.shape[:-2] != first.shape[:-2]:
            raise ValueError(
                f"weights must chain, got shapes {tuple(before.shape)} and {tuple(w.shape)} "
                f"at {p - 1} and {p}"
            )
        if w.dtype != first.dtype or w.device != first.device:
            raise ValueError(
                f"weights must share one dtype and device, got {first.dtype} on {first.device} "
                f"and {w.dtype} on {w.device} at {p}"
            )
    if pair := shared_pair(weights):
        raise ValueError(
            "weights must be distinct tensors without common elements, got tied ones at "
            f"{pair[0]} and {pair[1]}"
        )
    return (first.shape[-1], *(w.shape[-2] for w in weights))


def as_distribution(distribution: Any) -> str:
    """Return the name of a distribution of end-to-end matrices."""
    return as_choice(distribution, ("gaussian", "orthogonal"), "distribution")
