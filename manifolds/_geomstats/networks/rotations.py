"""The rotations of the hidden layers and their action on networks, for geomstats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.group_action import GroupAction
from geomstats.geometry.manifold import Manifold
from torch import Tensor

from dln_geometry.geometry.points import polar
from dln_geometry.support import as_width_sequence
from manifolds._geomstats.arrays import as_tensor, batched, gram_schmidt, is_zero, to_backend


class HiddenRotations(Manifold):
    """The group ``O(d_1) x ... x O(d_{N-1})`` of the rotations of the hidden layers.

    An element is an array of shape (N - 1, D, D), D the largest width, that holds g_p in the first
    ``d_p`` rows and columns of slice ``p - 1`` and continues it by the identity. Random points
    follow the uniform law. `widths` as in `LayeredNetworks`.

    Examples
    --------
    >>> from manifolds.geomstats_dln import HiddenRotations
    >>> group = HiddenRotations((2, 3, 4, 2))
    >>> group.dim, group.random_point().shape
    (9, (2, 4, 4))
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = as_width_sequence(widths)
        hidden, side = self.widths[1:-1], max(self.widths)
        dim, shape = sum(d * (d - 1) // 2 for d in hidden), (len(hidden), side, side)
        # geomstats refuses the dimension 0 of a finite group.
        super().__init__(dim=dim or None, shape=shape, intrinsic=False, equip=False)
        self.dim = dim

    @property
    def identity(self) -> Any:
        """The neutral element, shape=[N - 1, D, D]."""
        return gs.broadcast_to(gs.eye(self.shape[-1]), self.shape)

    def compose(self, point_a: Any, point_b: Any) -> Any:
        """Return the products ``a_p b_p``, shape=[..., N - 1, D, D]."""
        return gs.matmul(point_a, point_b)

    def inverse(self, point: Any) -> Any:
        """Return the transposed rotations, shape=[..., N - 1, D, D]."""
        return to_backend(as_tensor(point).mT)

    def belongs(self, point: Any, atol: float = gs.atol) -> Any:
        """Tell whether every slice is orthogonal, and the identity outside its block."""
        g = as_tensor(point)
        if tuple(g.shape[-3:]) != self.shape:
            return gs.zeros(tuple(g.shape[:-3]), dtype=bool)
        eye = self._eye(g)
        return is_zero(torch.cat((g.mT @ g - eye, self._block(g - eye) - (g - eye)), -3), atol, 3)

    def is_tangent(self, vector: Any, base_point: Any, atol: float = gs.atol) -> Any:
        """Tell whether ``g^T V`` is antisymmetric, and zero outside the blocks."""
        g, v = as_tensor(base_point), as_tensor(vector)
        turn = g.mT @ v
        return is_zero(torch.cat((turn + turn.mT, v - self._block(v).expand_as(v)), -3), atol, 3)

    def to_tangent(self, vector: Any, base_point: Any) -> Any:
        """Project orthogonally on the tangent space, ``g (g^T V - V^T g)/2``."""
        g = as_tensor(base_point)
        turn = g.mT @ self._block(as_tensor(vector, like=g))
        return to_backend(0.5 * g @ (turn - turn.mT))

    def projection(self, point: Any) -> Any:
        """Return the nearest element: the polar factor of every block."""
        g = as_tensor(point)
        return to_backend(polar(self._block(g - self._eye(g)) + self._eye(g)))

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Any:
        normal = self._block(as_tensor(gs.random.normal(size=batched(self.shape, n_samples))))
        eye = self._eye(normal)
        return to_backend(gram_schmidt(normal + eye - self._block(eye)))

    def _eye(self, like: Tensor) -> Tensor:
        return torch.eye(self.shape[-1], dtype=like.dtype, device=like.device)

    def _block(self, x: Tensor) -> Tensor:
        """Set the entries outside the blocks of the group to zero."""
        inside = torch.zeros(self.shape, dtype=torch.bool, device=x.device)
        for p, d in enumerate(self.widths[1:-1]):
            inside[p, :d, :d] = True
        return torch.where(inside, x, torch.zeros_like(x))


class HiddenRotationAction(GroupAction):
    """Action of the hidden rotations, ``W_p -> g_p W_p g_{p-1}^T`` with ``g_0 = g_N = 1``.

    It keeps end-to-end matrix, norm and balance. `widths` as in `LayeredNetworks`.

    Examples
    --------
    >>> from manifolds.geomstats_dln import BalancedNetworks, HiddenRotationAction, HiddenRotations
    >>> networks = BalancedNetworks((2, 3, 2))
    >>> turn = HiddenRotations((2, 3, 2)).random_point()
    >>> moved = HiddenRotationAction((2, 3, 2))(turn, networks.random_point())
    >>> bool(networks.belongs(moved))
    True
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.group = HiddenRotations(widths)

    @property
    def group_elem_shape(self) -> tuple[int, ...]:
        """Shape of the group elements."""
        return self.group.shape

    def __call__(self, group_elem: Any, point: Any) -> Any:
        w = as_tensor(point)
        g = as_tensor(group_elem, like=w)
        eye = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
        rim = eye.expand(*g.shape[:-3], 1, -1, -1)
        return to_backend(torch.cat((g, rim), -3) @ w @ torch.cat((rim, g), -3).mT)
