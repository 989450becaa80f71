"""Find the groups of a module by linear algebra, from candidates that its operators propose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.probing.families import Family, Fold, all_folded, scaled
from dln_geometry.learning.architecture.probing.jacobian import Prober, Span, null_space
from dln_geometry.learning.architecture.probing.operators import Proposals
from dln_geometry.learning.architecture.probing.slots import Sample
from dln_geometry.learning.architecture.probing.stages import CLOSE, ROUGH, Stages, fields_of
from dln_geometry.learning.architecture.subject import Subject


class Finder:
    """The search in one module: what was found, and what the Jacobian leaves room for."""

    def __init__(self, subject: Subject, proposals: Proposals) -> None:
        self.prober, self.proposals = Prober(subject), proposals
        self.subject, self.generator = subject, subject.generator
        p = self.prober
        self.count = int(1.1 * p.total) + 10
        # Units that are off on all inputs at one point may be on at another.
        first, second = (Sample(q, p.rows(q, self.count)) for q in map(p.point, (0.5, 2.0)))
        spaces = [null_space(sample.rows, p.tolerance) for sample in (first, second)]
        if spaces[1][0].shape[1] < spaces[0][0].shape[1]:
            first, second, spaces = second, first, spaces[::-1]
        full, self.base = first.rows, first.params
        self.enough = full.shape[0] >= p.total
        self.null, self.gap = spaces[0]
        self.true = self.null.shape[1]
        self.samples = [first, second, self._sample(p.point(0.5))]
        self.span = Span(p.total, full)
        self.stages = Stages(p, proposals, full)
        self.groups: list[SymmetricGroup] = []

    def _sample(self, params: dict[str, Tensor]) -> Sample:
        return Sample(params, self.prober.rows(params, min(self.count, 500 + self.true)))

    @property
    def is_done(self) -> bool:
        """Whether the groups leave no direction over."""
        return self.span.dimension >= self.true

    def fields(self, group: SymmetricGroup) -> Tensor:
        """Return all generators of a group at the base point, shape (total, count)."""
        return fields_of(self.prober, group, self.base)

    def add(self, group: SymmetricGroup) -> bool:
        """Keep a group if it adds directions, all of which are in the null space."""
        if group.kind == "permutation":
            return False
        fields = self.fields(group)
        sizes = fields.norm(dim=0)
        fields = fields[:, sizes > 0] / sizes[sizes > 0]
        outside = fields - self.null @ (self.null.mT @ fields)
        if not fields.shape[1] or float(outside.norm(dim=0).max()) > ROUGH:
            return False
        new = self.span.add(fields) > 0
        if new:
            self.groups.append(group)
        return new

    def _is_new(self, group: SymmetricGroup, known: Span, params: dict[str, Tensor]) -> bool:
        """Tell whether a random direction of a group at some parameters is not in a span."""
        symmetry = group.symmetry(params)
        field = symmetry.generated(params, self.stages.normal(*symmetry.shape(params)))
        column = self.prober.flat({n: v[None] for n, v in field.items()})
        size = max(float(column.norm()), 1e-300)
        return float(known.rest(column / size).norm()) > CLOSE

    def dimensions(self, groups: Sequence[SymmetricGroup]) -> tuple[int, int | None]:
        """Return the dimension that some groups have, and the one that they could have."""
        span = Span(self.prober.total, self.null)
        for group in groups:
            if group.kind != "permutation":
                span.add(self.fields(group))
        if span.dimension < self.true:
            rows = self.prober.rows(self.prober.point(2.0), self.count)
            self.true = min(self.true, null_space(rows, self.prober.tolerance)[0].shape[1])
        return span.dimension, self.true if self.enough else None

    def search(self) -> None:
        """Find groups until nothing is left over, or nothing is left to try."""
        self._stages(self.samples, self.null, ())
        if self.is_done:
            return
        folds = self._folds()
        if not folds:
            return
        gains = [f.group for f in folds if f.group.kind == "rescale"]
        sources = {f.source for f in folds}
        names = dict.fromkeys(p.name for group in gains for p in group.first)
        self.stages.partners = tuple(n for n in names if n not in sources)
        samples = []
        for k, sample in enumerate(self.samples):
            params = all_folded(sample.params, folds)[0]
            rows = self.prober.rows(params, self.count) if k == 0 else self._sample(params).rows
            samples.append(Sample(params, rows))
        null, _ = null_space(samples[0].rows, self.prober.tolerance)
        self._stages(samples, null, folds)

    def _stages(self, samples: list[Sample], null: Tensor, folds: tuple[Fold, ...]) -> None:
        params = samples[0].params
        known = self.span
        if folds:
            known = Span(self.prober.total, samples[0].rows)
            for group in self.groups:
                known.add(fields_of(self.prober, group, params))
        for group in self.stages.all(samples, null, known):
            if self.is_done:
                return
            new = self._is_new(group, known, params) and self.add(_with_folds(group, folds))
            if new and folds:
                known.add(fields_of(self.prober, group, params))

    def _folds(self) -> tuple[Fold, ...]:
        """Return the folds of gains and shifts into the layers that read them."""
        shapes = self.prober.shapes
        shifts: dict[str, Fold] = {}
        for group in self.groups:
            if isinstance(group, Family) and group.kind == "shift" and group.terms:
                for term in group.terms:
                    name = term.part.name
                    whole = term.weight is None and tuple(shapes[name]) == (term.part.units,)
                    if whole and any(t.weight is not None for t in group.terms):
                        shifts.setdefault(name, Fold(group, name))
        gains: list[Fold] = []
        below: list[Fold] = []
        for group in self.groups:
            whole = group.kind == "rescale" and all(
                tuple(shapes[p.name]) == (group.units,) for p in group.first
            )
            if not whole or not self._is_linear(group):
                continue
            names = [p.name for p in group.first]
            below += [shifts[n] for n in names if n in shifts]
            source = next((n for n in names if n not in shifts), None)
            if source is not None:
                gains.append(Fold(group, source))
        return (*below, *gains)

    def _is_linear(self, group: SymmetricGroup) -> bool:
        """Tell whether factors of any sign may be moved between the parts."""
        point = self.prober._inputs(*self.prober._draw).at(self.base)
        signs = torch.ones(group.units).to(next(iter(self.base.values())))
        signs[::2] = -1
        moved = scaled(self.base, group, signs)
        a, b = self.subject.outputs(point), self.subject.outputs(point.at(moved))
        return a.shape == b.shape and float((a - b).norm()) < 1e-9 * float(a.norm())


def _with_folds(group: SymmetricGroup, folds: tuple[Fold, ...]) -> SymmetricGroup:
    """Return the group with the folds that move its parameters."""
    if not folds or not isinstance(group, Family):
        return group
    names = set(group.names)
    needed = [f for f in folds if names & set(f.group.names)]
    # A gain may need the shift of its normalisation to be folded before.
    more = {n for f in needed for n in f.group.names}
    return replace(group, folds=tuple(f for f in folds if f in needed or f.source in more))
