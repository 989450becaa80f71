"""Groups that linear algebra finds: rotations, commutants, and shifts that compensate each other.

Some act only where gains are 1 and shifts 0, or in other coordinates: parameters are folded there,
moved, and folded back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.probing.families.folds import Chart, Fold, all_folded
from dln_geometry.learning.architecture.probing.families.terms import Term
from dln_geometry.learning.architecture.probing.families.unreached import Unreached
from dln_geometry.learning.functional import Tensors
from dln_geometry.learning.symmetry import Symmetry
from dln_geometry.support import as_generator, matrix_exponential

Projection = Callable[[Tensor], Tensor]


def _antisymmetric(m: Tensor) -> Tensor:
    return (m - m.mT) / 2


def _fixing_ones(m: Tensor) -> Tensor:
    m = m - m.mean(-1, keepdim=True)
    return _antisymmetric(m - m.mean(-2, keepdim=True))


def _complex(m: Tensor) -> Tensor:
    """Project on matrices that scale and turn each pair of entries i and i + d/2."""
    h = m.shape[-1] // 2
    a, b, c, d = m[..., :h, :h], m[..., :h, h:], m[..., h:, :h], m[..., h:, h:]
    scale, turn = ((a + d) / 2).diagonal(dim1=-2, dim2=-1), ((c - b) / 2).diagonal(dim1=-2, dim2=-1)
    scale, turn = torch.diag_embed(scale), torch.diag_embed(turn)
    return torch.cat([torch.cat([scale, -turn], -1), torch.cat([turn, scale], -1)], -2)


def _complex_neighbours(m: Tensor) -> Tensor:
    """Project on matrices that scale and turn each pair of entries 2i and 2i + 1."""
    d = m.shape[-1]
    order = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)]).to(m.device)
    back = order.argsort()
    return _complex(m[..., order, :][..., order])[..., back, :][..., back]


ALGEBRAS: dict[str, Projection] = {
    "linear": lambda m: m,
    "diagonal": lambda m: torch.diag_embed(m.diagonal(dim1=-2, dim2=-1)),
    "orthogonal": _antisymmetric,
    "orthogonal fixing ones": _fixing_ones,
    "rotary": _complex,
    "rotary neighbours": _complex_neighbours,
}


@dataclass(frozen=True)
class Family(SymmetricGroup):
    r"""A group that linear algebra found in the Jacobian of a module.

    Beside the kinds of `SymmetricGroup`, which it may have as well,

    - ``"rotation"``: ``x_u -> h x_u`` on all parts with an orthogonal h, which leaves the vector
      (1, ..., 1) in its place if `algebra` is ``"orthogonal fixing ones"``;
    - ``"commutant"``: a gauge with those h only whose logarithms are in `algebra`: ``"rotary"``
      and ``"rotary neighbours"`` scale and turn pairs of entries (i and i + d/2, or 2i and 2i + 1);
    - ``"shift"``: translations that compensate each other: each of `terms` adds its multiple of
      one vector t, or of its image under a weight; or with `basis`, combinations of constant
      vectors; or with `unreached`, what is no part of the gradients of a weight and its bias, of
      which the inputs span few dimensions.

    With `folds`, the group acts on parameters in which gains are 1 and shifts 0, or in other
    coordinates (weights in place of a norm and directions), and the folds are undone afterwards.
    With `powers`, one for each part, the logarithms of the factors of a part are so many times
    those of the element: ``"rescale"`` of an inner weight by ``e^s``, and of the outer one after a
    square by ``e^{-2 s}``.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6, elementwise_affine=False),
    ...                     nn.Linear(6, 3))
    >>> x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    >>> [group.kind for group in dln.learning.symmetries_of(net, x)]
    ['scale', 'permutation', 'rotation']
    """

    algebra: str = ""
    terms: tuple[Term, ...] = ()
    folds: tuple[Fold | Chart, ...] = ()
    powers: tuple[float, ...] = ()
    basis: tuple[dict[str, Tensor], ...] = field(default=(), compare=False, repr=False)
    projection: Projection | None = field(default=None, compare=False, repr=False)
    unreached: Unreached | None = field(default=None, compare=False, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether it is one of the five kinds of `SymmetricGroup`, on parameters as they are."""
        return super().is_plain and not self.folds and not self.powers

    @property
    def read(self) -> tuple[str, ...]:
        """Names of the parameters by which the terms of a shift map it."""
        found = [p for t in self.terms for p in (t.weight, t.beside, *t.kernel) if p is not None]
        return tuple(dict.fromkeys(p.name for p in found))

    def is_accurate(self, params: Tensors) -> bool:
        """Whether no gain or sum to divide by is so small that quotients are mostly rounding."""
        gains = [g.abs() for f in self.folds for g in f.divisors(params)]
        gains += [params[t.under].abs() for t in self.terms if t.under]
        sums = [params[t.over] for t in self.terms if t.over and not t.under]
        return all(float(g.min()) > 0.02 * float(g.max()) for g in gains) and all(
            abs(float(v.sum())) > float(v.norm()) for v in sums
        )

    def projected(self, m: Tensor) -> Tensor:
        """Return the part of a matrix in the algebra."""
        return (self.projection or ALGEBRAS[self.algebra])(m)

    def shifted(self, params: Tensors, t: Tensor) -> dict[str, Tensor]:
        """Return parameters moved by a shift t."""
        if self.unreached is not None:
            return self.unreached.moved(dict(params), t)
        moved = dict(params)
        if self.basis:
            for c, vectors in zip(t, self.basis, strict=True):
                for name, v in vectors.items():
                    moved[name] = moved[name] + c * v.to(moved[name])
            return moved
        # Images of weights that are shifted too are quadratic: half-way they are exact.
        half = dict(params)
        for term in self.terms if self.is_curved else ():
            if term.is_constant:
                term.add(half, t / 2)
        for term in sorted(self.terms, key=lambda term: bool(term.over)):
            if self.is_curved and term.weight is not None:
                own = {**half, term.part.name: moved[term.part.name]}
                term.add(own, t)
                moved[term.part.name] = own[term.part.name]
            else:
                term.add(moved, t)
        return moved

    @property
    def is_curved(self) -> bool:
        """Whether one shift moves a weight by which another of its terms maps it."""
        moved = {t.part.name for t in self.terms if t.is_constant and not t.matrix}
        return any(t.weight is not None and t.weight.name in moved for t in self.terms)

    def element_shape(self, params: Tensors) -> tuple[int, ...] | None:
        """Return the shape of the elements of the new kinds."""
        if self.unreached is not None:
            return (sum(p.slices(params[p.name]).numel() for p in self.unreached.parts),)
        if self.kind == "shift":
            return (len(self.basis) or self.terms[0].entries,)
        if self.kind in ("rotation", "commutant"):
            return (self.units, self.first[0].block, self.first[0].block)
        return None

    def random_element(
        self, params: Tensors, generator: torch.Generator | int | None = None
    ) -> Any:
        """Draw an element for `act`, with the shapes, dtype and device of the parameters."""
        shape = self.element_shape(params)
        if shape is None:
            return super().random_element(params, generator)
        self.check(params)
        like = params[self.names[0]]
        source = as_generator(generator, like.device)
        options: Any = {"generator": source, "device": source.device}
        element = torch.randn(shape, dtype=torch.float64, **options).to(like)
        return element if len(shape) == 1 else self.projected(element) / shape[-1] ** 0.5

    def _checked(self, element: Any, params: Tensors) -> Any:
        shape = self.element_shape(params)
        if shape is None:
            return super()._checked(element, params)
        if not isinstance(element, Tensor):
            raise TypeError(f"element must be a torch.Tensor, got {type(element).__name__}")
        if tuple(element.shape) != shape:
            raise ValueError(f"element must have shape {shape}, got {tuple(element.shape)}")
        return element

    def _acted(self, params: Tensors, element: Any) -> dict[str, Tensor]:
        moved, elements = all_folded(params, self.folds)
        moved = (
            self.shifted(moved, element) if self.kind == "shift" else self._plain(moved, element)
        )
        for fold, back in zip(reversed(self.folds), reversed(elements), strict=True):
            moved = fold.back(moved, back)
        touched = {*self.names, *(n for fold in self.folds for n in fold.names)}
        return {n: moved[n] if n in touched else p for n, p in params.items()}

    def _plain(self, params: dict[str, Tensor], element: Any) -> dict[str, Tensor]:
        if self.kind not in ("rotation", "commutant"):
            return super()._acted(params, element)
        m, moved = self.projected(element), dict(params)
        for index, part in enumerate(self.parts):
            x = moved[part.name]
            by = matrix_exponential(self._along(index, m))
            moved[part.name] = part.replaced(x, by @ part.slices(x))
        return moved

    def _along(self, index: int, m: Tensor) -> Tensor:
        """Return the generator that acts on the part of this index."""
        m = self.powers[index] * m if self.powers else m
        return -m.mT if index >= len(self.first) else m

    def _moved(self, x: Tensor, element: Any, index: int) -> Tensor:
        if self.powers and self.kind != "permutation":
            element = self.powers[index] * element
        return super()._moved(x, element, index)

    def symmetry(self, params: Tensors) -> Symmetry:
        """Return the family as a `Symmetry`; its charges are closed for plain kinds only."""
        shape = self.element_shape(params)
        if shape is None and not self.folds:
            return super().symmetry(params)
        self.check(params)
        if self.unreached is not None:
            # Gradients must be known before other derivatives are taken.
            self.unreached.reached(params)
            return _Linear(self, shape or (), None)
        if shape is not None and not self.folds:
            degree = 0 if all(t.is_constant for t in self.terms) else None
            return _Linear(self, shape, 1 if self.kind != "shift" else degree)
        names = {*self.names, *(n for fold in self.folds for n in fold.names)}

        def moved(at: Tensors, s: Tensor) -> dict[str, Tensor]:
            element = self._shifts(at, s) if self.kind == "translation" else s
            after = self._acted(at, element)
            return {name: after[name] for name in at if name in names}

        if shape is None:
            shape = super().symmetry(params).shape(params)
        return Symmetry(moved, shape=shape)

    def tangent(self, params: Tensors, s: Tensor) -> dict[str, Tensor]:
        """Return the generator in the direction s of a rotation, commutant or shift."""
        out = {n: torch.zeros_like(params[n]) for n in self.names}
        if self.kind != "shift":
            m = self.projected(s)
            for index, part in enumerate(self.parts):
                moved = self._along(index, m) @ part.slices(params[part.name])
                own = part.slices(out[part.name]) + moved
                out[part.name] = part.replaced(out[part.name], own)
            return out
        shifted = self.shifted({n: params[n] for n in params}, s)
        return {n: shifted[n] - params[n] for n in self.names}


class _Linear(Symmetry):
    """The symmetry of a group whose generators are linear in the parameters and known."""

    def __init__(self, family: Family, shape: tuple[int, ...], degree: int | None) -> None:
        super().__init__(self._move, shape=shape, degree=degree)
        self.family = family

    def __repr__(self) -> str:
        return f"{self.family.kind}({', '.join(self.family.names)})"

    def _move(self, params: Any, s: Tensor) -> dict[str, Tensor]:
        after = self.family._acted(params, s)
        return {name: after[name] for name in self.family.names}

    def generated(self, params: Any, s: Tensor) -> dict[str, Tensor]:
        terms = self.family.terms
        if self.family.is_curved or any(t.grows or (t.over and not t.under) for t in terms):
            return super().generated(params, s)
        return self.family.tangent(params, s)
