"""Where geodesics end: they lose rank when an eigenvalue of K passes through zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode import Gauss

_HUGE = 1e100


class GeodesicError(ArithmeticError):
    """Tell that a geodesic does not exist, or was not found.

    Examples
    --------
    >>> p = dln.EndToEnd.of(torch.eye(2), depth=2)
    >>> try:
    ...     dln.exponential(p, torch.tensor([[-3.0, 0.0], [0.0, 0.0]]))
    ... except dln.GeodesicError as error:
    ...     print(str(error)[:36])
    the geodesic must keep its rank, but
    """


@dataclass(frozen=True)
class Lost:
    """The samples of a batch that could not be followed to the end, in arrays of its shape."""

    times: np.ndarray  # time beyond which a sample could not be followed, or NaN
    barred: np.ndarray  # whether a singular value reaches zero there

    @property
    def which(self) -> np.ndarray:
        """Which samples are lost."""
        return ~np.isnan(self.times)

    def refuse(self, end: float) -> None:
        """Raise an error that names the samples, if there are any."""
        if not self.which.any():
            return
        time, where = float(np.nanmin(np.abs(self.times))), ""
        if self.times.ndim:
            indices = [tuple(int(i) for i in index) for index in np.argwhere(self.which)]
            noun = "sample" if len(indices) == 1 else "samples"
            named = ", ".join(str(i[0] if len(i) == 1 else i) for i in indices[:8])
            where = f" ({noun} {named}{', ...' if len(indices) > 8 else ''} of the batch)"
        if self.barred[self.which].all():
            raise GeodesicError(
                f"the geodesic must keep its rank, but a singular value reaches zero at "
                f"t = {time:.6g}{where}: the metric has no geodesics beyond (at finite depth it "
                "is at finite distance)"
            )
        raise GeodesicError(
            f"the geodesic must be one that can be followed up to t = {end:g}, but beyond "
            f"t = {time:.6g} no step succeeds{where}: singular values pass zero too closely, or "
            "leave the range of numbers"
        )


def rank_loss(t: np.ndarray, h: np.ndarray, k: Tensor) -> np.ndarray:
    """Return when an eigenvalue of K reaches zero in the steps from t to t + h, or inf, (B,).

    `k`, of shape (B, S + 1, r, r), holds K at the Gauss nodes and at the end of the steps.
    """
    never = np.full(len(t), math.inf)
    # A step that failed may hold any numbers.
    k = k.double().nan_to_num(0.0, 0.0, 0.0).clamp(-_HUGE, _HUGE)
    # No eigenvalue moves by more than K does.
    moved = torch.linalg.matrix_norm(k - k[:, -1:]).amax(1)
    if bool((torch.linalg.eigvalsh(k[:, -1])[..., 0] > 1.5 * moved).all()):
        return never
    lowest = torch.linalg.eigvalsh(k)[..., 0]
    # Between two nodes the eigenvalue may be below its values at both.
    dip = (lowest[:, 2:] - 2.0 * lowest[:, 1:-1] + lowest[:, :-2]).abs().amax(1)
    doubtful = (lowest.amin(1) < dip).cpu().numpy()
    if doubtful.any():
        theta, table = Gauss(k.shape[1] - 1).fine
        fine = torch.einsum("ts,bsij->tbij", torch.from_numpy(table).to(k), k[doubtful])
        x = torch.linalg.eigvalsh(fine)[..., 0].cpu().numpy()
        never[doubtful] = t[doubtful] + h[doubtful] * _first_zero(theta, x)
    return never


def _first_zero(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return where functions, (T, B) at T points, first reach zero, or inf."""
    # The vertex of the parabola through the least value and its neighbours.
    low = np.clip(np.argmin(x, 0), 1, len(x) - 2)
    around = np.stack([low - 1, low, low + 1])
    points, (a, b, c) = theta[around], np.take_along_axis(x, around, 0)
    first = (b - a) / (points[1] - points[0])
    second = ((c - b) / (points[2] - points[1]) - first) / (points[2] - points[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.clip(0.5 * (points[0] + points[1] - first / second), points[0], points[2])
        lowest = a + (vertex - points[0]) * (first + second * (vertex - points[1]))
    zero = np.where(lowest <= 0, vertex, math.inf)
    # A change of sign between two points.
    for i in np.flatnonzero((x <= 0).any(0)):
        k = int(np.argmax(x[:, i] <= 0))
        share = x[k - 1, i] / (x[k - 1, i] - x[k, i]) if k else 1.0
        zero[i] = theta[k - 1] + share * (theta[k] - theta[k - 1]) if k else theta[0]
    return zero
