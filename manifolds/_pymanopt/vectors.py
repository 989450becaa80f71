"""Points and tangent vectors as pymanopt wants them: small tuples of arrays with arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np

_Self = TypeVar("_Self", bound="_Arithmetic")


class _Arithmetic:
    """The arithmetic of a vector space, part by part."""

    # numpy scalars must not take the parts for the rows of one array.
    __array_priority__ = 1000
    __array_ufunc__ = None

    @classmethod
    def _of(cls: type[_Self], parts: Iterable[Any]) -> _Self:
        return cls(parts)  # pyright: ignore[reportCallIssue]

    def _parts(self) -> tuple[np.ndarray, ...]:
        return tuple(self)  # pyright: ignore[reportArgumentType]

    def __add__(self: _Self, other: Any) -> _Self:
        return self._of(a + b for a, b in zip(self._parts(), other, strict=True))

    def __sub__(self: _Self, other: Any) -> _Self:
        return self._of(a - b for a, b in zip(self._parts(), other, strict=True))

    def __mul__(self: _Self, factor: Any) -> _Self:
        return self._of(factor * a for a in self._parts())

    __rmul__ = __mul__

    def __truediv__(self: _Self, divisor: Any) -> _Self:
        return self._of(a / divisor for a in self._parts())

    def __neg__(self: _Self) -> _Self:
        return self._of(-a for a in self._parts())


class _PointParts(NamedTuple):
    u: np.ndarray
    s: np.ndarray
    vt: np.ndarray


class FixedRankPoint(_PointParts):
    """A matrix ``u @ diag(s) @ vt`` of rank r as its thin singular value decomposition.

    The manifold keeps tables of its metric with the point: never change its arrays.

    Attributes
    ----------
    u : ndarray, shape (m, r)
    s : ndarray, shape (r,)
    vt : ndarray, shape (r, n)

    Examples
    --------
    >>> from manifolds.pymanopt_dln import EndToEndManifold
    >>> point = EndToEndManifold(4, 3, rank=2, depth=3, rng=0).random_point()
    >>> point.u.shape, point.s.shape, point.vt.shape
    ((4, 2), (2,), (2, 3))
    """

    frame: Any = None


class _TangentParts(NamedTuple):
    up: np.ndarray
    M: np.ndarray
    vp: np.ndarray


class FixedRankTangent(_Arithmetic, _TangentParts):
    """A tangent vector ``u @ M @ vt + up @ vt + u @ vp.T`` with ``u.T @ up = vt @ vp = 0``.

    Attributes
    ----------
    up : ndarray, shape (m, r)
    M : ndarray, shape (r, r)
    vp : ndarray, shape (n, r)

    Examples
    --------
    >>> from manifolds.pymanopt_dln import EndToEndManifold
    >>> manifold = EndToEndManifold(4, 3, rank=2, depth=3, rng=0)
    >>> vector = manifold.random_tangent_vector(manifold.random_point())
    >>> vector.up.shape, vector.M.shape, vector.vp.shape
    ((4, 2), (2, 2), (3, 2))
    """

    @classmethod
    def _of(cls, parts: Iterable[np.ndarray]) -> FixedRankTangent:
        return cls(*parts)


class FactorVector(_Arithmetic, list):
    """A tangent vector of the balanced manifold: one matrix for every layer, input side first.

    Examples
    --------
    >>> from manifolds.pymanopt_dln import BalancedManifold, FactorVector
    >>> manifold = BalancedManifold((3, 4, 2), rank=2, rng=0)
    >>> vector = manifold.random_tangent_vector(manifold.random_point())
    >>> isinstance(vector, FactorVector), [v.shape for v in vector]
    (True, [(4, 3), (2, 4)])
    """


class FactorPoint(tuple):
    """A balanced network: its layers, input side first. Never change its arrays.

    The manifold keeps singular vectors and the last logarithm with it.

    Examples
    --------
    >>> from manifolds.pymanopt_dln import BalancedManifold, FactorPoint
    >>> point = BalancedManifold((3, 4, 2), rank=2, rng=0).random_point()
    >>> isinstance(point, FactorPoint), [w.shape for w in point]
    (True, [(4, 3), (2, 4)])
    """

    network: Any = None
    last_log: Any = None
