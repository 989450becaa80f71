"""Try whether a change of the parameters of a module changes its outputs.

Where the changes come from does not matter here. Each `Trial` calls a copy of the module, in double
precision, at other parameters, buffers and inputs, random and like its own: at the parameters
themselves a head of zeros, or units that are off on a few inputs, would let any change pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.shaking import shaken
from dln_geometry.learning.architecture.subject import Call, Point, Subject
from dln_geometry.support import normal

# Sizes of the noise in parameters and inputs, and whether the batch changes, for each trial:
# the first attempt that works is taken. A negative size turns the signs of the parameters first.
_STILL = [(size, 0.0, False) for size in (0.5, 0.05, 0.005)]
_NEAR = [(0.5, 0.5, True), (0.5, 0.5, False), (0.05, 0.05, False), *_STILL]
_FAR = [(2.0, 4.0, True), (2.0, 4.0, False), *_NEAR]
_TURNED = [(-2.0, 4.0, True), (-2.0, 4.0, False), *_NEAR]
_ATTEMPTS = (_NEAR, _FAR, _STILL, *[_TURNED, _FAR] * 4)

# The outputs may change by so many roundings, and must answer to noise by ten times as much.
_ROUNDINGS = 300
_LEAST_EFFECT = 10


class Trial:
    """A module at one choice of parameters, buffers and inputs; made by `trials`.

    Attributes
    ----------
    params : dict of str to Tensor
        The parameters, random and like those of the module.
    generator : Generator
        A source of random numbers on their device.
    """

    def __init__(self, subject: Subject, point: Point, base: Tensor) -> None:
        self.params, self.generator = point.params, subject.generator
        self._subject, self._point, self._seen = subject, point, torch.isfinite(base)
        self._base = base[self._seen]
        rounded = {n: _jittered(p, subject.epsilon, self.generator) for n, p in self.params.items()}
        noise = max(self._change(rounded), subject.epsilon * float(self._base.norm()))
        self._allowed = _ROUNDINGS * noise
        self._gradient = subject.gradient(point, self._seen)

    def verdict(self, moved: Mapping[str, Tensor]) -> bool | None:
        """Tell whether the outputs are the same at other parameters, up to rounding.

        Return `None` if noise in the parameters that differ would hardly change them either.
        """
        if not self._change(moved) <= self._allowed:
            return False
        least = _LEAST_EFFECT * self._allowed
        return True if self._slope(moved) > least or self._effect(moved) > least else None

    def touched(self, part: Part) -> Tensor:
        """Return for each unit of a part whether the outputs depend on it, shape (units,)."""
        if self._gradient is None:
            return torch.ones(part.units, dtype=torch.bool, device="cpu")
        return part.slices(self._gradient[part.name]).flatten(1).ne(0).any(1).cpu()

    def _change(self, params: Mapping[str, Tensor]) -> float:
        value = self._subject.outputs(self._point.at(params))
        if value.shape != self._seen.shape:
            return float("inf")
        return float((value[self._seen] - self._base).norm())

    def _slope(self, moved: Mapping[str, Tensor]) -> float:
        """Return about how much noise changes the outputs, as long as a move and where it is."""
        if self._gradient is None:
            return 0.0
        steps = {n: (moved[n] - p).detach() for n, p in self.params.items() if moved[n] is not p}
        found = [self._gradient[n][s.ne(0)].abs().square().sum() for n, s in steps.items()]
        square = sum(float(s.abs().square().sum()) for s in steps.values())
        count = sum(int(s.ne(0).sum()) for s in steps.values())
        return (square / max(count, 1) * sum(map(float, found))) ** 0.5

    def _effect(self, moved: Mapping[str, Tensor]) -> float:
        """Return how much large noise in all parameters of the same modules changes the outputs.

        A symmetry may move all that a parameter can do, such as a bias before a normalisation.
        """
        changed = {n.rpartition(".")[0] for n, p in self.params.items() if moved[n] is not p}
        noisy = {
            n: shaken(p, 3.0, self.generator, signs=False) if n.rpartition(".")[0] in changed else p
            for n, p in self.params.items()
        }
        change = self._change(noisy) if changed else 0.0
        return change if change < float("inf") else 0.0


def trials(module: nn.Module, call: Call, *, logits: bool = False) -> Iterator[Trial]:
    """Return at most eleven trials of a module, with arguments like those of a call of it.

    The third has the arguments of the call, the others noise in them and, where the module takes
    it, a batch of 4 to 16 rows. Three tell of most changes; the others are for units that were off
    in all of these. The epsilons of torch's normalisations are negligible. Dropout draws the same
    numbers in every call. With `logits` the mean over the last axis (or the second) is ignored.
    Neither the module nor the arguments nor any state of random numbers changes.

    Raises a ValueError if the module cannot be called so, or has no finite outputs.
    """
    return trials_on(Subject(module, call, logits=logits))


def trials_on(subject: Subject) -> Iterator[Trial]:
    """Return the trials of a module that is ready to be called."""
    for attempts in _ATTEMPTS:
        points = (subject.shaken(*attempt) for attempt in attempts)
        tried = (_trial(subject, point) for point in points)
        found = next((t for t in tried if t is not None), None)
        if found is not None:
            yield found


def _trial(subject: Subject, point: Point) -> Trial | None:
    """Return a trial, `None` if the module does not take the inputs or parameters."""
    try:
        base = subject.outputs(point)
    except Exception:
        return None
    enough = int(torch.isfinite(base).sum()) >= 0.5 * subject.finite * base.numel()
    return Trial(subject, point, base) if enough else None


def _jittered(x: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return a tensor with relative errors like those of rounding."""
    if not (x.is_floating_point() or x.is_complex()):
        return x
    return x * (1 + 2 * epsilon * normal(x.shape, generator, x.dtype, x.device))
