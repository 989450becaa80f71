"""Units that are off: no weights come in, none go out, or they are zero on all inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dln_geometry.learning.collapse.detection import MirrorFamily

Reason = Literal["incoming", "outgoing", "inactive"]

# Linear layers, and the axis of their input channels.
_CHANNELS = {functional.linear: -1, torch.conv1d: -2, torch.conv2d: -3, torch.conv3d: -4}
_CHANNELS |= {torch.conv_transpose1d: -2, torch.conv_transpose2d: -3, torch.conv_transpose3d: -4}


@dataclass(frozen=True, eq=False)
class DeadUnit:
    """A unit that does nothing; made by `collapse_report`.

    Attributes
    ----------
    family : MirrorFamily
        Its units, of kind ``"permutation"`` or ``"rotation"``.
    unit : int
        Which of them.
    reasons : tuple of str
        ``"incoming"``: the weights into it are zero; ``"outgoing"``: those out of it are;
        ``"inactive"``: it is zero on all inputs.

    Examples
    --------
    >>> from torch import nn
    >>> net, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), torch.ones(4, 3)
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [-1.0, -1.0, -1.0]]))
    ...     _ = net[0].bias.zero_()
    >>> (unit,) = dln.learning.collapse_report(net, nn.MSELoss(), (x, torch.ones(4, 1))).dead
    >>> unit.unit, unit.reasons
    (1, ('inactive',))
    """

    family: MirrorFamily
    unit: int
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return f"unit {self.unit} of {', '.join(self.family.names)}: {', '.join(self.reasons)}"


def dead_units(
    families: Sequence[MirrorFamily],
    loss: Callable[[Any], Tensor],
    params: Mapping[str, Tensor],
    tol: float,
) -> tuple[DeadUnit, ...]:
    """Return the units whose weights on one side are below `tol` times a typical unit's, or zero.

    A unit is inactive if what the layers after it read is zero up to rounding.
    """
    layers = [f for f in families if f.readers and f.kind in ("permutation", "rotation")]
    names = {name for family in layers for name in family.readers}
    with torch.no_grad(), _Activities({id(params[n]): n for n in names}) as seen:
        loss(params)
    found = []
    for family in layers:
        reasons: dict[Reason, Tensor] = {}
        makers = [n for n in family.names if n not in family.readers and params[n].ndim > 1]
        sides: list[tuple[Reason, Any]] = [("incoming", makers), ("outgoing", family.readers)]
        for reason, side in sides:
            sizes = [_slice_norms(params[n], *family.axes[n]) for n in side]
            if sizes:
                norm = torch.stack(sizes).square().sum(0).sqrt()
                reasons[reason] = norm <= tol * norm.square().mean().sqrt()
        largest = _largest_activity(family, params, seen.largest)
        if largest is not None:
            bound = 10 * torch.finfo(params[family.readers[0]].dtype).eps * largest.max()
            reasons["inactive"] = largest <= bound
        for unit in range(family.units):
            own: tuple[Reason, ...] = tuple(r for r, off in reasons.items() if bool(off[unit]))
            if own:
                found.append(DeadUnit(family, unit, own))
    return tuple(found)


class _Activities(TorchFunctionMode):
    """Note the largest entry of each input channel of the layers with given weights."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.largest = names, dict[str, Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        kwargs = kwargs or {}
        if func in _CHANNELS:
            x, weight = (args[i] if len(args) > i else kwargs[k] for i, k in enumerate(_NAMES))
            name = self.names.get(id(weight))
            if name is not None and x.numel():
                rows = x.detach().abs().movedim(_CHANNELS[func], 0).flatten(1).amax(1)
                before = self.largest.get(name)
                self.largest[name] = rows if before is None else torch.maximum(before, rows)
        return func(*args, **kwargs)


_NAMES = ("input", "weight")


def _slice_norms(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Return the norm of the slices of each unit, in double precision on the CPU."""
    rows = x.detach().movedim(axis, 0).reshape(x.shape[axis], -1)
    units = rows[positions.to(x.device)].reshape(len(positions), -1)
    return torch.linalg.vector_norm(units.double(), dim=1).cpu()


def _largest_activity(
    family: MirrorFamily, params: Mapping[str, Tensor], seen: Mapping[str, Tensor]
) -> Tensor | None:
    """Return the largest activity of each unit, `None` if a layer that reads it was not seen."""
    found = []
    for name in family.readers:
        axis, positions = family.axes[name]
        rows = seen.get(name)
        # The columns of a grouped convolution are not its input channels.
        if rows is None or rows.numel() != params[name].shape[axis]:
            return None
        found.append(rows[positions.to(rows.device)].amax(1).double().cpu())
    return torch.stack(found).amax(0)
