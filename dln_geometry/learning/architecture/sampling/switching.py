"""Parameters at which units with a kink, such as those of ReLU, are on for some inputs only.

In narrow or deep networks random parameters turn most units on for all inputs, or off for all. What
is flat only there depends on the data, so a few steps bring the units to both sides of their kinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dln_geometry.learning.architecture.shaking import same_draws
from dln_geometry.learning.architecture.subject import Point, Subject
from dln_geometry.support import normal

# Where the units of each function have kinks; one with two is bounded.
_KINKS = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu"), (0.0, 0.0)),
    **dict.fromkeys(("abs", "threshold", "clamp_min", "clip", "clamp"), (0.0, 0.0)),
    **dict.fromkeys(("hardswish", "hardsigmoid"), (-3.0, 3.0)),
    "relu6": (0.0, 6.0),
    "hardtanh": (-1.0, 1.0),
    "softshrink": (-0.5, 0.5),
    "hardshrink": (-0.5, 0.5),
}
_STEPS, _STEP, _ENOUGH = 40, 0.1, 0.2


class _Units(TorchFunctionMode):
    """Note what goes into functions with kinks in one call, and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Tensor, Tensor, float, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        name = getattr(func, "__name__", "").rstrip("_")
        x = args[0] if args else None
        if not (name in _KINKS and isinstance(x, Tensor) and x.requires_grad and x.ndim > 1):
            return func(*args, **(kwargs or {}))
        # The function may write into its argument.
        x, y = x.clone(), func(*args, **(kwargs or {}))
        self.noted.append((x, y, *_KINKS[name]))
        return y

    def sides(self, value: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Return how far units are on one side of their kinks, 1 if all the way.

        Only entries that the outputs depend on count: after a maximum, the largest ones.
        """
        weights = normal(value.shape, generator, value.dtype, value.device)
        seen = torch.autograd.grad(
            value, [y for _, y, _, _ in self.noted], weights, retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        found = []
        for (x, _, low, high), g in zip(self.noted, seen, strict=True):
            # Channels of images are the second axis, and may be the last one of sequences.
            for axis in (1, 2) if x.ndim == 3 else (1,):
                rows = x.movedim(axis, 0).flatten(1)
                w = g.abs().movedim(axis, 0).flatten(1)
                w = w / w.amax(1, keepdim=True).clamp(min=1e-200)
                w = (w > 1e-6).to(x) + 1e-3
                w = w / w.sum(1, keepdim=True)
                mean = (w * rows).sum(1)
                var = (w * (rows - mean[:, None]).square()).sum(1)
                off = (mean - (low + high) / 2).square()
                found.append(off / (off + var).clamp(min=1e-200))
                if high > low:
                    short = 1 - (var.clamp(min=1e-200).sqrt() / (high - low))
                    found.append(short.clamp(min=0).square())
        return found


def switching_point(
    subject: Subject,
    params: Mapping[str, Tensor],
    names: Sequence[str],
    inputs: Callable[[], Point],
) -> dict[str, Tensor] | None:
    """Return parameters near some at which most units switch, `None` if no unit has a kink.

    Those that have names may move; `inputs` draws other inputs for each step.
    """
    own = {n: params[n].detach().clone().requires_grad_() for n in names}
    sizes = [float(p.detach().square().mean().sqrt()) if p.numel() else 0.0 for p in own.values()]
    groups = [
        {"params": [p], "lr": _STEP * size}
        for p, size in zip(own.values(), sizes, strict=True)
        if size
    ]
    if not groups:
        return None
    optimizer = torch.optim.Adam(groups)
    for step in range(_STEPS):
        units = _Units()
        with same_draws(subject.devices), units:
            torch.manual_seed(step)
            value = subject.evaluated(inputs().at({**params, **own}), grad=True)[0]
        if not units.noted or not value.requires_grad:
            return None
        sides = torch.cat(units.sides(value, subject.generator))
        if not bool(torch.isfinite(sides).all()):
            return None
        if float(sides.detach().max()) < _ENOUGH:
            break
        optimizer.zero_grad()
        sides.sum().backward()
        optimizer.step()
    return {**params, **{n: p.detach() for n, p in own.items()}}
