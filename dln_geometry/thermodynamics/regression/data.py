"""The data of a regression in singular vectors of the inputs, and the prior of the scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support import as_float_tensor, as_matrix, as_positive, as_width_sequence, shown


@dataclass(frozen=True)
class Data:
    """Inputs ``A = U diag(x) V^T`` of rank k, and outputs in their frame.

    `singular` are the x, (k,), `right` is V^T, (k, n), `coordinates` is ``U^T y``, (k, m), or (k,)
    for one output; `missed` the part of y outside the range of A.
    """

    like: Tensor
    widths: tuple[int, ...]
    singular: np.ndarray
    right: np.ndarray
    coordinates: np.ndarray
    missed: float
    size: float
    samples: int

    @property
    def rank(self) -> int:
        """Rank of the inputs."""
        return len(self.singular)

    @property
    def n(self) -> int:
        """Number of inputs."""
        return self.right.shape[1]

    @cached_property
    def solution(self) -> np.ndarray:
        """The smallest w that gives the outputs (their part in the range)."""
        return self.right.T @ (self.coordinates / self.singular)

    @cached_property
    def square(self) -> float:
        """The square of its norm."""
        return float(((self.coordinates / self.singular) ** 2).sum())

    def check_reached(self) -> None:
        """Refuse outputs that no w gives."""
        rounding = 1e3 * np.finfo(np.float64).eps
        if self.like.dtype.itemsize < 8:
            rounding = 1e3 * np.finfo(np.float32).eps
        if self.missed > rounding * self.size:
            raise ValueError(
                "noise must be positive where outputs are no linear function of the inputs, got 0 "
                f"and a distance of {self.missed:.1e} from the outputs that can be reached"
            )

    def log_likelihood(self, log_scale: np.ndarray, noise: float) -> np.ndarray:
        """Return the log-density of the outputs given the variance of w, for each scale."""
        scale = np.exp(log_scale)[:, None]
        k, c = self.rank, self.coordinates
        if noise == 0:
            value = -0.5 * k * (log_scale + np.log(2 * np.pi)) - np.log(self.singular).sum()
            with np.errstate(over="ignore"):
                return value - 0.5 * self.square * np.exp(-log_scale)
        variance = scale * self.singular**2 + noise**2
        value = -0.5 * (np.log(2 * np.pi * variance) + c**2 / variance).sum(-1)
        rest = self.samples - k
        return value - 0.5 * rest * np.log(2 * np.pi * noise**2) - 0.5 * (self.missed / noise) ** 2


def data_of(
    inputs: Any, outputs: Any, widths: Sequence[int], noise: float = 0.0, *, several: bool = False
) -> Data:
    """Check inputs, outputs and widths, and decompose the inputs."""
    like = as_matrix(inputs, "inputs").detach()
    if like.ndim != 2:
        raise ValueError(f"inputs must have shape (P, n), got {tuple(like.shape)}")
    y = as_float_tensor(outputs, "outputs", dtype=like.dtype, device=like.device).detach()
    resolved = as_width_sequence(widths)
    y = y.unsqueeze(-1) if y.ndim == 1 else y
    samples, n = like.shape
    shape = (samples, y.shape[-1] if several and y.ndim == 2 else 1)
    if tuple(y.shape) != shape or not y.shape[-1]:
        wanted = f"({samples},) or ({samples}, {'m' if several else 1})"
        raise ValueError(f"outputs must have shape {wanted}, as inputs do, got {tuple(y.shape)}")
    if (resolved[0], resolved[-1]) != (n, shape[1]):
        required = f"begin with {n} inputs and end with {shape[1]}"
        raise ValueError(f"widths must {required}, got {shown(resolved)}")
    a, c = like.double().cpu().numpy(), y.double().cpu().numpy()
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    eps = np.finfo(np.float64 if like.dtype.itemsize >= 8 else np.float32).eps
    k = int((s > 4 * max(a.shape) * eps * s[0]).sum()) if s[0] > 0 else 0
    coordinates = u[:, :k].T @ c
    steepest = max(float(np.abs(c).max()) / least for least in (1.0, *s[k - 1 : k], noise or 1.0))
    if not steepest < 1e150:
        raise ValueError(
            "outputs must have squares that do not overflow, in units of inputs and of noise, got "
            f"a quotient of {steepest:.1e}"
        )
    return Data(
        like=like,
        widths=resolved,
        singular=s[:k],
        right=vh[:k],
        coordinates=coordinates if several else coordinates[:, 0],
        missed=float(np.linalg.norm(c - u[:, :k] @ coordinates)),
        size=float(np.linalg.norm(c)),
        samples=samples,
    )


def prior_of(widths: tuple[int, ...], variances: Any) -> tuple[float, np.ndarray]:
    """Return log M and the shapes d_p/2 of the Gamma variables, ``S = M prod_p g_p``."""
    depth = len(widths) - 1
    if isinstance(variances, bool):
        raise TypeError(f"variances must be a number or a sequence of them, got {variances}")
    numbers = as_float_tensor(variances, "variances", dtype=torch.float64, device="cpu")
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) != depth):
        raise ValueError(
            f"variances must be a number or a sequence of {depth} numbers, got {shown(variances)}"
        )
    # Plain numbers have been rounded to torch's default type.
    each = [float(v) for v in variances] if numbers.ndim else [float(variances)] * depth
    for v in each:
        as_positive(v, "variances")
    log_m = float(np.log(each[0] / widths[0]))
    log_m += float(sum(np.log(2.0 * v / d) for v, d in zip(each[1:], widths[1:-1], strict=True)))
    return log_m, 0.5 * np.array(widths[1:-1], dtype=np.float64)
