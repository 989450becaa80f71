"""Candidates for the parts of a group, and the combinations that change no output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.learning.architecture.probing.jacobian import Prober
from dln_geometry.learning.architecture.probing.ranks import Span, null_space

_NOTHING = 1e-7
_MOST_ROWS = 40
# Candidates have a share in a combination from this on.
_ANY = 1e-8
_SPARE_ROWS = 20
# What is not flat answers by so much of its usual response, at the least.
_LEAST = 1e-3


@dataclass
class Sample:
    """Parameters at a random point, rows of the Jacobian there, and the number of this draw."""

    params: dict[str, Tensor]
    rows: Tensor
    draw: int = 0


def combinations(
    prober: Prober,
    samples: Sequence[Sample],
    fields: Sequence[Callable[[Sample], tuple[str, Tensor]]],
    known: Span,
) -> list[dict[int, float]]:
    """Return sparse combinations of vector fields that change no output at any sample.

    Each field gives the name of a parameter and its change. Fields and combinations that are in
    the span of what is known are left out.
    """
    like, own = samples[0].rows, []
    for field in fields:
        name, change = field(samples[0])
        start = prober.offsets[name]
        own.append((slice(start, start + change.numel()), change.flatten()))
    novel = torch.zeros(len(fields), dtype=torch.bool)
    for place in dict.fromkeys((p.start, p.stop) for p, _ in own):
        here = [k for k, (p, _) in enumerate(own) if (p.start, p.stop) == place]
        inside = known.holds(slice(*place), torch.stack([own[k][1] for k in here], 1))
        novel[here] = ~inside.cpu()
    candidates = torch.nonzero(novel).flatten().tolist()
    changes = [(p.start, change) for p, change in own]
    # What one sample rules out need not be tried on the others.
    if 0 < len(candidates) <= like.shape[0] - _SPARE_ROWS:
        rows = like[: len(candidates) + _SPARE_ROWS]
        responses, sizes = _responses(rows, [changes[k] for k in candidates])
        scaled = responses / torch.where(sizes > 0, sizes, 1.0)
        scaled = torch.where(scaled.norm(dim=0) > 1e-3 * _NOTHING * _LEAST, scaled, 0.0)
        shares = null_space(scaled, 1e-8)[0].norm(dim=1).tolist()
        candidates = [k for k, share in zip(candidates, shares, strict=True) if share > _ANY]
    if not candidates:
        return []
    # The rows are random combinations: somewhat more of them than unknowns tell as much as all.
    most = len(candidates) // 2 + 2 * _SPARE_ROWS
    blocks, sizes = [], like.new_zeros(len(candidates))
    for sample in samples:
        if sample is not samples[0]:
            found = [fields[k](sample) for k in candidates]
            own_here = [(prober.offsets[name], change.flatten()) for name, change in found]
        else:
            own_here = [changes[k] for k in candidates]
        responses, more = _responses(sample.rows[:most], own_here)
        blocks.append(responses)
        sizes += more
    kept = torch.nonzero(sizes > 0).flatten()
    if not kept.numel():
        return []
    live, sizes = [candidates[k] for k in kept.tolist()], sizes[kept]
    a = torch.cat(blocks)[:, kept] / sizes
    norms = a.norm(dim=0)
    alone = norms < 1e-3 * _NOTHING * max(float(norms.max()), _LEAST)
    found = [{live[k]: 1.0} for k in torch.nonzero(alone).flatten().tolist()]
    rest = torch.nonzero(~alone).flatten()
    names = [live[k] for k in rest.tolist()]
    if len(names) < 2:
        return found
    null, _ = null_space(a[:, rest], 1e-8)
    # Coefficients of the fields as they are, not of the scaled columns.
    null = null / sizes[rest, None]
    sparse = _with_units(list(_sparse(null)))
    directions = like.new_zeros(prober.total, len(sparse))
    lengths = like.new_zeros(len(sparse))
    for column, vector in enumerate(sparse):
        for k in torch.nonzero(vector).flatten().tolist():
            place, change = own[names[k]]
            directions[place, column] += vector[k] * change
            lengths[column] += float(vector[k] * change.norm()) ** 2
    # Overlapping slots may also cancel each other.
    new = known.rest(directions).norm(dim=0) >= 1e-6 * lengths.sqrt()
    for vector in (v for v, is_new in zip(sparse, new.tolist(), strict=True) if is_new):
        entries = {names[k]: float(vector[k]) for k in torch.nonzero(vector).flatten().tolist()}
        largest = max(entries.values(), key=abs)
        whole = {k: _near_whole(c / largest) for k, c in entries.items()}
        found.append({k: c for k, c in whole.items() if c})
    return sorted(found, key=len)


def _responses(rows: Tensor, changes: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return what rows answer to changes of entries from a start on, and the usual sizes of that.

    One column and one size belong to each change.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for k, (start, change) in enumerate(changes):
        places.setdefault((start, change.numel()), []).append(k)
    responses = rows.new_zeros(rows.shape[0], len(changes))
    sizes = rows.new_zeros(len(changes))
    for (start, count), members in places.items():
        part = rows[:, start : start + count]
        own = torch.stack([changes[k][1] for k in members], 1)
        # Rounding is no change: gains of 1, turned about (1, ..., 1).
        norms = own.norm(dim=0)
        norms = torch.where(norms > _NOTHING, norms, 0.0)
        responses[:, members] = part @ own * (norms > 0)
        sizes[members] = float(part.norm()) * norms
    return responses, sizes


def _near_whole(c: float) -> float:
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


def _with_units(rows: list[Tensor]) -> list[Tensor]:
    """Add to each row, if its entries have different sizes, one that makes them all the same."""
    if not 1 < len(rows) <= _MOST_ROWS:
        return rows
    whole = torch.stack([_least_one(row) for row in rows])
    for k, row in enumerate(whole):
        if bool((row.abs() > 1.5).any()):
            sums = _least_one(torch.cat([row + whole, row - whole]))
            good = (sums.abs() < 1.5).all(1) & sums.any(1)
            # In place: sums with rows that were sums themselves stay independent.
            whole[k] = sums[int(good.int().argmax())] if bool(good.any()) else row
    return list(whole)


def _least_one(rows: Tensor) -> Tensor:
    """Divide rows by their least entries, without those that are rounding."""
    largest = rows.abs().amax(-1, keepdim=True)
    rows = torch.where(rows.abs() < 1e-6 * largest, 0.0, rows)
    least = torch.where(rows == 0, torch.inf, rows.abs()).amin(-1, keepdim=True)
    return rows / least


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
