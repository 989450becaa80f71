"""Candidates: runs of entries on which a matrix acts, and what one shift does to parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.functional import Tensors

_SMALL = 1e-7
_MOST_PIECES = 8


@dataclass(frozen=True)
class Term:
    """What a shift t does to one parameter.

    It adds ``factor * t`` along an axis, constant along the others; or, with a weight, to a bias
    ``factor * W t``, W contracted along its axis with t and summed over a kernel. With `over`, the
    name of a vector v, it adds ``factor * W t (1, ..., 1) / sum(v)`` to the weight itself: a
    layer that reads normalised entries plus v, whose sum is always that of v. With `under`, the
    name of gains g, t has `size` entries and is added as ``factor * t / g`` to a weight that reads
    g times normalised entries, whose sum is 0; with `over` too, ``factor * t sum(v / g)`` to its
    bias. With `kernel`, slices that read a part, t with as many entries as the part has is added
    after its projection on what all of them map to 0; with `each` too, one entry of t for each unit
    of the part, the same for all its indices; with `beside`, a vector y of the entries that they
    read, that projection, transposed, times y is added to a bias. With `through`,
    further maps follow these. With `each` and a weight, the weight maps each entry of t on its own
    (a gain, a depthwise convolution). With `matrix`, the shape of a matrix K whose entries are t,
    it adds ``factor * K`` to the slices of its part, or ``factor * K y`` with the slices y of
    another part, `beside`; K is transposed if it is `turned`. With `beside` alone, K is diagonal.
    If it `grows`, the slices are multiplied by ``exp(factor * t)``.
    """

    part: Part
    factor: float
    weight: Part | None = None
    over: str = ""
    under: str = ""
    size: int = 0
    kernel: tuple[Part, ...] = ()
    each: bool = False
    through: tuple[tuple[Part, ...], ...] = ()
    matrix: tuple[int, int] | None = None
    beside: Part | None = None
    turned: bool = False
    grows: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether it adds the same at all parameters."""
        moves = self.under or self.kernel or self.grows
        return self.weight is None and self.beside is None and not moves

    @property
    def entries(self) -> int:
        """Number of entries of the shift."""
        return self.size or (self.weight or self.part).units

    def matrix_of(self, params: Tensors) -> Tensor:
        """Return the map whose kernel bounds a shift with `kernel`, shape (units, block, rest)."""
        pieces = [part.slices(params[part.name]) for part in self.kernel]
        for level in self.through:
            after = torch.cat([part.slices(params[part.name]) for part in level], -1)
            fitting = [k for k, x in enumerate(pieces) if x.shape[-1] == after.shape[-2]]
            if not fitting:
                # The maps do not follow each other: nothing is known to be mapped to 0.
                return torch.eye(pieces[0].shape[-2]).to(after).expand(len(after), -1, -1)
            pieces[fitting[0]] = pieces[fitting[0]] @ after
        return torch.cat(pieces, -1)

    def add(self, params: dict[str, Tensor], t: Tensor) -> None:
        """Replace the parameter by the shifted one."""
        x = params[self.part.name]
        if self.kernel:
            own, q = self.part.slices(x), torch.linalg.qr(self.matrix_of(params))[0]
            t = t.reshape(len(q), q.shape[-2], -1)
            t = self.factor * (t - q @ (q.mT @ t))
            if self.beside is not None:
                t = t.mT @ self.beside.slices(params[self.beside.name])
            added = own + (t.movedim(0, 1) if self.each else t.reshape(own.shape))
            params[self.part.name] = self.part.replaced(x, added)
        elif self.matrix or self.beside:
            own = self.part.slices(x)
            y = None if self.beside is None else self.beside.slices(params[self.beside.name])
            if self.matrix:
                k = t.reshape(self.matrix)
                k = k.mT if self.turned else k
                added = k[None] if y is None else k @ y
            else:
                added = t[:, None, None] * y if y is not None else t[:, None, None]
            params[self.part.name] = self.part.replaced(x, own + self.factor * added)
        elif self.under and self.over:
            share = (params[self.over] / params[self.under]).sum()
            params[self.part.name] = x + self.factor * share * t.expand(x.numel()).reshape(x.shape)
        elif self.under:
            own = self.part.slices(x) + self.factor * t / params[self.under][:, None, None]
            params[self.part.name] = self.part.replaced(x, own)
        elif self.weight is None:
            own = self.part.slices(x)
            step = self.factor * t[:, None, None]
            own = own * step.exp() if self.grows else own + step
            params[self.part.name] = self.part.replaced(x, own)
        elif self.over:
            image = self.factor * self.image(params, t) / params[self.over].sum()
            params[self.part.name] = x + image.unsqueeze(self.weight.axis)
        else:
            own = self.part.slices(x)
            image = self.image(params, t).reshape(own.shape)
            params[self.part.name] = self.part.replaced(x, own + self.factor * image)

    def image(self, params: Tensors, t: Tensor) -> Tensor:
        """Return ``W t`` for the weight of the term."""
        assert self.weight is not None
        w, part = self.weight.entries(params[self.weight.name]), self.weight
        moved = w.movedim(part.axis, 0)[part.start : part.stop]
        if part.block > 1:
            moved = moved.unflatten(0, (part.units, part.block)).sum(1)
        if self.each:
            return t * moved.reshape(len(t), -1).sum(1)
        return torch.tensordot(t, moved.flatten(2).sum(2) if moved.ndim > 2 else moved, 1)


@dataclass(frozen=True)
class Strip:
    """Entries ``start, start + stride, ...`` of one axis of a parameter, on which a matrix acts.

    They are runs of `inner` entries; `span` axes count as one (see `Part`).
    """

    name: str
    axis: int
    start: int
    stride: int
    size: int
    inner: int = 1
    span: int = 1

    def part(self, units: int = 1) -> Part:
        """Return the entries as one unit, or divided among several."""
        block = self.size // units
        return Part(self.name, self.axis, units, block, self.start, self.inner, self.span)

    def field(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Return the change of the parameter under a matrix on these entries."""
        out = torch.zeros_like(x)
        if self.stride == 1:
            part = self.part()
            return part.replaced(out, matrix @ part.slices(x))
        at = slice(self.start, self.start + self.size * self.stride, self.stride)
        moved = x.movedim(self.axis, 0)[at]
        out.movedim(self.axis, 0)[at] = torch.tensordot(matrix, moved, 1)
        return out


Segments = Mapping[int, Sequence[tuple[int, int]]]


def slots_of(
    shapes: Mapping[str, torch.Size], d: int, *, strided: bool, segments: Segments | None = None
) -> Iterator[Strip]:
    """Yield all runs of `d` entries along all axes, from multiples of d on; and with strides.

    Segments are start and size of the parts into which axes of a length are split: runs begin
    there too.
    """
    for name, shape in shapes.items():
        for axis, n in enumerate(shape):
            for k in _run_starts(n, d, segments):
                yield Strip(name, axis, k, 1, d)
            if strided and d < n and d > 1 and n % d == 0:
                for k in range(n // d):
                    yield Strip(name, axis, k, n // d, d)


def _run_starts(n: int, d: int, segments: Segments | None) -> dict[int, None]:
    """Return where runs of d entries begin along an axis of n entries."""
    starts = dict.fromkeys(range(0, n, d) if n % d == 0 else ())
    for start, size in (segments or {}).get(n, ()):
        starts.update(dict.fromkeys(range(start, start + size, d) if size % d == 0 else ()))
    return starts


def views_of(
    shapes: Mapping[str, torch.Size], d: int, inners: Mapping[int, Iterable[int]]
) -> Iterator[Strip]:
    """Yield runs of `d` indices that other operations merged with the entries of each, or split.

    `inners` holds the numbers of entries by the length of the axis.
    """
    for name, shape in shapes.items():
        for axis, n in enumerate(shape):
            for inner in inners.get(n, ()):
                for k in range(0, n, d * inner) if n % (d * inner) == 0 else ():
                    yield Strip(name, axis, k, 1, d, inner)
            after = shape[axis + 1] if axis + 1 < len(shape) > 2 else 1
            if after > 1 and n > 1 and (after == d or n * after == d):
                for k in range(0, n * after, d):
                    yield Strip(name, axis, k, 1, d, 1, 2)


def wholes_of(shapes: Mapping[str, torch.Size], segments: Segments) -> Iterator[Strip]:
    """Yield the parameters that can be scaled as one, or the parts into which one is split."""
    for name, shape in shapes.items():
        if not shape:
            yield Strip(name, 0, 0, 1, 1)
            continue
        split = next((axis for axis, n in enumerate(shape) if n in segments), 0)
        own = segments.get(shape[split], ())
        ends = {0, shape[split], *(s for s, _ in own), *(s + size for s, size in own)}
        ends = sorted(ends) if len(ends) <= _MOST_PIECES else [0, shape[split]]
        for start, stop in pairwise(ends):
            yield Strip(name, split, start, 1, stop - start)


def terms_of(
    params: Mapping[str, Tensor],
    n: int,
    over: str = "",
    inners: Mapping[int, Iterable[int]] | None = None,
    segments: Segments | None = None,
) -> Iterator[Term]:
    """Yield the terms that a shift of n entries may have, some over the sum of one vector."""
    shapes = {name: p.shape for name, p in params.items()}
    whole = bool(over) and tuple(shapes[over]) == (n,) and _has_sum(params[over])
    for slot in slots_of(shapes, n, strided=False, segments=segments):
        yield Term(Part(slot.name, slot.axis, n, 1, slot.start), 1.0)
    # Channels of which each has several entries, one after the other.
    for name, shape in shapes.items():
        for axis, m in enumerate(shape):
            if m % n == 0 and m // n in (inners or {}).get(m, ()):
                yield Term(Part(name, axis, n, m // n), 1.0)
                others = biases(shapes, name, shape[1 - axis]) if len(shape) == 2 else ()
                for own in others:
                    yield Term(own, 1.0, Part(name, axis, n, m // n))
    for name, shape in shapes.items():
        # A gain that is folded away maps a shift on itself: that is a term already.
        if shape and shape[0] == n and shape[1:2] in ((), (1,)) and not _is_one(params[name]):
            for bias in biases(shapes, name, n)[:_MOST_PIECES]:
                yield Term(bias, 1.0, Part(name, 0, n), each=True)
        if len(shape) < 2:
            continue
        for axis in (1, 0):
            m = shape[1 - axis]
            starts = _run_starts(shape[axis], n, segments)
            for bias in biases(shapes, name, m) if starts else ():
                for k in starts:
                    yield Term(bias, 1.0, Part(name, axis, n, 1, k))
            if whole and shape[axis] == n and len(shape) == 2:
                weight = Part(name, axis, n)
                yield Term(weight, 1.0, weight, over)


def uniform_terms(shapes: Mapping[str, torch.Size]) -> Iterator[Term]:
    """Yield the terms that a shift of one number may have: of all entries of a vector alike."""
    for name, shape in shapes.items():
        if len(shape) < 2:
            yield Term(Part(name, 0, 1, shape.numel()), 1.0)
            continue
        for axis in (1, 0):
            m = shape[1 - axis]
            for bias in biases(shapes, name, m):
                yield Term(bias, 1.0, Part(name, axis, 1, shape[axis]))


def _is_one(x: Tensor) -> bool:
    """Tell whether all entries are 1, up to rounding."""
    return float((x - 1).abs().max()) < _SMALL


def _has_sum(v: Tensor) -> bool:
    """Tell whether the sum of a vector is no rounding."""
    return abs(float(v.sum())) > 1e-3 * float(v.norm())


def biases(shapes: Mapping[str, torch.Size], weight: str, m: int) -> list[Part]:
    """Return the vectors of m entries beside a weight, or else all that there are.

    Vectors may have further axes of one index, as tables of one number a row have.
    """
    vectors = {n: s for n, s in shapes.items() if s.numel() == m and (m in s or not s)}
    near = weight.rpartition(".")[0]
    beside = [n for n in vectors if n.rpartition(".")[0] == near and n != weight]
    names = beside or [n for n in vectors if n != weight]
    return [Part(n, vectors[n].index(m) if vectors[n] else 0, m) for n in names]


def vectors_beside(shapes: Mapping[str, torch.Size], weight: str, m: int) -> list[str]:
    """Return the vectors of m entries in the module of a weight."""
    near = weight.rpartition(".")[0]
    return [n for n, s in shapes.items() if tuple(s) == (m,) and n.rpartition(".")[0] == near]
