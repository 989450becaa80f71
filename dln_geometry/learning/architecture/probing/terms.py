"""What one shift does to several parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.learning.architecture.groups import Part
from dln_geometry.learning.functional import Tensors


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
    after its projection on what all of them map to 0. With `each`, the weight maps each entry of t
    on its own (a gain, a depthwise convolution).
    """

    part: Part
    factor: float
    weight: Part | None = None
    over: str = ""
    under: str = ""
    size: int = 0
    kernel: tuple[Part, ...] = ()
    each: bool = False

    @property
    def entries(self) -> int:
        """Number of entries of the shift."""
        return self.size or self.part.units

    def add(self, params: dict[str, Tensor], t: Tensor) -> None:
        """Replace the parameter by the shifted one."""
        x = params[self.part.name]
        if self.kernel:
            own = self.part.slices(x)
            readers = torch.cat([part.slices(params[part.name]) for part in self.kernel], -1)
            q, t = torch.linalg.qr(readers)[0], t.reshape(own.shape)
            params[self.part.name] = self.part.replaced(x, own + t - q @ (q.mT @ t))
        elif self.under and self.over:
            share = (params[self.over] / params[self.under]).sum()
            params[self.part.name] = x + self.factor * share * t.reshape(x.shape)
        elif self.under:
            own = self.part.slices(x) + self.factor * t / params[self.under][:, None, None]
            params[self.part.name] = self.part.replaced(x, own)
        elif self.weight is None:
            own = self.part.slices(x) + self.factor * t[:, None, None]
            params[self.part.name] = self.part.replaced(x, own)
        elif self.over:
            image = self.factor * self.image(params, t) / params[self.over].sum()
            params[self.part.name] = x + image.unsqueeze(self.weight.axis)
        else:
            params[self.part.name] = x + self.factor * self.image(params, t).reshape(x.shape)

    def image(self, params: Tensors, t: Tensor) -> Tensor:
        """Return ``W t`` for the weight of the term."""
        assert self.weight is not None
        w, part = params[self.weight.name], self.weight
        moved = w.movedim(part.axis, 0)[part.start : part.stop]
        if self.each:
            return t * moved.reshape(len(t), -1).sum(1)
        return torch.tensordot(t, moved.flatten(2).sum(2) if moved.ndim > 2 else moved, 1)
