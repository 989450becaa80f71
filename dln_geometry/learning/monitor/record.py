"""What a monitor tells: charges as measured and as predicted, saved and exported."""

from __future__ import annotations

import json
import os
import uuid
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.learning.architecture import SymmetricGroup

if TYPE_CHECKING:
    import xarray

__all__ = ["ChargeRecord", "ChargeReport"]

_FORMAT = 1
_SERIES = ("steps", "charge", "predicted", "residual", "unit_charge", "unit_predicted")
_DAMAGED = (
    OSError,
    EOFError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


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
        units of a scale or rescale, the trace of a gauge, the norm of the charges of a
        translation.
    residual : Tensor, shape (T, G)
        Largest deviation of any single charge of the group, relative to the largest sum of
        squares (for translations: to the norm of the parameter).
    unit_charge, unit_predicted : Tensor, shape (T, U), optional
        Every single charge, where the monitor was asked to keep them.
    unit_group : tuple of int, optional
        The group that each belongs to.
    """

    steps: Tensor
    labels: tuple[str, ...]
    charge: Tensor
    predicted: Tensor
    residual: Tensor
    unit_charge: Tensor | None = None
    unit_predicted: Tensor | None = None
    unit_group: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.steps.shape[0]

    def to_xarray(self) -> xarray.Dataset:
        """Return an `xarray.Dataset` with dimensions ``time`` and ``group`` (and ``unit``)."""
        import xarray

        data: dict[str, Any] = {
            name: (("time", "group"), getattr(self, name).numpy())
            for name in ("charge", "predicted", "residual")
        }
        coords: dict[str, Any] = {"time": self.steps.numpy(), "group": list(self.labels)}
        if self.unit_charge is not None and self.unit_predicted is not None:
            data["unit_charge"] = (("time", "unit"), self.unit_charge.numpy())
            data["unit_predicted"] = (("time", "unit"), self.unit_predicted.numpy())
            coords["unit_group"] = ("unit", [self.labels[k] for k in self.unit_group])
        return xarray.Dataset(data, coords=coords)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to one ``.npz`` file (plain arrays, no pickles), atomically.

        Parameters
        ----------
        path : str or path
            The suffix ``.npz`` is added if it is missing.

        Returns
        -------
        Path
            Of the file.
        """
        target = _with_suffix(Path(path))
        arrays = {
            name: getattr(self, name).numpy() for name in _SERIES if getattr(self, name) is not None
        }
        meta = {"format": _FORMAT, "labels": self.labels, "unit_group": self.unit_group}
        arrays["meta"] = np.array(json.dumps(meta))
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, for the replacement to be atomic.
        part = target.with_name(f"{uuid.uuid4().hex}.part")
        try:
            with open(part, "xb") as handle:
                np.savez_compressed(handle, allow_pickle=False, **arrays)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ChargeRecord:
        """Read a record written by `save`; the suffix ``.npz`` may be left out.

        Raises
        ------
        OSError
            If there is no such file, or it may not be read.
        ValueError
            If the file is no record, or of a newer format.
        """
        source = Path(path)
        if not source.is_file():
            source = _with_suffix(source)
        try:
            with open(source, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            meta = json.loads(str(arrays.pop("meta")))
            if meta["format"] > _FORMAT:
                raise ValueError(f"its format is {meta['format']}, known are up to {_FORMAT}")
            tensors = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays}
            return cls(
                labels=tuple(meta["labels"]), unit_group=tuple(meta["unit_group"]), **tensors
            )
        except (FileNotFoundError, PermissionError):
            raise
        except _DAMAGED as error:
            raise ValueError(f"path must be a saved record, got {source}: {error}") from None


@dataclass(frozen=True)
class ChargeReport:
    """How one symmetric group fares.

    Attributes
    ----------
    label : str
        Kind and names of the parameters.
    group : SymmetricGroup
        The group.
    charge, predicted : float
        At the last record; see `ChargeRecord`.
    residual, worst : float
        At the last record, and the largest of all that are kept.
    tolerance : float
        Above it the symmetry counts as broken.
    """

    label: str
    group: SymmetricGroup
    charge: float
    predicted: float
    residual: float
    worst: float
    tolerance: float

    @property
    def is_broken(self) -> bool:
        """Whether the loss does not have the symmetry, or something else moved parameters."""
        return not self.worst <= self.tolerance


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
