"""Candidates for the parts of a group, and the combinations that change no output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import Part
from dln_geometry.learning.architecture.probing.families import Term
from dln_geometry.learning.architecture.probing.jacobian import Prober, Span, null_space

_NOTHING = 1e-7


@dataclass(frozen=True)
class Strip:
    """Entries ``start, start + stride, ...`` of one axis of a parameter, on which a matrix acts."""

    name: str
    axis: int
    start: int
    stride: int
    size: int

    def field(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Return the change of the parameter under a matrix on these entries."""
        out = torch.zeros_like(x)
        at = slice(self.start, self.start + self.size * self.stride, self.stride)
        moved = x.movedim(self.axis, 0)[at]
        out.movedim(self.axis, 0)[at] = torch.tensordot(matrix, moved, 1)
        return out


def slots_of(shapes: Mapping[str, torch.Size], d: int, *, strided: bool) -> Iterator[Strip]:
    """Yield all runs of `d` entries along all axes, from multiples of d on; and with strides."""
    for name, shape in shapes.items():
        for axis, n in enumerate(shape):
            if n % d:
                continue
            for k in range(n // d):
                yield Strip(name, axis, k * d, 1, d)
            if strided and d < n and d > 1:
                for k in range(n // d):
                    yield Strip(name, axis, k, n // d, d)


@dataclass
class Sample:
    """Parameters at a random point, and rows of the Jacobian there."""

    params: dict[str, Tensor]
    rows: Tensor


def combinations(
    prober: Prober,
    samples: Sequence[Sample],
    fields: Sequence[Callable[[Mapping[str, Tensor]], tuple[str, Tensor]]],
    known: Span,
) -> list[dict[int, float]]:
    """Return sparse combinations of vector fields that change no output at any sample.

    Each field gives the name of a parameter and its change. Fields and combinations that are in
    the span of what is known are left out.
    """
    blocks, sizes = [], torch.zeros(len(fields), dtype=torch.float64)
    like = samples[0].rows
    vectors = like.new_zeros(prober.total, len(fields))
    for k, field in enumerate(fields):
        name, change = field(samples[0].params)
        start = prober.offsets[name]
        vectors[start : start + change.numel(), k] = change.flatten()
    lengths = vectors.norm(dim=0)
    vectors /= lengths.clamp(min=1e-300)
    novel = known.rest(vectors).norm(dim=0) > _NOTHING
    candidates = torch.nonzero(novel).flatten().tolist()
    # The rows are random combinations: somewhat more of them than unknowns tell as much as all.
    most = len(candidates) // 2 + 40
    for sample in samples:
        rows = sample.rows[:most]
        block = rows.new_zeros(rows.shape[0], len(fields))
        norms = dict[str, float]()
        for k in candidates:
            name, change = fields[k](sample.params)
            start = prober.offsets[name]
            part = rows[:, start : start + change.numel()]
            # Rounding is no change: gains of 1, turned about (1, ..., 1).
            size = float(change.norm())
            if size > _NOTHING:
                block[:, k] = part @ change.flatten()
                sizes[k] += norms.setdefault(name, float(part.norm())) * size
        blocks.append(block)
    live = torch.nonzero((sizes > 0) & novel.cpu()).flatten()
    if not live.numel():
        return []
    a = torch.cat(blocks)[:, live] / sizes[live].to(blocks[0])
    norms = a.norm(dim=0)
    alone = norms < 1e-3 * _NOTHING * max(float(norms.max()), 1e-30)
    found = [{int(live[k]): 1.0} for k in torch.nonzero(alone).flatten()]
    rest = torch.nonzero(~alone).flatten()
    if rest.numel() < 2:
        return found
    null, _ = null_space(a[:, rest], 1e-8)
    # Coefficients of the fields as they are, not of the scaled columns.
    null = null / sizes[live[rest]].to(null)[:, None]
    for vector in _sparse(null):
        direction = vectors[:, live[rest]] @ (vector * lengths[live[rest]])
        if float(known.rest(direction[:, None]).norm()) < 1e-6 * float(direction.norm()):
            continue
        entries = {int(live[rest[k]]): float(vector[k]) for k in torch.nonzero(vector).flatten()}
        largest = max(entries.values(), key=abs)
        found.append({k: _whole(c / largest) for k, c in entries.items()})
    return sorted(found, key=len)


def _whole(c: float) -> float:
    """Return the whole number that a coefficient is up to its error, otherwise itself."""
    return float(round(c)) if abs(c - round(c)) < 1e-5 else c


def _sparse(null: Tensor) -> Iterator[Tensor]:
    """Yield a basis of a subspace, block by block, reduced to echelon form inside each."""
    q = torch.linalg.qr(null)[0]
    linked = (q @ q.mT).abs() > _NOTHING
    for members in _components(linked):
        part = q[members]
        u, s, _ = torch.linalg.svd(part, full_matrices=False)
        basis = u[:, s > 0.5]
        for row in echelon(basis.mT):
            vector = null.new_zeros(null.shape[0])
            vector[members] = row
            yield vector


def echelon(rows: Tensor) -> Tensor:
    """Return the reduced echelon form of independent rows, with pivots as large as possible."""
    rows = rows.clone()
    for k in range(rows.shape[0]):
        left = rows[k:].abs()
        column = int(left.amax(0).argmax())
        row = k + int(left[:, column].argmax())
        rows[[k, row]] = rows[[row, k]]
        rows[k] /= rows[k, column].clone()
        factors = rows[:, column].clone()
        factors[k] = 0
        rows -= factors[:, None] * rows[k]
    return torch.where(rows.abs() < _NOTHING, 0.0, rows)


def _components(linked: Tensor) -> Iterator[Tensor]:
    """Yield the connected sets of a symmetric relation, without indices that have none."""
    left = linked.diagonal().clone()
    while bool(left.any()):
        members = torch.zeros_like(left)
        members[int(torch.nonzero(left)[0])] = True
        while True:
            more = (linked[members].any(0) & left) | members
            if int(more.sum()) == int(members.sum()):
                break
            members = more
        left &= ~members
        yield torch.nonzero(members).flatten()


def terms_of(params: Mapping[str, Tensor], n: int, over: str = "") -> Iterator[Term]:
    """Yield the terms that a shift of n entries may have, some over the sum of one vector."""
    shapes = {name: p.shape for name, p in params.items()}
    whole = bool(over) and tuple(shapes[over]) == (n,) and _has_sum(params[over])
    for slot in slots_of(shapes, n, strided=False):
        yield Term(Part(slot.name, slot.axis, n, 1, slot.start), 1.0)
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        for axis in (1, 0):
            m = shape[1 - axis]
            if shape[axis] % n:
                continue
            for bias in _biases(shapes, name, m):
                for k in range(shape[axis] // n):
                    yield Term(Part(bias, 0, m), 1.0, Part(name, axis, n, 1, k * n))
            if whole and shape[axis] == n and len(shape) == 2:
                weight = Part(name, axis, n)
                yield Term(weight, 1.0, weight, over)


def _has_sum(v: Tensor) -> bool:
    """Tell whether the sum of a vector is no rounding."""
    return abs(float(v.sum())) > 1e-3 * float(v.norm())


def _biases(shapes: Mapping[str, torch.Size], weight: str, m: int) -> Iterable[str]:
    """Return the vectors of m entries beside a weight, or else all that there are."""
    vectors = [n for n, s in shapes.items() if tuple(s) == (m,)]
    beside = [n for n in vectors if n.rpartition(".")[0] == weight.rpartition(".")[0]]
    return beside or vectors
