"""Find the groups of a module by linear algebra, from candidates that its operators propose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.probing.charting import charts_of, stacks_of, with_folds
from dln_geometry.learning.architecture.probing.families import (
    Charted,
    Family,
    Fold,
    all_folded,
    folded_by,
    scaled,
    summed,
    unstacked,
)
from dln_geometry.learning.architecture.probing.grouping import CLOSE
from dln_geometry.learning.architecture.probing.jacobian import Prober, fields_of, is_flat
from dln_geometry.learning.architecture.probing.leftovers import (
    between,
    beyond_rank,
    kernels,
    under_gains,
)
from dln_geometry.learning.architecture.probing.operators import Proposals
from dln_geometry.learning.architecture.probing.ranks import (
    Span,
    null_space,
    nullity,
)
from dln_geometry.learning.architecture.probing.slots import Sample
from dln_geometry.learning.architecture.probing.stages import Stages
from dln_geometry.learning.architecture.probing.translations import unreached
from dln_geometry.learning.architecture.sampling import switching_point
from dln_geometry.learning.architecture.shaking import is_mask
from dln_geometry.learning.architecture.subject import Subject

# Up to so many parameters the null space is computed before the search, which ends when all of it
# is found.
_MOST_AT_FIRST = 1500
_CLEAR = 1e6
# Sizes and gains of more points where the rank is counted, if it is not clear or not the same.
_MORE_POINTS = ((1.0, 1.0), (0.5, 10.0), (1.0, 1.0), (1.0, 1.0))
# Further points where groups must be flat, sizes and gains; rows, and calls of the module, at each.
_HELD, _HELD_ROWS, _HELD_CALLS = ((1.0, 1.0), (2.0, 1.0), (0.5, 4.0)), 80, 4
_SWITCHING_CALLS = 80
# So many rows tell about all candidates of one stage.
_ENOUGH_ROWS = 540


class Finder:
    """The search in one module: what was found, and what the Jacobian leaves room for."""

    def __init__(self, subject: Subject, proposals: Proposals) -> None:
        self.prober, self.proposals = Prober(subject), proposals
        self.subject, self.generator = subject, subject.generator
        p = self.prober
        self.count = int(1.1 * p.total) + 10
        self.true: int | None = None
        self.gap, self.reason, self._turn = float("nan"), "", False
        few = self.count if p.total <= _MOST_AT_FIRST else min(self.count, _ENOUGH_ROWS)
        # Units that are off on all inputs at one point may be on at another.
        first, second = (Sample(q, p.rows(q, few)) for q in map(p.point, (0.5, 2.0)))
        null = None
        if p.total <= _MOST_AT_FIRST:
            known = [(*nullity(x.rows, p.tolerance), x) for x in (first, second)]
            for size, gain in _MORE_POINTS:
                # Most directions respond at the best point, and its rank is the clearest.
                known.sort(key=lambda k: (k[0], -k[1]))
                if known[0][1] > _CLEAR and known[0][0] == known[1][0]:
                    break
                other = Sample(*self.elsewhere(size, gain, few))
                known.append((*nullity(other.rows, p.tolerance), other))
            known.sort(key=lambda k: (k[0], -k[1]))
            first, second = known[0][2], known[1][2]
            null, self.gap = null_space(first.rows, p.tolerance)
            self.true = null.shape[1]
        self.base, self.null = first.params, null
        self.samples = [first, second, self._sample(p.point(0.5))]
        self.span = Span(p.total, first.rows)
        self.stages = Stages(p, proposals, first.rows)
        self.groups: list[SymmetricGroup] = []
        self._further: list[Sample] = []

    def elsewhere(self, size: float, gain: float, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return another point and rows there: every other time one where units switch."""
        self._turn = not self._turn
        switched = self.switched(count) if self._turn else None
        if switched is not None:
            return switched
        params = self.prober.point(size, gain)
        return params, self.prober.rows(params, count)

    def switched(self, count: int) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return a point where units with kinks switch, and rows there; `None` without such."""
        p = self.prober
        params = switching_point(self.subject, p.point(0.5), tuple(p.shapes), p.inputs)
        # A unit that is on for few inputs needs many of them.
        return None if params is None else (params, p.rows(params, count, _SWITCHING_CALLS))

    def _sample(self, params: dict[str, Tensor]) -> Sample:
        more = _ENOUGH_ROWS if self.true is None else 500 + self.true
        return Sample(params, self.prober.rows(params, min(self.count, more)))

    @property
    def is_done(self) -> bool:
        """Whether the groups leave no direction over."""
        return self.true is not None and self.span.dimension >= self.true

    def fields(self, group: SymmetricGroup) -> Tensor:
        """Return all generators of a group at the base point, shape (total, count)."""
        return fields_of(self.prober, group, self.base)

    def add(self, group: SymmetricGroup, *, sure: bool = False) -> bool:
        """Keep a group if it adds directions, none of which changes an output.

        It must be flat at further points too, unless that is sure.
        """
        if group.kind == "permutation":
            return False
        fields = self.fields(group)
        if not bool(fields.any()) or not is_flat(self.samples[0].rows, fields):
            return False
        # What only fits here must not stand in the way of what holds everywhere.
        if not sure and float(self.span.rest(fields).norm()) <= CLOSE * float(fields.norm()):
            return False
        new = (sure or self._holds(group)) and self.span.add(fields) > 0
        if new:
            self.groups.append(group)
        return new

    def _is_new(self, group: SymmetricGroup, known: Span, params: dict[str, Tensor]) -> bool:
        """Tell whether a random direction of a group at some parameters is not in a span."""
        column = self._direction(group, params)
        size = max(float(column.norm()), 1e-300)
        return float(known.rest(column / size).norm()) > CLOSE

    def search(self) -> None:
        """Find groups until nothing is left over, or nothing is left to try."""
        found = self.stages.all(self.samples, self.null, self.span, self._elsewhere)
        self._keep(found, self.samples, ())
        folds = () if self.is_done else self._folds()
        if folds:
            self._search_folded(folds)
        if not self.is_done:
            self._keep(kernels(self.stages, self.samples, self.groups), self.samples, ())
        if not self.is_done:
            self._keep(under_gains(self.stages, self.samples, self.span), self.samples, ())
        if not self.is_done:
            self._keep(between(self.stages, self.samples, self.span), self.samples, ())
        for more in (beyond_rank, Stages.exponents):
            if not self.is_done:
                self._keep(more(self.stages, self.samples, self.span), self.samples, ())
        if not self.is_done and not isinstance(self.subject, Charted):
            self._search_charted()
            found = unreached(self.prober, self.samples, self.proposals)
            self._keep(found, self.samples, ())
            self._search_stacked()

    def _holds(self, group: SymmetricGroup) -> bool:
        """Tell whether a group is flat at further points, where other units may be on."""
        if not self._further:
            for size, gain in _HELD:
                params = self.prober.point(size, gain)
                rows = self.prober.rows(params, min(_HELD_ROWS, self.count), _HELD_CALLS)
                self._further.append(Sample(params, rows))
        further = list(self._further)
        if getattr(group, "unreached", None) is not None and any(
            map(is_mask, tree_leaves(self.subject.call))
        ):
            # What no input reaches for the masks of the example only is no symmetry.
            try:
                rows = self.prober.rows(self.base, _HELD_ROWS, _HELD_CALLS, masks=True)
            except Exception:
                return False
            further.append(Sample(self.base, rows))
        return all(
            (isinstance(group, Family) and not group.is_accurate(s.params))
            or is_flat(s.rows, self._direction(group, s.params))
            for s in further
        )

    def _direction(self, group: SymmetricGroup, params: dict[str, Tensor]) -> Tensor:
        """Return a random generator of a group at some parameters, shape (total, 1)."""
        symmetry = group.symmetry(params)
        field = symmetry.generated(params, self.stages.normal(*symmetry.shape(params)))
        return self.prober.flat({n: v[None] for n, v in field.items()})

    def _search_charted(self) -> None:
        """Find groups that act in other coordinates of gains, and of weights with a norm."""
        charts = charts_of(self.stages, self.samples, self.groups, self.span, self._is_same)
        if not charts:
            return
        inner = Finder(Charted(self.subject, charts), self.proposals)
        inner.search()
        for group in inner.groups:
            if self.is_done:
                return
            if isinstance(group, Family):
                names = (*group.names, *group.read, *(n for f in group.folds for n in f.names))
                if own := folded_by(names, charts):
                    self.add(replace(group, folds=(*own, *group.folds)))

    def _search_stacked(self) -> None:
        """Find groups of single maps of those that a parameter holds."""
        for stacks in stacks_of(self.prober.shapes, self.proposals):
            if self.is_done:
                return
            inner = Finder(Charted(self.subject, stacks), self.proposals)
            inner.search()
            for group in inner.groups:
                own = unstacked(group, stacks) if isinstance(group, Family) else None
                if own is not None and not self.is_done:
                    self.add(own)

    def _is_same(self, moved: dict[str, Tensor]) -> bool:
        """Tell whether the outputs at the base point are the same with other parameters."""
        point = self.prober.inputs().at(self.base)
        a, b = (self.subject.outputs(p) for p in (point, point.at({**self.base, **moved})))
        return a.shape == b.shape and float((a - b).norm()) < 1e-9 * float(a.norm())

    def _elsewhere(self, count: int, folds: tuple[Fold, ...] = ()) -> Tensor:
        """Return about `count` rows of the Jacobian at another point."""
        params = all_folded(self.prober.point(1.0), folds)[0]
        return self.prober.rows(params, min(count, self.count))

    def _search_folded(self, folds: tuple[Fold, ...]) -> None:
        """Find groups that act where gains are 1 and shifts 0."""
        gains = [f.group for f in folds if f.group.kind == "rescale"]
        sources = {f.source for f in folds}
        names = dict.fromkeys(p.name for group in gains for p in group.first)
        self.stages.partners = tuple(n for n in names if n not in sources)
        samples = []
        for k, sample in enumerate(self.samples):
            params = all_folded(sample.params, folds)[0]
            whole = k == 0 and self.null is not None
            rows = self.prober.rows(params, self.count) if whole else self._sample(params).rows
            samples.append(Sample(params, rows))
        whole = self.null is not None
        null = null_space(samples[0].rows, self.prober.tolerance)[0] if whole else None
        known = Span(self.prober.total, samples[0].rows)
        for group in self.groups:
            known.add(fields_of(self.prober, group, samples[0].params))

        def elsewhere(count: int) -> Tensor:
            return self._elsewhere(count, folds)

        self._keep(self.stages.all(samples, null, known, elsewhere), samples, folds, known)
        if not self.is_done:
            self._keep(kernels(self.stages, samples, self.groups), samples, folds, known)

    def _keep(
        self,
        found: Iterable[SymmetricGroup],
        samples: list[Sample],
        folds: tuple[Fold, ...],
        known: Span | None = None,
    ) -> None:
        """Keep those of some groups that add directions, until no direction is left over."""
        params = samples[0].params
        for group in found:
            if self.is_done:
                return
            new = self._is_new(group, known or self.span, params)
            new = new and self.add(with_folds(group, folds))
            if new and known is not None:
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
            powers = getattr(group, "powers", ())
            whole = (
                group.kind == "rescale"
                and not powers
                and all(
                    len(shapes[p.name]) < 2 and shapes[p.name].numel() == group.units
                    for p in group.first
                )
            )
            group = self._linear(group) if whole else None
            if group is None:
                continue
            names = [p.name for p in group.first]
            below += [shifts[n] for n in names if n in shifts]
            source = next((n for n in names if n not in shifts), None)
            if source is not None:
                gains.append(Fold(group, source))
        return (*below, *gains)

    def _linear(self, group: SymmetricGroup) -> SymmetricGroup | None:
        """Return a rescaling, alone or with another one, if its factors may have any signs."""
        others = [g for g in self.groups if g.kind == "rescale" and g.is_plain and g is not group]
        for own in (group, *(s for s in (summed(group, g) for g in others) if s is not None)):
            signs = torch.ones(own.units).to(next(iter(self.base.values())))
            signs[::2] = -1
            if own.first[0] == group.first[0] and self._is_same(scaled(self.base, own, signs)):
                return own
        return None
