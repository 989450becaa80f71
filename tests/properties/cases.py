"""What a property is tried on: points and layers with vectors, scaled, turned, cut and rounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

import dln_geometry as dln

F64 = torch.float64


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


def turn(generator: torch.Generator, size: int, dtype: torch.dtype) -> Tensor:
    """Return an orthogonal or unitary matrix."""
    return torch.linalg.qr(normal(generator, size, size, dtype=dtype)).Q


def spectrum(
    generator: torch.Generator, batch: tuple[int, ...], r: int, decades: float, equal: bool
) -> Tensor:
    """Return descending values around 1, some of them equal if that is asked for."""
    s = 10 ** (decades * (torch.rand(*batch, r, generator=generator, dtype=F64) - 0.5))
    s = s.sort(-1, descending=True).values
    if equal and r > 1:
        s[..., 1] = s[..., 0]
    return s


@dataclass(frozen=True)
class OfPoint:
    """A point with two covectors and two tangent vectors."""

    point: dln.EndToEnd
    covectors: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]

    @property
    def condition(self) -> float:
        return float((self.point.s[..., 0] / self.point.s[..., -1]).max())

    @property
    def exponent(self) -> float:
        """The degree ``2 - 2/N`` of the cometric in X."""
        return float(self.point.depth.exponent)

    def moved(self, f: Callable[[Tensor], Tensor], s: Callable[[Tensor], Tensor]) -> Self:
        p = self.point
        parts = {"u": f(p.u), "s": s(p.s), "vh": f(p.vh)}
        point = dln.EndToEnd(*parts.values(), p.depth, p.normalized, check=False)
        return type(self)(point, tuple(map(f, self.covectors)), tuple(map(f, self.vectors)))

    def scaled(self, c: float) -> Self:
        """Scale the point and its tangent vectors; covectors stay."""
        point = self.point.replace(s=c * self.point.s, check=False)
        return type(self)(point, self.covectors, tuple(c * z for z in self.vectors))

    def turned(self, turns: tuple[Tensor, ...]) -> Self:
        b, a = turns
        p = self.point
        point = p.replace(u=a @ p.u, vh=p.vh @ b.mH, check=False)
        both = (tuple(a @ x @ b.mH for x in xs) for xs in (self.covectors, self.vectors))
        return type(self)(point, *both)

    def turns(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(turn(generator, d, self.point.dtype) for d in self.point.shape[::-1])

    def to(self, dtype: torch.dtype) -> Self:
        return self.moved(lambda x: x.to(dtype), lambda s: s.to(dtype))

    def item(self, k: int) -> Self:
        return self.moved(lambda x: x[k], lambda s: s[k])


@dataclass(frozen=True)
class OfLayers:
    """Layers with two moves of theirs and a move of the product."""

    layers: tuple[Tensor, ...]
    moves: tuple[tuple[Tensor, ...], ...]
    z: Tensor
    condition: float

    @property
    def n(self) -> int:
        return len(self.layers)

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.layers[0].shape[-1], *(w.shape[-2] for w in self.layers))

    @property
    def shape(self) -> tuple[int, int]:
        return self.widths[-1], self.widths[0]

    def moved(self, f: Callable[[Tensor], Tensor]) -> Self:
        moves = tuple(tuple(map(f, v)) for v in self.moves)
        return type(self)(tuple(map(f, self.layers)), moves, f(self.z), self.condition)

    def scaled(self, c: float) -> Self:
        """Scale the layers and their moves; the move of the product stays."""
        own = self.moved(lambda x: c * x)
        return type(self)(own.layers, own.moves, self.z, self.condition)

    def turned(self, turns: tuple[Tensor, ...]) -> Self:
        layers = turned_layers(self.layers, turns)
        moves = tuple(turned_layers(v, turns) for v in self.moves)
        z = turns[-1] @ self.z @ turns[0].mH
        return type(self)(layers, moves, z, self.condition)

    def turns(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(turn(generator, d, self.layers[0].dtype) for d in self.widths)

    def to(self, dtype: torch.dtype) -> Self:
        return self.moved(lambda x: x.to(dtype))

    def item(self, k: int) -> Self:
        return self.moved(lambda x: x[k])


Case = OfPoint | OfLayers


def turned_layers(layers: Any, turns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        after @ w @ before.mH for w, before, after in zip(layers, turns, turns[1:], strict=False)
    )


class Law(NamedTuple):
    """A function of a case, and how its values change if the case is scaled or turned.

    With the case by c, values get the factor ``c^degree``, logarithms (`log`) the summand
    ``degree log c``. `kind` says how they turn: as "numbers", a "matrix" like X, "layers" or
    "hidden" matrices of the moments. Roundings are magnified by a `power` of the condition.
    """

    call: Callable[[Any], Any]
    degree: float | Callable[[Any], float] = 0.0
    kind: str = "matrix"
    log: bool = False
    power: float = 2.0
    allowed: Callable[[Any], bool] = lambda case: True
    complex: bool = True
    loose: float = 1.0  # for iterations to a tolerance: over the roundings
    batched: bool = True
    turning: bool = True
    # Size of the terms that cancel in the values, zero for none.
    size: Callable[[Any], Any] = lambda case: 0.0
    extreme: bool = True  # right at the ends of the range too

    def degree_at(self, case: Any) -> float:
        return float(self.degree(case) if callable(self.degree) else self.degree)

    def values(self, case: Any) -> list[Tensor]:
        found = self.call(case)
        return [found] if isinstance(found, Tensor) else list(found)

    def turned(self, values: list[Tensor], turns: tuple[Tensor, ...]) -> list[Tensor]:
        if self.kind == "matrix":
            return [turns[-1] @ x @ turns[0].mH for x in values]
        if self.kind == "layers":
            return list(turned_layers(values, turns))
        if self.kind == "hidden":
            return [q @ x @ q.mH for x, q in zip(values, turns[1:-1], strict=True)]
        return values


def point_case(
    generator: torch.Generator,
    shape: tuple[int, int],
    rank: int,
    depth: float,
    *,
    dtype: torch.dtype = F64,
    batch: tuple[int, ...] = (),
    decades: float = 1.0,
    equal: bool = False,
    values: Tensor | None = None,
) -> OfPoint:
    """Draw a point with vectors; `values` are its singular values, if given."""
    s = spectrum(generator, batch, rank, decades, equal) if values is None else values
    wide = torch.complex128 if dtype.is_complex else F64
    u, v = (torch.linalg.qr(normal(generator, *batch, d, rank, dtype=wide)).Q for d in shape)
    covectors = [normal(generator, *batch, *shape, dtype=wide) for _ in range(4)]
    vectors = []
    for y in covectors[2:]:
        # Tangent, as long as the point along each of its directions.
        core = (u.mH @ y @ v) * s.unsqueeze(-1)
        z = u @ core @ v.mH
        if not math.isinf(depth):
            left, right = y @ v - u @ (u.mH @ y @ v), u.mH @ y - (u.mH @ y @ v) @ v.mH
            z = z + (left * s.unsqueeze(-2)) @ v.mH + u @ (right * s.unsqueeze(-1))
        vectors.append(z)
    point = dln.EndToEnd(u, s, v.mH, depth, check=False)
    case = OfPoint(point, tuple(covectors[:2]), tuple(vectors))
    return case.moved(lambda x: x.to(dtype), lambda s: s.to(dtype.to_real()))


def layers_case(
    generator: torch.Generator,
    widths: tuple[int, ...],
    rank: int,
    *,
    balanced: bool,
    dtype: torch.dtype = F64,
    batch: tuple[int, ...] = (),
    decades: float = 0.5,
    equal: bool = False,
) -> OfLayers:
    """Draw layers, balanced of this rank or not, with tangent vectors at them, or any moves."""
    wide = torch.complex128 if dtype.is_complex else F64
    s = spectrum(generator, batch, rank, decades, equal)
    shapes = list(zip(widths[1:], widths, strict=False))
    if balanced:
        # The layers have a condition that the depth does not dilute.
        power = s ** float(len(shapes))
        layers = tuple(
            dln.random_balanced(
                widths, rank=rank, spectrum=power, batch=batch, generator=generator, dtype=wide
            )
        )
        moves = [
            tuple(normal(generator, *batch, *shape, dtype=wide) for shape in shapes)
            for _ in range(2)
        ]
        moves = [dln.tangent(layers, v) for v in moves]
    else:
        layers = tuple(normal(generator, *batch, *shape, dtype=wide) for shape in shapes)
        moves = [
            tuple(normal(generator, *batch, *shape, dtype=wide) for shape in shapes)
            for _ in range(2)
        ]
    z = normal(generator, *batch, widths[-1], widths[0], dtype=wide)
    z = dln.pushforward(layers, moves[0]) if balanced else z
    condition = float((s[..., 0] / s[..., -1]).max())
    case = OfLayers(layers, tuple(map(tuple, moves)), z, condition)
    return case.to(dtype)
