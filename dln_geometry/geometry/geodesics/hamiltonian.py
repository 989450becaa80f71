"""Geodesics followed through their flow, and what is said of those that end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.hamilton import Flow
from dln_geometry.geometry.geodesics.root_metric import Rooted
from dln_geometry.geometry.metric import Box
from dln_geometry.ode import collocate_samples

__all__ = ["GeodesicError", "Lost", "follow"]

# The end of a step has an error of about the square of that inside: measured at depths 1.5 to 64,
# below 0.2 of what is allowed.
_INSIDE = 0.02


class GeodesicError(ArithmeticError):
    """Tell that a geodesic does not exist, or was not found."""


@dataclass(frozen=True)
class Lost:
    """The samples of a batch that could not be followed to the end.

    Attributes
    ----------
    times : ndarray, shape (...)
        Where that was, or NaN.
    barred : ndarray of bool, shape (...)
        Whether a singular value reaches zero there.
    """

    times: np.ndarray
    barred: np.ndarray

    @property
    def which(self) -> np.ndarray:
        """Which samples they are, shape (...)."""
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


def follow(
    box: Box, times: list[float], rtol: float, *, through: bool = False
) -> tuple[list[Rooted], list[Tensor], Lost]:
    """Follow the geodesics of a box to increasing times > 0.

    Parameters
    ----------
    box : Box
        A point, a velocity, and the vectors that are to be transported to the last time.
    times : list of float
    rtol : float
    through : bool
        Go on through zero.

    Returns
    -------
    list of Rooted
        The points at the times, in the gauge that was carried along; without meaning for samples
        that are lost.
    list of Tensor, shape (..., m, n)
        The vectors.
    Lost
    """
    flow, state = Flow.of(box, times[-1], rtol, through)
    shortest = times[-1] * math.sqrt(torch.finfo(state.dtype).eps)
    inside = max(rtol, _INSIDE * math.sqrt(rtol)) if len(times) == 1 else rtol
    journey = collocate_samples(flow, state, times, rtol=rtol, shortest=shortest, inside=inside)
    batch, scale = box.point.s.shape[:-1], box.point.s[..., :1].double()
    points = []
    for state in journey.states:
        u, v, k, *_ = flow.parts(state[0].reshape(*batch, state.shape[-1]))
        if math.isinf(flow.depth):
            k = k + torch.diag_embed(scale.log().expand(*batch, k.shape[-1]))
        else:
            k = k * scale.unsqueeze(-1) ** (1.0 / flow.depth)
        points.append(Rooted(_orthonormal(u), k, _orthonormal(v)))
    carried = flow.parts(journey.states[-1][0].reshape(*batch, state.shape[-1]))[4:]
    vectors = [(w * scale.unsqueeze(-1)).to(box.point.s.dtype) for w in carried]
    lost = Lost(journey.lost.reshape(batch), journey.barred.reshape(batch))
    return points, vectors, lost


def _orthonormal(u: Tensor) -> Tensor:
    """Return the isometry next to what is one up to the error of the integration."""
    for _ in range(2):
        u = 1.5 * u - 0.5 * u @ (u.mT @ u)
    return u
