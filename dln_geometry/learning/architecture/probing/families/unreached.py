"""Shifts of a weight inside what its gradients never reach, whatever the inputs are.

The query of one token that does not depend on the data is one vector: its weight may change if the
bias takes back what it does to that vector. Which vector it is depends on other parameters: it is
read off the gradients at the parameters that are to be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.functional import Tensors

Gradients = Callable[[Mapping[str, Tensor], Sequence[str]], Iterator[Mapping[str, Tensor]]]

# Gradients that are drawn once they span all that they can, and at most.
_MORE, _MOST = 6, 200
_CUT = 1e-9


@dataclass(frozen=True, eq=False)
class Unreached:
    """A matrix of entries, of a weight and its bias, of which gradients span few dimensions.

    Rows are the indices of a part of the weight; the bias is one more column. The gradients' rows
    span `rank` dimensions, or their columns if `across`.
    """

    part: Part
    bias: Part | None
    rank: int
    across: bool
    gradients: Gradients
    _last: list[tuple[list[tuple[Tensor, int]], Tensor]] = field(default_factory=list)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that move."""
        return (self.part,) if self.bias is None else (self.part, self.bias)

    def matrix(self, tensors: Tensors) -> Tensor:
        """Return the entries of some tensors as one matrix."""
        return matrix_of(tensors, self.part, self.bias)

    def reached(self, params: Tensors) -> Tensor:
        """Return an orthonormal basis of what gradients span at some parameters."""
        key = [(p, 0 if p.is_inference() else p._version) for p in params.values()]
        for known, basis in self._last:
            pairs = zip(known, key, strict=False)
            if len(known) == len(key) and all(a is b and m == n for (a, m), (b, n) in pairs):
                return basis
        with torch.inference_mode(False):
            basis = self._drawn({n: p.detach().clone() for n, p in params.items()})
        self._last[:] = [(key, basis)]
        return basis

    def _drawn(self, params: dict[str, Tensor]) -> Tensor:
        """Return a basis of what gradients drawn at some parameters span."""
        own = {n: p.double() if p.is_floating_point() else p for n, p in params.items()}
        spread: Tensor | None = None
        names, more = [p.name for p in self.parts], 0
        for count, found in enumerate(self.gradients(own, names)):
            g = self.matrix(found)
            g = g.mT if self.across else g
            g = g / g.norm().clamp(min=1e-300)
            spread = g if spread is None else torch.cat([spread, g])
            if len(spread) > spread.shape[1]:
                spread = torch.linalg.qr(spread, mode="r")[1]
            s = torch.linalg.svdvals(spread)
            more += int((s > _CUT * s[0]).sum()) >= self.rank
            if more > _MORE or count > _MOST:
                break
        if spread is None:
            width = len(self.matrix(own)) if self.across else self.matrix(own).shape[1]
            like = next(iter(own.values()))
            return torch.eye(width, dtype=torch.float64, device=like.device)
        return torch.linalg.svd(spread, full_matrices=False)[2][: self.rank].mT

    def moved(self, params: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """Return parameters whose matrix is shifted by the part of t that is not reached."""
        q = self.reached(params)
        x = self.matrix(params)
        own = t.reshape(x.shape).to(q)
        own = own - (q @ (q.mT @ own) if self.across else own @ q @ q.mT)
        own = own.to(x)
        moved, part = dict(params), self.part
        columns = own.shape[1] if self.bias is None else own.shape[1] - 1
        w = params[part.name]
        moved[part.name] = part.replaced(w, part.slices(w) + own[:, :columns])
        if self.bias is not None:
            b = params[self.bias.name]
            moved[self.bias.name] = self.bias.replaced(b, self.bias.slices(b) + own[:, columns:])
        return moved


def matrix_of(tensors: Tensors, part: Part, bias: Part | None) -> Tensor:
    """Return the slices of a weight and its bias side by side, rows as the last axis but one."""
    w = part.slices(tensors[part.name])[0]
    return w if bias is None else torch.cat([w, bias.slices(tensors[bias.name])[0]], 1)
