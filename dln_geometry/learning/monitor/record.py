"""Charges of a run as measured and as predicted: saved, loaded and exported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.support import check_form, read_archive, write_archive

if TYPE_CHECKING:
    import xarray

_FORMAT = 2
"""Version 0.1.0 wrote format 1, without a checksum."""
_SERIES = ("steps", "charge", "predicted", "residual", "tolerance", "unit_charge", "unit_predicted")


@dataclass(frozen=True)
class ChargeRecord:
    """Charges along a run; time is the first axis of every array.

    Attributes
    ----------
    steps : Tensor, shape (T,)
        How many steps had been made at each record.
    labels : tuple of str
        Names of the G groups.
    charge, predicted : Tensor, shape (T, G)
        One number for each group, as measured and as the exact laws predict it: the sum over the
        units of a scale or rescale, the trace of a gauge, the norm of a translation's charges.
    residual : Tensor, shape (T, G)
        Largest deviation of any single charge of the group, relative to the largest sum of
        squares (for translations: to the norm of the parameter).
    unit_charge, unit_predicted : Tensor, shape (T, U), optional
        Every single charge, where the monitor was asked to keep them.
    unit_group : tuple of int, optional
        The group that each belongs to.
    tolerance : Tensor, shape (T, G), optional
        The residual that rounding, and epsilons of normalisations over the variances met, may
        leave; records of older versions have none.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with dln.learning.ChargeMonitor(net, optimizer) as monitor:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         net(torch.ones(2, 3)).square().sum().backward()
    ...         optimizer.step()
    >>> record = monitor.record()
    >>> record.charge.shape, record.labels  # steps recorded, groups
    (torch.Size([1, 1]), ('rescale(0.weight, 0.bias, 2.weight)',))
    """

    steps: Tensor
    labels: tuple[str, ...]
    charge: Tensor
    predicted: Tensor
    residual: Tensor
    unit_charge: Tensor | None = None
    unit_predicted: Tensor | None = None
    unit_group: tuple[int, ...] = ()
    tolerance: Tensor | None = None

    def __len__(self) -> int:
        return self.steps.shape[0]

    def to_xarray(self) -> xarray.Dataset:
        """Return an `xarray.Dataset` with dimensions ``time`` and ``group`` (and ``unit``)."""
        import xarray

        data: dict[str, Any]
        data = {name: (("time", "group"), getattr(self, name).numpy()) for name in _SERIES[1:4]}
        if self.tolerance is not None:
            data["tolerance"] = (("time", "group"), self.tolerance.numpy())
        coords: dict[str, Any] = {"time": self.steps.numpy(), "group": list(self.labels)}
        if self.unit_charge is not None and self.unit_predicted is not None:
            data["unit_charge"] = (("time", "unit"), self.unit_charge.numpy())
            data["unit_predicted"] = (("time", "unit"), self.unit_predicted.numpy())
            coords["unit_group"] = ("unit", [self.labels[k] for k in self.unit_group])
        return xarray.Dataset(data, coords=coords)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one ``.npz`` file without pickles, whole or not at all; return its full path."""
        arrays = {name: getattr(self, name) for name in _SERIES}
        attributes = {"labels": self.labels, "unit_group": self.unit_group}
        return write_archive(path, _FORMAT, arrays, attributes)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChargeRecord:
        """Read a record that `save` wrote, of no newer format; ``.npz`` may be left out.

        ValueError if the file is damaged: its checksum does not fit, or what it holds is no record.
        Files of version 0.1.0 hold no checksum; the CRC-32 of each array protects them.
        """

        def build(arrays: dict[str, Any], meta: dict[str, Any]) -> ChargeRecord:
            check_form(meta["labels"], [str, ...], "labels")
            check_form(meta["unit_group"], [int, ...], "unit_group")
            arrays.update(labels=tuple(meta["labels"]), unit_group=tuple(meta["unit_group"]))
            record = cls(**arrays)
            record._check()
            return record

        return read_archive(path, "record", _FORMAT, build)

    def _check(self) -> None:
        """Raise ValueError unless the arrays fit each other."""
        count, groups, units = len(self.steps), len(self.labels), len(self.unit_group)
        shapes = {name: (count, groups if "unit" not in name else units) for name in _SERIES[1:]}
        for name, shape in {"steps": (count,), **shapes}.items():
            values = getattr(self, name)
            if values is not None and tuple(values.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(values.shape)}")
            if values is not None and name != "steps" and not values.is_floating_point():
                raise ValueError(f"{name} must hold real numbers, got {values.dtype}")
        if (self.unit_charge is None) != (self.unit_predicted is None):
            raise ValueError("unit_charge and unit_predicted must be given together")
        if any(group >= groups for group in self.unit_group):
            raise ValueError(f"unit_group must name {groups} groups, got {self.unit_group}")


@dataclass(frozen=True)
class ChargeReport:
    """The charge of one symmetric group, and how far it deviates from its law.

    Attributes
    ----------
    label : str
        Kind and names of the parameters.
    charge, predicted, residual : float
        At the last record; see `ChargeRecord`.
    worst : float
        The residual of all records kept that is largest relative to its tolerance.
    tolerance : float
        Of that residual; above it the symmetry counts as broken.
    drift : dict of str to float
        Under optimisers other than SGD, how much each cause moved the charge in the last step that
        was followed: "decay" (decoupled), "preconditioner", "orthogonalisation", "sign",
        "momentum", "averaging" or "step" (what turns the step away from the gradient: it breaks
        the symmetry), and "square" (the size of the step). Of a translation the norms. There is no
        "decay" of an optimiser that is not torch's and does not say ``decoupled_weight_decay`` in
        its groups: "step" then has all of it.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with dln.learning.ChargeMonitor(net, optimizer) as monitor:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         net(torch.ones(2, 3)).square().sum().backward()
    ...         optimizer.step()
    >>> (line,) = monitor.report()
    >>> line.label, line.worst < line.tolerance
    ('rescale(0.weight, 0.bias, 2.weight)', True)
    """

    label: str
    group: SymmetricGroup
    charge: float
    predicted: float
    residual: float
    worst: float
    tolerance: float
    drift: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_broken(self) -> bool:
        """Whether the loss does not have the symmetry, or something else moved parameters."""
        return not self.worst <= self.tolerance
