"""Groups of parameters that one symmetry moves together, and the motion itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.functional import Tensors
from dln_geometry.learning.symmetry import Symmetry, check_names
from dln_geometry.support import (
    as_choice,
    as_generator,
    as_positive,
    matrix_exponential,
    shown,
)

Kind = Literal[
    "scale", "translation", "rescale", "gauge", "permutation", "rotation", "commutant", "shift"
]
Element = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class SymmetricGroup:
    r"""Parameters that a family of symmetries moves together.

    With the slices ``x_u`` of unit u, shape (block, rest), the family is, by its kind,

    - ``"scale"``: ``x_u -> e^{s_u} x_u`` on `first`;
    - ``"translation"``: ``x_u -> x_u + 1 a_u^T`` on `first`, one a_u for each part and unit;
    - ``"rescale"``: ``x_u -> e^{s_u} x_u`` on `first` and ``e^{-s_u} x_u`` on `second`;
    - ``"gauge"``: ``x_u -> h_u x_u`` on `first` and ``h_u^{-T} x_u`` on `second`, with any
      invertible ``h_u``, shape (block, block);
    - ``"permutation"``: the slices of all parts of `first` are permuted in the same way.

    Kinds that a `Family` has beside these are ``"rotation"``, ``"commutant"`` and ``"shift"``.

    Parameters
    ----------
    kind : str
        One of these.
    first, second : tuple of Part
        The parts that move; all have the same number of units, in a gauge the same block.
    through : tuple of str
        Names of the modules or functions between the parts.
    epsilon : float
        Largest epsilon of the normalisations that make a scale symmetry: the loss changes by
        about this number over the variance.
    reading : tuple of Part
        Of a permutation, those parts that read the units; the others make them.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> hidden = [learning.Part(name, axis=0, units=3) for name in ("0.weight", "0.bias")]
    >>> readers = (learning.Part("2.weight", axis=1, units=3),)
    >>> group = learning.SymmetricGroup("rescale", tuple(hidden), readers)
    >>> group.units, group.names
    (3, ('0.weight', '0.bias', '2.weight'))
    """

    kind: Kind
    first: tuple[Part, ...]
    second: tuple[Part, ...] = ()
    through: tuple[str, ...] = ()
    epsilon: float = 0.0
    reading: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        as_choice(self.kind, get_args(Kind), "kind")
        as_positive(self.epsilon, "epsilon", zero=True)
        check_names(self.through, "through")
        for field in ("first", "second", "reading"):
            parts = getattr(self, field)
            if not isinstance(parts, tuple) or not all(isinstance(p, Part) for p in parts):
                raise TypeError(f"{field} must be a tuple of Part, got {shown(parts)}")
        if not self.first:
            raise ValueError("first must hold at least one part, got none")
        two = self.kind in ("rescale", "gauge", "commutant")
        if two != bool(self.second):
            found = f"in a group of kind {self.kind!r}, got {self.second!r}"
            raise ValueError(f"second must {'hold parts' if two else 'be empty'} {found}")
        if self.kind != "shift" and len(units := {p.units for p in self.parts}) > 1:
            raise ValueError(f"parts must have one number of units, got {sorted(units)}")
        if self.kind == "gauge" and len(blocks := {p.block for p in self.parts}) > 1:
            raise ValueError(f"parts of a gauge must have one block, got {sorted(blocks)}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, those of `first` before those of `second`."""
        return self.first + self.second

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, each once."""
        return tuple(dict.fromkeys(p.name for p in self.parts))

    @property
    def units(self) -> int:
        """Number of units."""
        return self.first[0].units

    @property
    def is_plain(self) -> bool:
        """Whether it is one of the five kinds above, on the parameters as they are."""
        simple = all(type(p) is Part and p.inner == p.span == 1 for p in self.parts)
        return simple and self.kind not in ("rotation", "commutant", "shift")

    def total(self) -> SymmetricGroup:
        """Return a scale or rescale with one factor for all units; other kinds as they are."""
        return with_parts(self, Part.merged) if self.kind in ("scale", "rescale") else self

    def diagonal(self) -> SymmetricGroup:
        """Return the rescalings in a gauge, one for every index; other kinds as they are."""
        divided = with_parts(self, Part.divided)
        return replace(divided, kind="rescale") if self.kind == "gauge" else self

    def check(self, params: Tensors) -> None:
        """Refuse parameters that do not have the parts of this group."""
        for part in self.parts:
            part.check(params)

    def random_element(
        self, params: Tensors, generator: torch.Generator | int | None = None
    ) -> Element:
        """Draw an element for `act`, with the shapes, dtype and device of the parameters."""
        self.check(params)
        like = params[self.first[0].name]
        source = as_generator(generator, like.device)

        def normal(*shape: int) -> Tensor:
            options: Any = {"generator": source, "device": source.device}
            return torch.randn(shape, dtype=torch.float64, **options).to(like)

        if self.kind == "translation":
            return tuple(normal(*self._shift_shape(params, p)) for p in self.first)
        if self.kind == "gauge":
            d = self.first[0].block
            return normal(self.units, d, d) / d**0.5
        if self.kind == "permutation":
            return torch.randperm(self.units, generator=source, device=source.device).to(
                like.device
            )
        return normal(self.units)

    def act(self, params: Tensors, element: Element) -> dict[str, Tensor]:
        """Return the parameters moved by an element of the group; nothing is changed in place.

        The element holds the logarithms of the factors, shape (units,); for a translation one
        tensor of shape (units, rest) for every part; for a gauge the logarithm of h, shape (units,
        block, block); for a permutation the new order of the units, shape (units,).
        """
        self.check(params)
        return self._acted(params, self._checked(element, params))

    def _checked(self, element: Any, params: Tensors) -> Any:
        """Return an element; refuse those of another shape or kind."""
        if self.kind == "translation":
            shapes: list[tuple[int, ...]] = [self._shift_shape(params, p) for p in self.first]
            given = list(element) if isinstance(element, tuple | list) else []
        else:
            shapes = [(self.units,) + (self.first[0].block,) * (2 * (self.kind == "gauge"))]
            given = [element]
        if len(given) != len(shapes) or not all(isinstance(a, Tensor) for a in given):
            what = f"{len(shapes)} tensors" if self.kind == "translation" else "a torch.Tensor"
            raise TypeError(f"element must be {what}, got {shown(element)}")
        for a, shape in zip(given, shapes, strict=True):
            if tuple(a.shape) != shape:
                raise ValueError(f"element must have shape {shape}, got {tuple(a.shape)}")
            if a.is_floating_point() == (self.kind == "permutation"):
                kind = "integers" if self.kind == "permutation" else "floating"
                raise TypeError(f"element must be {kind}, got {a.dtype}")
            if self.kind == "permutation" and sorted(a.tolist()) != list(range(self.units)):
                raise ValueError(f"element must hold each unit once, got {shown(a)}")
        return element

    def _acted(self, params: Tensors, element: Any) -> dict[str, Tensor]:
        moved = dict(params)
        for index, part in enumerate(self.parts):
            q = moved[part.name]
            moved[part.name] = part.replaced(q, self._moved(part.slices(q), element, index))
        return moved

    def symmetry(self, params: Tensors) -> Symmetry:
        """Return the family as a `Symmetry` with one charge for each direction; no permutation.

        Its parameter s has the shape of the elements (see `act`); for a translation it is one
        vector of all shifts, part by part. `params` gives the shapes.
        """
        self.check(params)
        if self.kind == "permutation":
            raise ValueError("kind must be continuous to have generators, got 'permutation'")

        def moved(at: Tensors, s: Tensor) -> dict[str, Tensor]:
            after = self._acted(at, self._shifts(at, s) if self.kind == "translation" else s)
            return {name: after[name] for name in self.names}

        shape: tuple[int, ...] = (self.units,)
        if self.kind == "translation":
            shape = (sum(math.prod(self._shift_shape(params, p)) for p in self.first),)
        elif self.kind == "gauge":
            shape += (self.first[0].block,) * 2
        return Symmetry(moved, shape=shape, degree=0 if self.kind == "translation" else 1)

    def _shift_shape(self, params: Tensors, part: Part) -> tuple[int, int]:
        return part.units, part.slices(params[part.name]).shape[-1]

    def _shifts(self, params: Tensors, s: Tensor) -> tuple[Tensor, ...]:
        """Split a vector into the shifts of the parts."""
        shapes = [self._shift_shape(params, p) for p in self.first]
        pieces = s.split([math.prod(shape) for shape in shapes])
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))

    def _moved(self, x: Tensor, element: Any, index: int) -> Tensor:
        """Let an element act on the slices of the part of this index."""
        second = index >= len(self.first)
        if self.kind == "translation":
            return x + element[index].unsqueeze(-2)
        if self.kind == "permutation":
            return x[element]
        if self.kind == "gauge":
            return matrix_exponential(-element.mT if second else element) @ x
        return x * torch.exp(-element if second else element)[:, None, None]


def with_parts(group: SymmetricGroup, change: Callable[[Part], Part]) -> SymmetricGroup:
    """Return the group with every part changed."""
    sides = {s: tuple(map(change, getattr(group, s))) for s in ("first", "second", "reading")}
    return replace(group, **sides)
