"""The report: which mirrors of a network are collapsed, or about to collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dln_geometry.learning.collapse.dead import DeadUnit, dead_units
from dln_geometry.learning.collapse.detection import MirrorFamily, mirrors_of
from dln_geometry.learning.collapse.thresholds import Stability, stability
from dln_geometry.learning.functional import functionalize
from dln_geometry.learning.mirror import NotFiniteError, value_and_gradient
from dln_geometry.support import as_choice, as_count, as_generator, as_positive, shown

Status = Literal["collapsed", "escaping", "collapsing", "singular", "free"]


@dataclass(frozen=True, eq=False)
class Collapse:
    """One mirror of a network, and how near it is to collapse.

    Attributes
    ----------
    family, member
        The mirror is ``family.mirror(params, member)``.
    defect, stability : float, Stability or None
        `Mirror.defect`, and the `stability`, `None` where the loss is singular.
    rate : float
        ``-d/dt log |O^T q|`` under gradient flow with the weight decay, at the present q: positive
        on the way to the symmetric set. NaN on the set itself.
    status : str
        ``"collapsed"``: on the symmetric set, which attracts; ``"escaping"``: on the set, which
        repels; ``"collapsing"``: on the way to a set that attracts; ``"singular"``: the loss is
        not finite or not smooth on the set; ``"free"``: none of these.

    Examples
    --------
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> net, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), torch.randn(8, 3)
    >>> report = dln.learning.collapse_report(net, nn.MSELoss(), (x, torch.zeros(8, 1)))
    >>> record = report.records[0]
    >>> record.family.kind, record.status
    ('permutation', 'free')
    """

    family: MirrorFamily
    member: Any
    defect: float
    stability: Stability | None
    rate: float
    status: Status


@dataclass(frozen=True, eq=False)
class CollapseReport(Sequence[Collapse]):
    """The mirrors nearest to collapse at a weight decay, by family; ``str()`` is a table.

    `dead` holds the units that are off (see `DeadUnit`). The table names below its rows those whose
    change of sign is not in a row as collapsed.

    Examples
    --------
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> net, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), torch.randn(8, 3)
    >>> report = dln.learning.collapse_report(net, nn.MSELoss(), (x, torch.zeros(8, 1)))
    >>> report.weight_decay, report.dead
    (0.0, ())
    """

    records: tuple[Collapse, ...]
    weight_decay: float
    dead: tuple[DeadUnit, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __str__(self) -> str:
        head = ("status", "kind", "member", "defect", "threshold", "rate", "parameters")
        rows = [head, *(_row(record) for record in self.records)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
        title = f"mirrors at a weight decay of {self.weight_decay:g}"
        dead = [f"dead: {unit}" for unit in self.dead if not self._is_in_a_row(unit)]
        return "\n".join([title, *("  ".join(row).rstrip() for row in padded), *dead])

    def _is_in_a_row(self, dead: DeadUnit) -> bool:
        return any(
            record.status in ("collapsed", "escaping")
            and record.family.kind == "rescaling"
            and record.member == dead.unit
            and record.family.axes.keys() <= dead.family.axes.keys()
            for record in self.records
        )


def collapse_report(
    module: nn.Module,
    loss_fn: Callable[..., Tensor],
    data: Any,
    *,
    weight_decay: float = 0.0,
    count: int = 3,
    tol: float = 1e-3,
    loss: str | None = None,
    families: Sequence[MirrorFamily] | None = None,
    generator: torch.Generator | int | None = None,
) -> CollapseReport:
    """Return the mirrors of a network that are collapsed or nearest to it.

    Parameters
    ----------
    module, loss_fn, data
        As in `functionalize`; the network in the mode in which it is trained.
    weight_decay : float
        Coefficient k of the penalty ``k/2 |q|^2`` that it is trained with.
    count : int
        Number of mirrors of each family to examine, each with dozens of Hessian-vector products.
    tol : float
        Defect below which a mirror counts as collapsed, and part of the weights of a typical unit
        below which those of a unit count as zero (see `DeadUnit`).
    families : sequence of MirrorFamily, optional
        By default all that `mirrors_of` finds with the inputs as an example.
    loss, generator : optional
        As in `symmetries_of`, and as in `stability`.

    Examples
    --------
    Two of the hidden neurons are equal:

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    >>> with torch.no_grad():
    ...     for p in net.parameters():
    ...         _ = p.copy_(torch.linspace(-1, 2, p.numel()).reshape(p.shape).cos())
    ...     for p, axis in ((net[0].weight, 0), (net[0].bias, 0), (net[2].weight, 1)):
    ...         _ = p.select(axis, 2).copy_(p.select(axis, 0))
    >>> x = torch.tensor([[0.5, 1.0], [-1.0, 0.3], [0.2, -0.7]]).double()
    >>> report = dln.learning.collapse_report(
    ...     net, nn.functional.mse_loss, (x, x[:, :1]), weight_decay=9.0, count=1
    ... )
    >>> [(record.status, record.family.kind, record.member) for record in report][0]
    ('collapsed', 'permutation', (0, 2))
    """
    decay = as_positive(weight_decay, "weight_decay", zero=True)
    tol = as_positive(tol, "tol", zero=True)
    count = as_count(count, "count")
    if generator is not None:
        as_generator(generator, torch.device("cpu"))
    function, params = functionalize(module, loss_fn, data)
    if families is None:
        inputs = data[0] if isinstance(data, tuple | list) else data
        families = mirrors_of(module, inputs, loss=loss)
    elif loss is not None:
        as_choice(loss, ("cross_entropy",), "loss")
    if (
        isinstance(families, str)
        or not isinstance(families, Sequence)
        or not all(isinstance(family, MirrorFamily) for family in families)
    ):
        raise TypeError(f"families must be a sequence of MirrorFamily, got {shown(families)}")
    # Frozen parameters cannot collapse.
    families = [family for family in families if set(family.names) <= params.keys()]
    _, gradient = value_and_gradient(function, params)
    records = []
    for family in families:
        for defect, member in family.closest(params, count):
            mirror = family.mirror(params, member)
            c, slope = mirror.coordinates(params), mirror.coordinates(gradient)
            square = float(c.square().sum())
            rate = float((c * slope).sum()) / square + decay if square > 0 else math.nan
            try:
                found = stability(function, mirror, params, generator=generator)
                status = _status(defect <= tol, found.is_stable(decay), rate)
            except NotFiniteError:
                # A weight norm divides by the length of a weight, which is 0 on the set.
                found, status = None, "singular"
            records.append(Collapse(family, member, defect, found, rate, status))
    return CollapseReport(tuple(records), decay, dead_units(families, function, params, tol))


def _status(near: bool, stable: bool, rate: float) -> Status:
    if near:
        return "collapsed" if stable else "escaping"
    return "collapsing" if stable and rate > 0 else "free"


def _row(record: Collapse) -> tuple[str, ...]:
    kind = record.family.kind
    return (
        record.status,
        kind,
        "lowest direction" if kind == "rotation" else str(record.member),
        f"{record.defect:.2e}",
        "" if record.stability is None else f"{record.stability.threshold:.2e}",
        "" if math.isnan(record.rate) else f"{record.rate:.1e}",
        ", ".join(record.family.names),
    )
