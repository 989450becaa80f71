"""The metric of depth N in coordinates: matrices and tensors on flattened matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from geomstats.geometry.riemannian_metric import RiemannianMetric
from torch import Tensor

from dln_geometry.geometry.metric import cometric, connection, metric
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import as_depth, as_float_tensor, as_normalized, common_batch
from manifolds._depth import depth_at_rank
from manifolds._geomstats.arrays import as_inexact, as_tensor, to_backend
from manifolds._geomstats.matrices.frames import Frames
from manifolds._geomstats.matrices.tangents import (
    rounding_size,
    tangent_part,
    widened,
    without_roundings,
)


class DepthTensors(RiemannianMetric):
    """The part of `DepthMetric` in coordinates: entries of the flattened matrix, row by row."""

    def __init__(
        self,
        space: Any,
        depth: float = 2.0,
        normalized: bool | None = None,
        rtol: float | None = None,
    ) -> None:
        self.depth = as_depth(depth)
        self.normalized = as_normalized(normalized, self.depth)
        self.rtol = None if rtol is None else as_inexact(rtol)
        m, n = space.shape
        self.rank = getattr(space, "rank", min(m, n))
        # Between two fixed spaces everything is computed on the square cores.
        self._frames: Frames | None = getattr(space, "frames", None)
        side = (m, n) if self._frames is None else (self.rank, self.rank)
        self._depth = depth_at_rank(self.depth, self.rank, side)
        if self.depth.infinite and not side[0] == side[1] == self.rank:
            raise ValueError(
                "depth must be finite unless the matrices are square and of full rank or have one "
                f"column and one row space, got inf on matrices of shape {(m, n)} and rank "
                f"{self.rank}: most of their tangent vectors have infinite length there; "
                "FixedSpacesEndToEnd(left, right) is made of those that have not"
            )
        super().__init__(space)

    def metric_matrix(self, base_point: Any = None) -> Any:
        """Return the matrix of the inner product on flattened matrices, shape (..., m n, m n)."""
        p = widened(self._point(base_point))
        return self._tensor(metric(p, self._basis(p)).flatten(-2), 2)

    def cometric_matrix(self, base_point: Any = None) -> Any:
        """Return the matrix of the coproduct, the inverse of `metric_matrix` on tangent vectors."""
        p = widened(self._point(base_point))
        return self._tensor(cometric(p, self._basis(p)).flatten(-2), 2)

    def christoffels(self, base_point: Any = None) -> Any:
        """Return the Christoffel symbols ``Gamma^k_ij``, the contravariant index k first."""
        return self._tensor(self._gamma(self._point(base_point)).movedim(-1, -3), 3)

    def inner_product_derivative_matrix(self, base_point: Any = None) -> Any:
        """Return the derivatives ``d_k g_ij`` of `metric_matrix`, index k last, at full rank."""
        p = self._point(base_point)
        if p.rank < min(p.shape):
            raise ValueError(
                "space must be of full rank for the derivatives of the metric matrix, got matrices "
                f"of rank {self.rank}"
            )
        # The connection keeps the metric: d_k g_ij = <Gamma_ki, e_j> + <e_i, Gamma_kj>.
        lowered = metric(widened(widened(p)), self._gamma(p).unflatten(-1, p.shape)).flatten(-2)
        half = lowered.movedim(-3, -1)
        return self._tensor(half + half.transpose(-3, -2), 3)

    def _point(self, point: Any, name: str = "base_point") -> EndToEnd:
        x = self._shaped(as_float_tensor(as_tensor(point, name=name), name), name)
        x = x if self._frames is None else self._frames.core_within(x, name)
        return EndToEnd.of(x, self._depth, rank=self.rank, normalized=self.normalized)

    def _at(self, base_point: Any, *vectors: Any) -> tuple[Any, ...]:
        """Return a point and tangent vectors, of fixed spaces their cores."""
        p = self._point(base_point)
        z = [self._tangent(p, as_tensor(v, like=p.s, name="tangent_vec")) for v in vectors]
        batches = {f"tangent_vec_{k}": v.shape[:-2] for k, v in enumerate(z)}
        common_batch(base_point=p.batch_shape, **batches)
        return p, *z

    def _at_covectors(self, base_point: Any, *covectors: Any) -> tuple[Any, ...]:
        """Return a point and covectors; parts of these outside fixed spaces do not count."""
        p = self._point(base_point)
        g = [
            self._shaped(as_tensor(v, like=p.s, name="cotangent_vec"), "cotangent_vec")
            for v in covectors
        ]
        return p, *(g if self._frames is None else map(self._frames.core, g))

    def _matrix(self, z: Tensor) -> Any:
        """Return a matrix, or the one of a core, as the backend's array."""
        return to_backend(z if self._frames is None else self._frames.embed(z))

    def _tensor(self, tensor: Tensor, axes: int) -> Any:
        """Return a tensor with this many axes of flattened matrices as the backend's array."""
        return to_backend(tensor if self._frames is None else self._frames.spread(tensor, axes))

    def _tangent(self, p: EndToEnd, v: Tensor) -> Tensor:
        v = self._shaped(as_float_tensor(v, "tangent_vec"), "tangent_vec")
        if self._frames is None:
            return without_roundings(p, v)
        return self._frames.core_within(v, "tangent_vec", rounding_size(p))

    def _shaped(self, x: Tensor, name: str) -> Tensor:
        if x.shape[-2:] != self._space.shape:
            m, n = self._space.shape
            raise ValueError(f"{name} must have shape (..., {m}, {n}), got {tuple(x.shape)}")
        return x

    def _basis(self, p: EndToEnd) -> Tensor:
        """Return the coordinate vectors, projected on the tangent space, (..., m n, m, n)."""
        e = torch.eye(math.prod(p.shape), dtype=p.dtype, device=p.device)
        return tangent_part(p, e.unflatten(-1, p.shape))

    def _gamma(self, p: EndToEnd) -> Tensor:
        """Return ``Gamma(e_i, e_j)``, shape (..., i, j, m n)."""
        wide = widened(p)
        e = self._basis(wide)
        return connection(widened(wide), e.unsqueeze(-3), e.unsqueeze(-4)).flatten(-2)
