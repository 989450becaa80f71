"""Reflections of parameters, given by isometries, and whether a loss is symmetric under them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from dln_geometry.learning.functional import as_loss, as_value
from dln_geometry.learning.mirror.isometry import Term, named
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.support import as_float_tensor, as_generator, as_positive, normal

# The name under which a flat vector of parameters is the only tensor.
FLAT = ""
# Up to this many columns O^T O is multiplied out; above, O^T O v is compared with a random v.
_LARGEST_GRAM = 256


class NotFiniteError(ValueError):
    """A loss, or a derivative of it, is not a number at some point."""


class Reflection:
    """The reflection ``q -> (I - 2 O O^T) q``; each term has its own columns of O. See `Mirror`."""

    def __init__(self, terms: Iterable[Term], label: str) -> None:
        self.terms: tuple[Term, ...] = tuple(terms)
        self.label = label
        self.dimension = sum(term[0].dimension for term in self.terms)
        self.shapes = {part.name: part.shape for term in self.terms for part in term}
        self.is_flat = FLAT in self.shapes
        self.names: tuple[str, ...] = () if self.is_flat else tuple(self.shapes)
        self._check_isometry()

    def coordinates(self, q: Any) -> Tensor:
        """Return ``O^T q``, shape (..., k), of a dict of tensors or a vector q, shape (..., p)."""
        return self.pull(self._tensors(q))

    def embed(self, c: Any) -> Any:
        """Return ``O c``, c of shape (..., k): a vector, or a dict of the tensors touched."""
        c = as_float_tensor(c, "c")
        if c.ndim == 0 or c.shape[-1] != self.dimension:
            raise ValueError(f"c must have shape (..., {self.dimension}), got {tuple(c.shape)}")
        pushed = self.push(c)
        return pushed[FLAT] if self.is_flat else pushed

    def reflect(self, q: Any) -> Any:
        """Return ``(I - 2 O O^T) q``, of the same kind as q (see `coordinates`)."""
        return self.shift(q, -2.0 * self.coordinates(q))

    def project(self, q: Any) -> Any:
        """Return ``(I - O O^T) q``, the nearest symmetric point (see `coordinates`)."""
        return self.shift(q, -self.coordinates(q))

    def defect(self, q: Any) -> Tensor:
        """Return ``(|O^T q| / |q|) sqrt(p / k)``: 0 if q is symmetric, about 1 at a random point.

        p counts the entries of the tensors touched; q is as in `coordinates`.
        """
        tensors = self._tensors(q)
        size = sum(math.prod(shape) for shape in self.shapes.values())
        parts = []
        for name, x in tensors.items():
            batch = x.shape[: x.ndim - len(self.shapes[name])]
            parts.append(x.reshape(*batch, -1).square().sum(-1))
        squares, scale = torch.stack(parts).sum(0), math.sqrt(size / self.dimension)
        norm = torch.linalg.vector_norm(self.pull(tensors), dim=-1)
        return torch.where(squares > 0, norm * scale / squares.sqrt(), 0.0)

    def residual(
        self,
        loss: Callable[[Any], Tensor],
        params: Any,
        *,
        generator: torch.Generator | int | None = None,
    ) -> float:
        """Return the relative violation of the symmetry by a loss: a rounding error if it has it.

        The larger of ``|f(R q) - f(q)| / |f(q)|`` and ``|grad f(R q) - R grad f(q)| / |grad f|``
        with the reflection R, at `params` plus a random vector along O of their own size: on the
        symmetric set itself f(R q) = f(q) holds for every loss. ``loss(params)`` is a scalar
        tensor, differentiable; a fresh `generator` is made if none is given.
        """
        tensors = self._tensors(params)
        probe = next(iter(tensors.values()))
        scale = _euclidean_norm(tensors) / math.sqrt(sum(x.numel() for x in tensors.values()))
        source = as_generator(generator, probe.device)
        step = normal((self.dimension,), source, probe.dtype, probe.device)
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
        generator: torch.Generator | int | None = None,
    ) -> bool:
        """Tell whether `residual` is at most `rtol`, by default the root of the precision."""
        allowed = self._allowed(params) if rtol is None else as_positive(rtol, "rtol", zero=True)
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
        """Return the reflection in the precision and on the device of `x`: it need not convert."""
        twin = copy.copy(self)
        twin.terms = tuple(tuple(part.like(x) for part in term) for term in self.terms)
        return twin

    def pull(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return ``O^T q`` without checking the tensors."""
        pulled = [[part.pull(tensors[part.name]) for part in term] for term in self.terms]
        return torch.cat([x[0] if len(x) == 1 else torch.stack(x).sum(0) for x in pulled], -1)

    def push(self, c: Tensor) -> dict[str, Tensor]:
        """Return ``O c``, by the names of the tensors, without checking the coordinates."""
        out: dict[str, Tensor] = {}
        sizes = [term[0].dimension for term in self.terms]
        for term, piece in zip(self.terms, c.split(sizes, -1), strict=True):
            for part in term:
                pushed = part.push(piece)
                out[part.name] = out[part.name] + pushed if part.name in out else pushed
        return out

    def __repr__(self) -> str:
        names = "" if self.is_flat else f", names={self.names}"
        return f"Mirror({self.label!r}, dimension={self.dimension}{names})"

    def shift(self, q: Any, c: Tensor) -> Any:
        """Return ``q + O c``, of the same kind as q, without checking either."""
        step = self.push(c)
        if not isinstance(q, Mapping):
            return q + step[FLAT]
        if self.is_flat:
            pieces = step[FLAT].split([x.numel() for x in q.values()])
            step = dict(zip(q, pieces, strict=True))
        return {k: x + step[k].reshape(x.shape) if k in step else x for k, x in q.items()}

    def _tensors(self, q: Any) -> dict[str, Tensor]:
        """Return the tensors of a point that the mirror touches, checked and in their shapes."""
        if isinstance(q, Mapping):
            tensors = {name: named(q, name) for name in (q if self.is_flat else self.names)}
            if not tensors:
                raise ValueError("q must hold at least one tensor, got none")
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
        like = frames[0] if frames else torch.empty(0, dtype=torch.float64, device="cpu")
        k = self.dimension
        if k <= _LARGEST_GRAM:
            probe = torch.eye(k, dtype=like.dtype, device=like.device)
        else:
            probe = normal((k,), as_generator(k, like.device), like.dtype, like.device)
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


def value_and_gradient(loss: Callable[[Any], Tensor], q: Any) -> tuple[float, Any]:
    """Return a scalar loss and its gradient, a tensor or dict like q; unused tensors get zeros."""
    named = isinstance(q, Mapping)
    leaves = [x.detach().requires_grad_() for x in (q.values() if named else [q])]
    with torch.enable_grad():
        value = as_scalar(as_loss(loss)(dict(zip(q, leaves, strict=True)) if named else leaves[0]))
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    if all(g is None for g in gradients):
        raise ValueError("loss must depend on the parameters, got one that does not")
    full = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return float(value.detach()), dict(zip(q, full, strict=True)) if named else full[0]


def as_scalar(value: Any) -> Tensor:
    """Return the value of a loss: a finite, differentiable, real scalar tensor."""
    value = as_value(value)
    if not bool(torch.isfinite(value.detach())):
        raise NotFiniteError(f"loss must be finite, got {float(value.detach())}")
    if not value.requires_grad:
        raise ValueError("loss must depend on the parameters, and differentiably; got a constant")
    return value
