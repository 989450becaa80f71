"""Known numbers of rows or columns, of those of a table and of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support import as_float_tensor
from dln_geometry.tables import Ids, Name, Table, as_name


@dataclass(frozen=True)
class SideFeatures:
    """Features of one side, each less its mean over the table and divided by its deviation.

    `values` (count, p) are those of the rows or columns of the table; `others` maps names that the
    table does not have to theirs (p,).
    """

    name: str
    values: Tensor
    mean: Tensor
    scale: Tensor
    others: dict[Name, Tensor]

    @classmethod
    def of(cls, x: Any, count: int, ids: Ids | None, name: str, like: Tensor) -> Self | None:
        """Return features (count, p) of a side; they may know more names than the table.

        A frame is aligned by its index, a `Table` by the names of its rows.
        """
        if x is None:
            return None
        wanted: Sequence[Any] = range(count) if ids is None else ids.names
        others: list[Any] = []
        labels = _names_of_lines(x, name)
        if labels is not None:
            places = {label: k for k, label in enumerate(labels)}
            missing = [label for label in wanted if label not in places]
            if missing and ids is not None:
                raise ValueError(
                    f"{name} must have a line for every id, got none for {missing[0]!r}"
                )
            if not missing:  # else an index of other labels says nothing about rows without names
                known = set(wanted)
                others = [label for label in labels if label not in known]
                x = _numbers(x)[[places[label] for label in (*wanted, *others)]]
        f = _feature_lines(x, name, like)
        if f.ndim != 2 or len(f) != count + len(others):
            raise ValueError(f"{name} must have shape ({count}, p), got {tuple(f.shape)}")
        mean = f[:count].mean(0)
        size = (f[:count] - mean).square().mean(0).sqrt()
        scale = torch.where(size > 0, size, 1.0)
        f = (f - mean) / scale
        return cls(name, f[:count], mean, scale, dict(zip(others, f[count:], strict=True)))

    def raw(self, ids: Ids | None, count: int) -> Tensor | None:
        """Return the features of a table that has grown, as they were given; None if not known."""
        more = range(len(self.values), count)
        names = more if ids is None else [ids[k] for k in more]
        if any(name not in self.others for name in names):
            return None
        lines = (self.values, *(self.others[name].unsqueeze(0) for name in names))
        return torch.cat(lines) * self.scale + self.mean

    def found(
        self, labels: Sequence[Any], unknown: np.ndarray, given: Any
    ) -> tuple[Tensor, np.ndarray]:
        """Return features (k, p) of names that the table does not have, and where they are known.

        From `given`, one line for each of the names, or a frame with these names as its index;
        else from what the fit was given.
        """
        out, known = self.values.new_zeros(len(labels), len(self.mean)), np.zeros_like(unknown)
        others, index = self.others, None
        if given is not None:
            index, lines = (
                _names_of_lines(given, self.name),
                _feature_lines(given, self.name, self.values),
            )
            if lines.ndim != 2 or lines.shape[1] != len(self.mean):
                raise ValueError(
                    f"{self.name} must have {len(self.mean)} columns as in the fit, got shape "
                    f"{tuple(lines.shape)}"
                )
            lines = (lines - self.mean) / self.scale
            if index is None:
                if len(lines) != len(labels):
                    raise ValueError(
                        f"{self.name} must have one line for each of {len(labels)} entries, got "
                        f"{len(lines)}"
                    )
                mask = torch.from_numpy(unknown).to(out.device)
                return torch.where(mask.unsqueeze(1), lines, out), unknown.copy()
            others = others | dict(zip(index, lines, strict=True))
        for k in np.flatnonzero(unknown):
            if (line := others.get(labels[k])) is not None:
                out[k], known[k] = line, True
        return out, known


def _numbers(x: Any) -> np.ndarray:
    return x.values if isinstance(x, Table) else np.asarray(x)


def _feature_lines(x: Any, name: str, like: Tensor) -> Tensor:
    x = x.values if isinstance(x, Table) else x
    f = as_float_tensor(x, name, dtype=like.dtype, device=like.device)
    return f.unsqueeze(1) if f.ndim == 1 else f


def _names_of_lines(x: Any, name: str) -> list[Any] | None:
    """Return the names in the index of a frame, each once; None of arrays."""
    index = x.rows if isinstance(x, Table) else getattr(x, "index", None)
    if index is None or callable(index):
        return None
    labels = [as_name(label, f"{name} id") for label in index]
    seen: set[Any] = set()
    for label in labels:
        if label in seen:
            raise ValueError(f"{name} must have one line for every id, got {label!r} repeatedly")
        seen.add(label)
    return labels
