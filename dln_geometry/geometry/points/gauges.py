"""Make balanced layers from frames: Haar, canonical or given ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points.batch import check_orthonormal
from dln_geometry.geometry.points.end_to_end import EndToEnd
from dln_geometry.geometry.points.smooth_functions import frames_and_root
from dln_geometry.support import (
    as_float_tensor,
    as_generator,
    as_layer_count,
    as_positive,
    as_size,
    as_widths,
    common_batch,
    normal,
    phases,
)

_Gauge = str | Sequence[Any] | None


def chain_from_frames(frames: Sequence[Tensor], s: Tensor) -> tuple[Tensor, ...]:
    """Return ``W_p = Q_p Sigma^{1/N} Q_{p-1}^T`` from the N + 1 frames ``Q_0, ..., Q_N``."""
    root = (s ** (1.0 / (len(frames) - 1))).unsqueeze(-2)
    return tuple((after * root) @ before.mH for before, after in pairwise(frames))


def balanced_chain(
    p: EndToEnd,
    widths: Sequence[int] | int | None,
    gauge: _Gauge,
    generator: torch.Generator | int | None,
) -> tuple[Tensor, ...]:
    """Return the layers of `balanced_factors`."""
    u, s, vh = p.u, p.s, p.vh
    hidden = as_widths(widths, p.shape, as_layer_count(p.depth), p.rank)[1:-1]
    inner = _hidden_frames(u, s, hidden, gauge, generator)
    if (x := p.followed) is None:
        return chain_from_frames((vh.mH, *inner, u), s)
    u, root, v = frames_and_root(x, p.constants, p.depth)
    return tuple(after @ root @ before.mH for before, after in pairwise((v, *inner, u)))


def _hidden_frames(
    u: Tensor,
    s: Tensor,
    widths: tuple[int, ...],
    gauge: _Gauge,
    generator: torch.Generator | int | None,
) -> list[Tensor]:
    """Return a frame Q_p, orthonormal columns, shape (..., d_p, r), for every hidden width.

    They have the type of `u`.
    """
    kind: Any = {"dtype": u.dtype, "device": u.device}
    r = s.shape[-1]
    if gauge is None:
        return [torch.eye(d, r, **kind) for d in widths]
    if isinstance(gauge, str):
        if gauge != "haar":
            raise ValueError(f'gauge must be None, "haar" or matrices, got {gauge!r}')
        return haar_frames(s, widths, (), generator, u.dtype)
    if isinstance(gauge, Tensor) or not isinstance(gauge, Sequence):
        raise TypeError(f'gauge must be None, "haar" or a sequence, got {type(gauge).__name__}')
    if len(gauge) != len(widths):
        required = f"one matrix per hidden layer, {len(widths)}"
        raise ValueError(f"gauge must hold {required}, got {len(gauge)}")
    frames = []
    for p, (q, d) in enumerate(zip(gauge, widths, strict=True)):
        frame = as_float_tensor(q, f"gauge[{p}]", **kind, complex=u.is_complex())
        if frame.ndim < 2 or frame.shape[-2] != d or frame.shape[-1] not in (r, d):
            required = f"shape (..., {d}, {r}) or (..., {d}, {d})"
            raise ValueError(f"gauge[{p}] must have {required}, got {tuple(frame.shape)}")
        frame = frame[..., :r]
        check_orthonormal(frame, f"gauge[{p}]", 1000 * torch.finfo(s.dtype).eps * d)
        frames.append(frame)
    return frames


def haar_frames(
    s: Tensor,
    widths: Sequence[int],
    batch: Sequence[int],
    generator: torch.Generator | int | None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Draw a Haar frame (*batch, d, r) for every width d, like the spectrum `s`, (..., r).

    They are complex if `dtype` is, else of the type of `s`.
    """
    complex_dtype = dtype is not None and dtype.is_complex
    kind: Any = {"dtype": s.dtype.to_complex() if complex_dtype else s.dtype, "device": s.device}
    batch = common_batch(batch=as_size(batch, "batch", 0), spectrum=s.shape[:-1])
    generator = as_generator(generator, s.device)
    return [haar_stiefel(batch, d, s.shape[-1], generator=generator, **kind) for d in widths]


def haar_stiefel(
    batch: Sequence[int],
    d: int,
    r: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw orthonormal frames, shape (*batch, d, r), from the invariant (Haar) law."""
    q, upper = torch.linalg.qr(normal((*batch, d, r), generator, dtype, device))
    # QR fixes no signs; making the diagonal of R positive makes the law exactly Haar.
    return q * phases(upper.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)


def as_spectrum(
    scale: Any, spectrum: Any, r: int, dtype: torch.dtype | None, device: torch.device | str | None
) -> Tensor:
    """Return singular values of shape (..., r), descending: all `scale` if there is no spectrum."""
    if spectrum is None:
        as_positive(scale, "scale", zero=True)
    value = scale if spectrum is None else spectrum
    if dtype is None and not hasattr(value, "dtype"):
        dtype = torch.get_default_dtype()
    if isinstance(dtype, torch.dtype) and dtype.is_complex:
        dtype = dtype.to_real()
    s = as_float_tensor(value, "spectrum", dtype=dtype, device=device)
    s = s if s.ndim else s.expand(r)
    if s.shape[-1] != r:
        raise ValueError(f"spectrum must have shape (..., {r}), got {tuple(s.shape)}")
    if bool((s < 0).any()):
        raise ValueError("spectrum must be non-negative, got a negative singular value")
    return s.sort(-1, descending=True).values
