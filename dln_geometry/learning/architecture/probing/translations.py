"""Translations that change no output: of one parameter, or opposed ones of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice, product, repeat

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.probing.families import (
    Family,
    Term,
    Unreached,
    matrix_of,
    vectors_beside,
)
from dln_geometry.learning.architecture.probing.jacobian import Prober, fields_of
from dln_geometry.learning.architecture.probing.operators import Proposals
from dln_geometry.learning.architecture.probing.ranks import (
    Span,
    common_null_space,
    null_space,
    nullity,
)
from dln_geometry.learning.architecture.probing.slots import Sample, echelon

# The null space is known less well if small singular values are kept.
_ROUGH = 1e-3
_FRACTIONS, _CLOSE = 60, 1e-6
_MOST_SETS = 40
# Rows of a Jacobian that tell what gradients reach, and what is rounding.
_REACHING_ROWS, _REACHED = 200, 1e-9
# Each candidate is tried alone: a few combinations of outputs tell.
_ROWS = 60
# Entries of vectors that are searched for opposed translations at once.
_VECTORS = 1000


def translations(
    prober: Prober,
    samples: Sequence[Sample],
    null: Tensor | None,
    more: Callable[[int], Tensor],
) -> Iterator[SymmetricGroup]:
    """Yield groups of the constant vectors that are flat everywhere.

    Without a null space of all parameters, opposed translations are searched among vectors.
    `more` returns some rows of the Jacobian at another point.
    """
    left = Span(prober.total, samples[0].rows)
    for group in _single_translations(prober, samples):
        yield group
        left.add(fields_of(prober, group, samples[0].params))
    rows = [sample.rows for sample in samples]
    spaces = [common_null_space(null, rows[1:])] if null is not None else _of_vectors(prober, rows)
    for space in spaces:
        # A few null spaces of low rank have directions in common that are not flat elsewhere.
        before = space.shape[1] + 1
        while 0 < space.shape[1] < before:
            before = space.shape[1]
            space = common_null_space(space, [more(before + 10)])
        yield from _opposed(prober, space, left)


def _of_vectors(prober: Prober, rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield constant directions of vectors, and of parameters with one row, of some at once."""
    bunches: list[list[int]] = [[]]
    for name, shape in prober.shapes.items():
        if shape.numel() <= _VECTORS and (len(shape) == 1 or shape[:1] == (1,)):
            start = prober.offsets[name]
            if len(bunches[-1]) + shape.numel() > _VECTORS:
                bunches.append([])
            bunches[-1] += range(start, start + shape.numel())
    for places in bunches:
        own = [r[: 2 * len(places) + 20, places] for r in rows]
        if places:
            null = common_null_space(null_space(torch.cat(own), 1e-9)[0], own)
            out = null.new_zeros(prober.total, null.shape[1])
            out[places] = null
            yield out


def _single_translations(prober: Prober, samples: Sequence[Sample]) -> Iterator[SymmetricGroup]:
    sizes = torch.stack([sample.rows.norm(dim=0) for sample in samples])
    least = [1e-12 * float(s.rows[:_ROWS].norm()) for s in samples]
    off = (sizes <= 1e-9 * sizes.amax(1, keepdim=True)).all(0)
    for name, shape in prober.shapes.items():
        start = prober.offsets[name]
        alone = off[start : start + shape.numel()].reshape(shape)
        own = [s.rows[:_ROWS, start : start + shape.numel()] for s in samples]
        for axis, n in enumerate(shape):
            whole = alone.movedim(axis, 0).reshape(n, -1).all(1).tolist()
            for u, units in _runs(whole):
                yield Family("translation", (Part(name, axis, units, 1, u),))
            if all(whole):
                break
            for units in (k for k in range(n - 1, 0, -1) if n % k == 0):
                part = Part(name, axis, units, n // units)
                if all(map(_answers_nothing, own, repeat(shape), repeat(part), least)):
                    yield Family("translation", (part,))
                    break


def _answers_nothing(rows: Tensor, shape: torch.Size, part: Part, least: float) -> bool:
    """Tell whether all translations of a part are flat, from rows of that parameter."""
    blocks = rows.reshape(-1, *shape).movedim(part.axis + 1, 1)
    blocks = blocks.reshape(rows.shape[0], part.units, part.block, -1).movedim(2, 0)
    response = blocks.sum(0).square().sum(0).sqrt()
    return bool((response <= 1e-8 * blocks.square().sum((0, 1)).sqrt() + least).all())


def opposed_pairs(gradients: Sequence[Mapping[str, Tensor]]) -> Iterator[Family]:
    """Yield shifts of two parameters whose gradients are multiples of each other, of large modules.

    A shift adds a vector along one axis, the same for all entries of the others: the two biases of
    a sum, a table of tokens and one of positions.
    """
    terms: dict[int, list[tuple[Part, Tensor]]] = {}
    for name, like in gradients[0].items():
        for axis, n in enumerate(like.shape[:2]):
            others = [a for a in range(like.ndim) if a != axis]
            sums = [g[name].sum(others) if others else g[name] for g in gradients]
            sizes = torch.stack([g[name].norm() for g in gradients])
            row = torch.cat(sums)
            # What is 0 but for rounding is a multiple of anything.
            if n > 1 and float(row.norm()) > 1e-9 * float(sizes.norm()):
                terms.setdefault(n, []).append((Part(name, axis, n), row))
    for alike in terms.values():
        parts, rows = [p for p, _ in alike], torch.stack([r for _, r in alike])
        sizes = rows.norm(dim=1)
        rows = rows / sizes[:, None]
        taken: set[int] = set()
        for k, part in enumerate(parts):
            signs = rows[k + 1 :] @ rows[k]
            for j, sign in enumerate(signs.sign().tolist(), k + 1):
                if {j, k} & taken or parts[j].name == part.name:
                    continue
                if float((rows[j] - sign * rows[k]).norm()) < _CLOSE:
                    factor = -sign * float(sizes[k] / sizes[j])
                    each = (Term(part, 1.0), Term(parts[j], _as_simple(factor)))
                    yield Family("shift", (part, parts[j]), terms=each)
                    taken.add(j)


def _as_simple(x: float) -> float:
    """Return the simple fraction that a number is but for rounding, or the number."""
    simple = round(_FRACTIONS * x) / _FRACTIONS
    return simple if abs(x - simple) < _CLOSE else x


def _opposed(prober: Prober, null: Tensor, known: Span) -> Iterator[SymmetricGroup]:
    """Yield one group for each set of parameters that only move together."""
    names = list(prober.shapes)
    rows = echelon(null.mT)
    # Most are whole numbers or simple fractions; what is left of the others must pass the trials.
    simple = (_FRACTIONS * rows).round() / _FRACTIONS
    rows = torch.where((rows - simple).abs() < _CLOSE, simple, rows)
    rows = rows[known.rest(rows.mT).norm(dim=0) > _ROUGH * rows.norm(dim=1)]
    # Sparse ones first; then those that add something.
    order = rows.count_nonzero(1).argsort(stable=True).tolist()
    own = Span(prober.total, null)
    own.basis = known.basis
    rows = [rows[k] for k in order if own.add(rows[k][:, None])]
    pieces = []
    for row in rows:
        vectors = {}
        for name in names:
            start, shape = prober.offsets[name], prober.shapes[name]
            v = row[start : start + shape.numel()]
            if bool(v.any()):
                vectors[name] = v.detach().reshape(shape)
        pieces.append(vectors)
    pieces.sort(key=sorted)
    sets = groupby(pieces, key=lambda v: tuple(n for n in names if n in v))
    # Hundreds of sets are no symmetries: the inputs are too few to tell parameters apart.
    for key, members in islice(sets, _MOST_SETS):
        first = tuple(Part(n, 0, 1, (*prober.shapes[n], 1)[0]) for n in key)
        if key:
            yield Family("shift", first, basis=tuple(members))


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield start and length of each run of true flags."""
    start = 0
    for flag, members in groupby(flags):
        count = len(list(members))
        if flag:
            yield start, count
        start += count


def unreached(prober: Prober, samples: Sequence[Sample], proposals: Proposals) -> Iterator[Family]:
    """Yield shifts of weights inside what gradients do not reach, where inputs span little.

    Rows of a weight are taken together, with the bias, as far as an operator splits them.
    """
    shapes = prober.shapes
    for name, shape in shapes.items():
        for axis in range(min(len(shape), 2) if len(shape) > 1 else 0):
            n = shape[axis]
            near = [v for v in vectors_beside(shapes, name, n) if v != name]
            runs = {(0, n), *proposals.segments.get(n, ())}
            runs |= {(k, d) for d in proposals.linear if n % d == 0 for k in range(0, n, d)}
            for start, size in sorted(runs, key=lambda r: (-r[1], r[0])):
                part = Part(name, axis, 1, size, start)
                for bias, across in product(
                    (*(Part(v, 0, 1, size, start) for v in near), None), (False, True)
                ):
                    if (across and bias is not None) or (size == 1 and across):
                        continue
                    family = _unreached(prober, samples, part, bias, across=across)
                    if family is not None:
                        yield family


def _unreached(
    prober: Prober, samples: Sequence[Sample], part: Part, bias: Part | None, *, across: bool
) -> Family | None:
    """Return the shifts of a part of a weight, and its bias, that gradients do not reach."""
    ranks, width = list[int](), 0
    for sample in samples:
        columns = {}
        for p in (part, bias):
            if p is not None:
                start, shape = prober.offsets[p.name], prober.shapes[p.name]
                own = sample.rows[:_REACHING_ROWS, start : start + shape.numel()]
                columns[p.name] = own.reshape(-1, *shape)
        matrices = torch.func.vmap(lambda x: matrix_of(x, part, bias))(columns)
        matrices = (matrices.mT if across else matrices).flatten(0, 1)
        width = matrices.shape[1]
        ranks.append(width - nullity(matrices, _REACHED)[0])
        if ranks[-1] == width:
            return None
    if not max(ranks):
        return None
    which = Unreached(part, bias, max(ranks), across, prober.gradients)
    return Family("shift", which.parts, unreached=which)
