"""The balanced networks of rank r with the Frobenius metric of their layers, for pymanopt."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pymanopt.manifolds.manifold import Manifold
from torch import Tensor

from dln_geometry.geometry import points
from dln_geometry.geometry.network_geodesics import balanced_geodesic, balanced_logarithm
from dln_geometry.geometry.points import Network
from dln_geometry.support import as_flag, as_rank, as_width_sequence
from manifolds._convert import as_random, to_numpy, to_torch
from manifolds._pymanopt import shape
from manifolds._pymanopt.vectors import FactorPoint, FactorVector


class BalancedManifold(Manifold):
    r"""Balanced networks ``(W_1, ..., W_N)`` of rank r, ``W_{p+1}^T W_{p+1} = W_p W_p^T``.

    A submanifold of the space of all layers with their Frobenius metric; the product of the layers
    is a Riemannian submersion onto the matrices of rank r with the metric of depth N. A point is a
    tuple of layers, input side first, a tangent vector a list of matrices of their shapes; both are
    bare arrays for one layer. A cost is any function of the layers, ``cost(w1, w2, w3)``; for one
    of their product the gradient is the horizontal lift of that on `EndToEndManifold`.

    Parameters
    ----------
    widths : sequence of int
        ``(d_0, ..., d_N)``, the input width first.
    rank : int, optional
        The smallest width by default.
    exact_log : bool
        As in `EndToEndManifold`, with the chord in place of the chart: a hundred times faster.
    rng : numpy.random.Generator or int, optional
        As in `EndToEndManifold`.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088 (the submersion).

    Examples
    --------
    >>> from manifolds.pymanopt_dln import BalancedManifold
    >>> BalancedManifold((3, 3, 3)).dim
    12
    """

    def __init__(
        self,
        widths: Sequence[int],
        rank: int | None = None,
        *,
        exact_log: bool = True,
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self._widths = as_width_sequence(widths)
        smallest = min(self._widths)
        self._r = smallest if rank is None else as_rank(rank, smallest, "the smallest width")
        self._layers = len(self._widths) - 1
        self._exact_log = as_flag(exact_log, "exact_log")
        self._rng = as_random(rng)
        shown = ", ".join(map(str, self._widths))
        name = f"Balanced networks of widths ({shown}) and rank {self._r}"
        dimension = points.balanced_dimension(self._widths, self._r)
        super().__init__(name, dimension, point_layout=self._layers)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths ``(d_0, ..., d_N)``."""
        return self._widths

    @property
    def rank(self) -> int:
        """The rank r of every layer."""
        return self._r

    @property
    def typical_dist(self) -> float:
        """As of `EndToEndManifold`: a norm of the layers, ``sqrt(N r) s^{1/N}``."""
        s = max(self.dim / math.sqrt(self._r), 1.0)
        return math.sqrt(self._layers * self._r) * s ** (1.0 / self._layers)

    def product(self, point: Any) -> np.ndarray:
        """Return the end-to-end matrix of a point, shape (d_N, d_0)."""
        return to_numpy(points.product(self._open(point)))

    def inner_product(self, point: Any, tangent_vector_a: Any, tangent_vector_b: Any) -> float:
        pairs = zip(self._list(tangent_vector_a), self._list(tangent_vector_b), strict=True)
        return float(sum(np.vdot(a, b) for a, b in pairs))

    def norm(self, point: Any, tangent_vector: Any) -> float:
        return math.sqrt(self.inner_product(point, tangent_vector, tangent_vector))

    def projection(self, point: Any, vector: Any) -> Any:
        """Return the tangent vector nearest to one matrix for every layer."""
        frames, lam = self._network(point).balanced_parts()
        return self._close(shape.tangent_layers(frames, lam, self._open(vector)))

    def to_tangent_space(self, point: Any, vector: Any) -> Any:
        return self.projection(point, vector)

    def euclidean_to_riemannian_gradient(self, point: Any, euclidean_gradient: Any) -> Any:
        """Project the derivatives by the layers on the tangent space."""
        return self.projection(point, euclidean_gradient)

    def euclidean_to_riemannian_hessian(
        self, point: Any, euclidean_gradient: Any, euclidean_hessian: Any, tangent_vector: Any
    ) -> Any:
        """Project the Hessian by the layers, and subtract the Weingarten map of the gradient.

        This is the tangent part of the derivative along the tangent vector of the normal part of
        the gradient, extended to a field of normal vectors.
        """
        frames, lam = self._network(point).balanced_parts()
        gradient = self._open(euclidean_gradient)
        along = shape.tangent_layers(frames, lam, gradient)
        normal = [g - t for g, t in zip(gradient, along, strict=True)]
        turn = shape.normal_derivative(frames, lam, normal, self._open(tangent_vector))
        moved = [h - t for h, t in zip(self._open(euclidean_hessian), turn, strict=True)]
        return self._close(shape.tangent_layers(frames, lam, moved))

    def retraction(self, point: Any, tangent_vector: Any) -> Any:
        """Add, and return the nearest balanced factors of the product: of second order."""
        pairs = zip(self._open(point), self._open(tangent_vector), strict=True)
        return self._point(shape.nearest_balanced([w + v for w, v in pairs], self._r))

    def transport(self, point_a: Any, point_b: Any, tangent_vector_a: Any) -> Any:
        """Project on the tangent space at b: no vector becomes longer."""
        return self.projection(point_b, tangent_vector_a)

    def exp(self, point: Any, tangent_vector: Any) -> Any:
        """Integrate a geodesic; ArithmeticError if it meets networks of lower rank."""
        network = self._network(point)
        if not any(np.any(part) for part in self._list(tangent_vector)):
            return point
        return self._point(balanced_geodesic(network, self._open(tangent_vector)))

    def log(self, point_a: Any, point_b: Any) -> Any:
        """Return the velocity at a of a geodesic that is at b at time 1, found by shooting.

        It is the shortest one for points not far apart. With ``exact_log=False``, project the chord
        from a to b on the tangent space at a: the inverse of the orthographic retraction, and the
        logarithm to second order.

        A ValueError says that the points lie on different components, an ArithmeticError that no
        geodesic was found.
        """
        start = self._list(point_a)
        # Optimizers ask for the distance and the logarithm: a point keeps the last logarithm. Only
        # the arrays of this manifold's own points do not change.
        kept = isinstance(point_a, FactorPoint) and isinstance(point_b, FactorPoint)
        if kept and point_b.last_log is not None:
            exact, refs, z = point_b.last_log
            same = all(ref() is w for ref, w in zip(refs, start, strict=True))
            if same and exact == self._exact_log:
                return z * 1.0
        if self._exact_log:
            z = self._close(balanced_logarithm(self._network(point_a), self._network(point_b)))
        else:
            z = self.projection(point_a, self._chord(point_a, point_b))
        if kept:
            point_b.last_log = self._exact_log, tuple(weakref.ref(w) for w in start), z
        return z * 1.0

    def dist(self, point_a: Any, point_b: Any) -> float:
        """Return the length of the geodesic of `log`; of the chord with ``exact_log=False``."""
        step = self.log if self._exact_log else self._chord
        return self.norm(point_a, step(point_a, point_b))

    def pair_mean(self, point_a: Any, point_b: Any) -> Any:
        """Return the middle of the geodesic of `log`, or a balanced point next to the chord's."""
        if self._exact_log:
            return self.exp(point_a, self.log(point_a, point_b) * 0.5)
        pairs = zip(self._open(point_a), self._open(point_b), strict=True)
        return self._point(shape.nearest_balanced([0.5 * (a + b) for a, b in pairs], self._r))

    def random_point(self) -> Any:
        """Return a network with Haar frames and singular values of its product in [1/2, 3/2].

        All lie on one component: square frames have one orientation.
        """
        generator = torch.Generator().manual_seed(int(self._rng.integers(2**62)))
        spectrum = self._rng.uniform(0.5, 1.5, self._r)
        layers = points.random_balanced(
            self._widths, rank=self._r, spectrum=spectrum, generator=generator
        )
        return self._point(shape.on_first_component(layers))

    def random_tangent_vector(self, point: Any) -> Any:
        """Return a tangent vector of length 1, uniform in direction."""
        draw = self._rng.standard_normal
        noise = [draw(w.shape).astype(w.dtype, copy=False) for w in self._list(point)]
        z = self.projection(point, self._close(noise))
        return z / self.norm(point, z)

    def zero_vector(self, point: Any) -> Any:
        return self._close([np.zeros_like(w) for w in self._list(point)])

    def _list(self, x: Any) -> Sequence[np.ndarray]:
        """Return the matrices of a point or vector, one a layer, and check their shapes."""
        parts = [x] if self._layers == 1 and not isinstance(x, tuple | list) else x
        shapes = [tuple(np.shape(w)) for w in parts]
        if shapes != (expected := [(m, n) for n, m in pairwise(self._widths)]):
            raise ValueError(f"the layers must have the shapes {expected}, got {shapes}")
        return parts

    def _chord(self, point_a: Any, point_b: Any) -> Any:
        pairs = zip(self._list(point_b), self._list(point_a), strict=True)
        return self._close([b - a for b, a in pairs])

    def _open(self, x: Any) -> list[Tensor]:
        return [to_torch(w) for w in self._list(x)]

    def _close(self, parts: Sequence[Any], kind: type = FactorVector) -> Any:
        arrays = [to_numpy(part) for part in parts]
        return arrays[0] if self._layers == 1 else kind(arrays)

    def _point(self, layers: Sequence[Tensor]) -> Any:
        return self._close(layers, FactorPoint)

    def _network(self, point: Any) -> Network:
        """Return the layers with their frames; a point keeps them."""
        network: Network | None = getattr(point, "network", None)
        if network is None:
            network = points.balanced_network(self._open(point))
            if (rank := network.spectrum.shape[-1]) != self._r:
                raise ValueError(f"point must have rank {self._r}, got rank {rank}")
            if isinstance(point, FactorPoint):
                point.network = network
        return network
