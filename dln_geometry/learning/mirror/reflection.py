"""Reflections of parameters, given by isometries, and whether a loss has them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from dln_geometry.learning.mirror.evaluation import value_and_gradient
from dln_geometry.learning.mirror.isometry import Term, named, term_dimension
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.support import as_float_tensor, as_generator, normal

# The name under which a flat vector of parameters is the only tensor.
FLAT = ""
# Up to this many columns O^T O is multiplied out; above, O^T O v is compared with a random v.
_LARGEST_GRAM = 256


class Reflection:
    """The reflection ``q -> (I - 2 O O^T) q`` of parameters; see `Mirror`, its only child.

    The isometry O is the sum of its terms, which have coordinates of their own; the pieces of a
    term share them. Columns that are not orthonormal are refused.
    """

    def __init__(self, terms: Iterable[Term], label: str) -> None:
        self.terms: tuple[Term, ...] = tuple(terms)
        self.label = label
        self.dimension = sum(term_dimension(term) for term in self.terms)
        # A dict, for the order of the names.
        shapes = {part.name: part.shape for term in self.terms for part in term}
        self.is_flat = FLAT in shapes
        self.names: tuple[str, ...] = () if self.is_flat else tuple(shapes)
        self.shapes = shapes
        self._check_isometry()

    def coordinates(self, q: Any) -> Tensor:
        """Return ``O^T q``, shape (..., k): zero where q is symmetric.

        The point q is a mapping of names to tensors, or a vector of shape (..., p).
        """
        return self.pull(self._tensors(q))

    def embed(self, c: Any) -> Any:
        """Return ``O c`` for coordinates c of shape (..., k).

        It is a flat vector, or a dict of the tensors that the mirror touches.
        """
        c = as_float_tensor(c, "c")
        if c.ndim == 0 or c.shape[-1] != self.dimension:
            raise ValueError(f"c must have shape (..., {self.dimension}), got {tuple(c.shape)}")
        pushed = self.push(c)
        return pushed[FLAT] if self.is_flat else pushed

    def reflect(self, q: Any) -> Any:
        """Return ``(I - 2 O O^T) q``, of the same kind as q (see `coordinates`)."""
        return self._subtract(q, 2.0)

    def project(self, q: Any) -> Any:
        """Return ``(I - O O^T) q``, the nearest symmetric point (see `coordinates`)."""
        return self._subtract(q, 1.0)

    def defect(self, q: Any) -> Tensor:
        """Return how far q is from symmetric: 0 if it is, about 1 for a random point.

        The root mean square of the coordinates ``O^T q`` over that of the tensors touched,
        ``(|O^T q| / |q|) sqrt(p / k)``, for q as in `coordinates`.
        """
        tensors = self._tensors(q)
        size = sum(math.prod(shape) for shape in self.shapes.values())
        parts = []
        for name, x in tensors.items():
            batch = x.shape[: x.ndim - len(self.shapes[name])]
            parts.append(x.reshape(*batch, -1).square().sum(-1))
        squares = torch.stack(parts).sum(0)
        norm = torch.linalg.vector_norm(self.pull(tensors), dim=-1)
        ratio = norm * math.sqrt(size / self.dimension) / squares.sqrt()
        return torch.where(squares > 0, ratio, 0.0)

    def residual(
        self,
        loss: Callable[[Any], Tensor],
        params: Any,
        *,
        generator: torch.Generator | None = None,
    ) -> float:
        """Return the relative violation of the symmetry by a loss: a rounding error if it has it.

        The larger of ``|f(R q) - f(q)| / |f(q)|`` and ``|grad f(R q) - R grad f(q)| / |grad f|``
        with the reflection R, at `params` plus a random vector along O of their own size: on the
        symmetric set itself f(R q) = f(q) holds for every loss.

        Parameters
        ----------
        loss : callable
            ``loss(params)``, a scalar tensor, differentiable.
        params : Tensor or mapping of str to Tensor
            All parameters.
        generator : torch.Generator, optional
            Source of randomness; a fresh one if not given.
        """
        tensors = self._tensors(params)
        probe = next(iter(tensors.values()))
        scale = _euclidean_norm(tensors) / math.sqrt(sum(x.numel() for x in tensors.values()))
        generator = as_generator(generator, probe.device)
        step = normal((self.dimension,), generator, probe.dtype, probe.device)
        moved = self.shift(params, (scale or 1.0) * step)
        value, gradient = value_and_gradient(loss, moved)
        mirrored_value, mirrored_gradient = value_and_gradient(loss, self.reflect(moved))
        expected = self.reflect(gradient)
        size = _euclidean_norm(expected)
        off = _euclidean_norm(_difference(mirrored_gradient, expected))
        larger = max(abs(value), abs(mirrored_value))
        by_value = abs(mirrored_value - value) / larger if larger > 0 else 0.0
        # A gradient of zero has no relative error: the values decide.
        return max(by_value, off / size) if size > 0 else by_value

    def is_symmetric(
        self,
        loss: Callable[[Any], Tensor],
        params: Any,
        *,
        rtol: float | None = None,
        generator: torch.Generator | None = None,
    ) -> bool:
        """Tell whether `residual` is at most `rtol`, by default the root of the precision."""
        allowed = self._allowed(params) if rtol is None else rtol
        return self.residual(loss, params, generator=generator) <= allowed

    def require(self, loss: Callable[[Any], Tensor], params: Any) -> None:
        """Raise a `SymmetryError`, with the residual, if a loss does not have the symmetry."""
        residual = self.residual(loss, params)
        if not residual <= self._allowed(params):
            raise SymmetryError(
                f"loss must have the mirror symmetry ({self.label}), got the relative residual "
                f"{residual:.3e}",
                residual,
            )

    def _allowed(self, params: Any) -> float:
        probe = next(iter(self._tensors(params).values()))
        return math.sqrt(torch.finfo(probe.dtype).eps)

    def like(self, x: Tensor) -> Self:
        """Return the reflection on the device and in the precision of `x`.

        Every method converts where it has to; a converted reflection saves the repetition.
        """
        twin = copy.copy(self)
        twin.terms = tuple(tuple(part.like(x) for part in term) for term in self.terms)
        return twin

    def pull(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``O^T q`` without checking the tensors."""
        found = []
        for term in self.terms:
            pulled = [part.pull(tensors[part.name]) for part in term]
            found.append(pulled[0] if len(pulled) == 1 else torch.stack(pulled).sum(0))
        return torch.cat(found, -1)

    def push(self, c: Tensor) -> dict[str, Tensor]:
        """Return ``O c``, by the names of the tensors, without checking the coordinates."""
        out: dict[str, Tensor] = {}
        sizes = [term_dimension(term) for term in self.terms]
        for term, piece in zip(self.terms, c.split(sizes, -1), strict=True):
            for part in term:
                pushed = part.push(piece)
                out[part.name] = out[part.name] + pushed if part.name in out else pushed
        return out

    def __repr__(self) -> str:
        names = "" if self.is_flat else f", names={self.names}"
        return f"Mirror({self.label!r}, dimension={self.dimension}{names})"

    def _subtract(self, q: Any, factor: float) -> Any:
        return self.shift(q, -factor * self.coordinates(q))

    def shift(self, q: Any, c: Tensor) -> Any:
        """Return ``q + O c``, of the same kind as q, without checking either."""
        step = self.push(c)
        if isinstance(q, Mapping) and self.is_flat:
            pieces = step[FLAT].split([x.numel() for x in q.values()])
            step = dict(zip(q, pieces, strict=True))
        if isinstance(q, Mapping):
            return {
                name: x + step[name].reshape(x.shape) if name in step else x
                for name, x in q.items()
            }
        return q + step[FLAT]

    def _tensors(self, q: Any) -> dict[str, Tensor]:
        """Return the tensors of a point that the mirror touches, checked and in their shapes."""
        if isinstance(q, Mapping):
            names = tuple(q) if self.is_flat else self.names
            tensors = {name: named(q, name) for name in names}
            if self.is_flat:
                tensors = {FLAT: torch.cat([x.reshape(-1) for x in tensors.values()])}
        elif self.is_flat:
            tensors = {FLAT: named({"q": q}, "q")}
        else:
            raise TypeError(
                f"q must be a mapping with the tensors {', '.join(map(repr, self.names))}, "
                f"got {type(q).__name__}"
            )
        return {name: self._fit(x, name) for name, x in tensors.items()}

    def _fit(self, x: Tensor, name: str) -> Tensor:
        shape = self.shapes[name]
        what = f"q[{name!r}]" if name else "q"
        if tuple(x.shape[x.ndim - len(shape) :]) != shape:
            if len(shape) != 1 or x.numel() != shape[0]:
                raise ValueError(f"{what} must have shape {shape}, got {tuple(x.shape)}")
            x = x.reshape(shape)
        if not bool(torch.isfinite(x.detach()).all()):
            raise ValueError(f"{what} must be finite, got NaN or infinite entries")
        return x

    def _check_isometry(self) -> None:
        """Refuse columns that are not orthonormal."""
        frames = [part.dense for term in self.terms for part in term if part.dense is not None]
        like = frames[0] if frames else torch.empty(0, dtype=torch.float64)
        k = self.dimension
        if k <= _LARGEST_GRAM:
            probe = torch.eye(k, dtype=like.dtype, device=like.device)
        else:
            generator = torch.Generator().manual_seed(k)
            probe = torch.randn(k, generator=generator, dtype=like.dtype).to(like.device)
        error = float((self.pull(self.push(probe)) - probe).abs().max())
        if not error <= math.sqrt(torch.finfo(like.dtype).eps):
            raise ValueError(
                f"o must have orthonormal columns, got an error of {error:.3e} in O^T O - I"
                + (" (the mirrors are not orthogonal to each other)" if not frames else "")
            )


def _euclidean_norm(q: Any) -> float:
    tensors = q.values() if isinstance(q, Mapping) else [q]
    return math.sqrt(sum(float(x.square().sum()) for x in tensors))


def _difference(a: Any, b: Any) -> Any:
    return {name: a[name] - b[name] for name in a} if isinstance(a, Mapping) else a - b
