"""Keep the symmetric groups that do not change the output of a module in several trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.trials import Trial
from dln_geometry.support import warn

_SIZE = 0.3


class _Record:
    """What the trials say of one group."""

    def __init__(self, group: SymmetricGroup) -> None:
        self.group, self.refuted, self.tried = group, False, False
        self.touched = torch.zeros(group.units, dtype=torch.bool, device="cpu")

    def try_on(self, trial: Trial) -> None:
        """Move the parameters of a trial by a random element."""
        moved = self.group.act(trial.params, _element(self.group, trial))
        verdict = trial.verdict(moved)
        self.refuted = verdict is False
        self.tried = self.tried or verdict is True
        if self.group.kind == "shift":
            # Some parts are what others compensate: they have units of their own.
            self.touched = self.touched | True
            return
        for part in self.group.parts:
            # A shift, or the scale of one number, may be all that a unit can do.
            alone = part.slices(trial.params[part.name])[0].numel() == 1
            free = self.group.kind == "translation" or (self.group.kind == "scale" and alone)
            self.touched = self.touched | (free or trial.touched(part))

    @property
    def is_clear(self) -> bool:
        """Whether the group was tried, with all its units."""
        return self.tried and bool(self.touched.all())

    def __str__(self) -> str:
        name = f"{self.group.kind} of {', '.join(self.group.names)}"
        if self.tried and (off := torch.nonzero(~self.touched).flatten().tolist()):
            name += f" (units {', '.join(map(str, off[:8]))}{', ...' if off[8:] else ''})"
        return name


def not_refuted(groups: Sequence[SymmetricGroup], trials: Iterable[Trial]) -> list[SymmetricGroup]:
    """Return the groups that no trial refutes, also those of parameters on which nothing depends.

    They must come from elsewhere with a proof to first order.
    """
    records = [_Record(group) for group in groups]
    # The fourth and the fifth turn signs: units that were off before may be on.
    for _, trial in zip(range(5 if records else 0), trials, strict=False):
        for record in (r for r in records if not r.refuted):
            accurate = getattr(record.group, "is_accurate", None)
            if accurate is None or accurate(trial.params):
                record.try_on(trial)
    return [r.group for r in records if not r.refuted]


def confirmed(
    groups: Sequence[SymmetricGroup], guesses: Sequence[SymmetricGroup], trials: Iterable[Trial]
) -> list[SymmetricGroup]:
    """Return the groups of a graph that no trial refutes, and the guesses that trials confirm.

    A group is refuted if a random element changes the outputs by more than rounding. A warning
    names the groups of the graph that are refuted or could not be tried, and units on which no
    output depended in any trial.
    """
    records = [_Record(group) for group in groups]
    guessed = [_Record(group) for group in guesses]
    if not records and not guessed:
        return []
    for count, trial in enumerate(trials):
        # After three, only those go on that were not tried, or hold units that were off.
        left = [r for r in (*records, *guessed) if not r.refuted and (count < 3 or not r.is_clear)]
        if not left:
            break
        for record in left:
            record.try_on(trial)
    kept = [r for r in records if not r.refuted] + [r for r in guessed if r.tried and not r.refuted]
    _tell_of(
        "change the output on the example, and are left out", [r for r in records if r.refuted]
    )
    _tell_of(
        "could not be tried: noise in these parameters does not change the output either",
        [r for r in kept if not r.tried],
    )
    _tell_of(
        "hold units on which no output depends, so that they could not be tried",
        [r for r in kept if r.tried and not r.is_clear],
    )
    return [r.group for r in kept]


def _tell_of(what: str, records: Sequence[_Record]) -> None:
    if records:
        warn(f"symmetries that {what}: {'; '.join(map(str, records))}")


def _element(group: SymmetricGroup, trial: Trial) -> Any:
    """Draw an element of moderate size; no permutation that leaves every unit in its place."""
    element: Any = group.random_element(trial.params, trial.generator)
    if group.kind == "permutation":
        same = torch.arange(group.units, device=element.device)
        return element.roll(1) if bool(element.equal(same)) else element
    if isinstance(element, Tensor):
        return _SIZE * element
    return tuple(_SIZE * a for a in element)
