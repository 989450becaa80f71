"""How points behave as values: indexing, length, moves between devices and types, short reprs."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support import Depth, refuse_complex, shown


class Batch:
    """Points of one depth: frozen fields, some of them tensors with the batch in front.

    Two points are equal if they are the same object; compare their matrices for more.
    """

    # The tensors of a subclass, with the number of their own dimensions behind the batch.
    _tensors: ClassVar[dict[str, int]]
    matrix: Tensor
    shape: tuple[int, int]
    rank: int
    depth: Depth
    normalized: bool

    def point(self) -> Any:
        """Return the singular value decomposition, an `EndToEnd`."""
        raise NotImplementedError

    def _set(self, **fields: Any) -> None:
        """Set fields of a frozen point."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _first(self) -> tuple[Tensor, int]:
        """Return one of the tensors and the number of its own dimensions."""
        name, own = next(iter(self._tensors.items()))
        return getattr(self, name), own

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the point, and the matrix that derivatives are asked of, if any."""
        parts = (*(getattr(self, name) for name in self._tensors), getattr(self, "source", None))
        return tuple(part for part in parts if part is not None)

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions."""
        tensor, own = self._first()
        return tensor.shape[:-own]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self._first()[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self._first()[0].device

    def _map(self, f: Callable[[Tensor, int], Tensor]) -> Self:
        """Return the point with ``f(tensor, own dimensions)`` in the place of every tensor."""
        tensors = {name: f(getattr(self, name), own) for name, own in self._tensors.items()}
        make: Any = type(self)
        return make(**tensors, depth=self.depth, normalized=self.normalized, check=False)

    def replace(self, *, check: bool = True, **changes: Any) -> Self:
        """Return the point with some of its fields replaced.

        A normalisation that was the default at the old depth becomes the default at a new one.
        New tensors are checked as those of a new point are, unless ``check=False``.
        """
        fields = {name: getattr(self, name) for name in (*self._tensors, "depth", "normalized")}
        for name in changes:
            if name not in fields:
                raise TypeError(f"{type(self).__name__} has the fields {[*fields]}, got {name!r}")
        if self.normalized == self.depth.infinite:
            fields["normalized"] = None
        check = check and bool(changes.keys() & self._tensors.keys())
        make: Any = type(self)
        return make(**{**fields, **changes}, check=check)

    def select(self, index: Any) -> Self:
        """Return some points of the batch; `index` as for a tensor of shape `batch_shape`."""
        if not self.batch_shape:
            raise IndexError(f"a single {type(self).__name__} has no batch to be indexed")
        # Raises the IndexError of an index that does not fit the batch.
        torch.zeros((), device=self.device).expand(self.batch_shape)[index]
        return self._map(lambda x, own: indexed(x, index, own))

    def __getitem__(self, index: Any) -> Self:
        return self.select(index)

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError(f"a single {type(self).__name__} has no length")
        return self.batch_shape[0]

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Self]:
        return (self.select(i) for i in range(len(self)))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return the point with another dtype or device, as `torch.Tensor.to` does.

        Singular values stay real where the dtype is complex; a complex point cannot become real.
        Other types, and devices that are not there, are a `TypeError`.
        """
        try:
            dtype = torch.empty(0, dtype=self.dtype).to(*args, **kwargs).dtype
        except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
            given = ", ".join(map(shown, [*args, *kwargs.values()]))
            reason = str(error).partition("\n")[0]
            if reason.startswith("Expected one of"):  # torch lists all that it was ever built for
                reason = "it is no device"
            raise TypeError(
                "to must get a torch.dtype, a device that is there, or a tensor, "
                f"got {given}: {reason}"
            ) from None
        if not (dtype.is_floating_point or dtype.is_complex):
            raise TypeError(f"dtype must be a floating or complex type, got {dtype}")
        if dtype == self.dtype or not (dtype.is_complex or self.dtype.is_complex):
            return self._map(lambda x, _: x.to(*args, **kwargs))
        if not dtype.is_complex:
            raise TypeError(f"a {self.dtype} point has no real form, got the dtype {dtype}")

        def moved(x: Tensor, own: int) -> Tensor:
            return x.to(*args, **kwargs) if own == 2 else x.to(*args, **kwargs).real

        return self._map(moved)

    def detach(self) -> Self:
        """Return the point cut off from autograd."""
        return self._map(lambda x, _: x.detach())

    def expand(self, batch: Sequence[int]) -> Self:
        """Return the point with leading dimensions expanded to `batch`, without copies."""
        if tuple(batch) == self.batch_shape:
            return self
        return self._map(lambda x, own: x.expand(*batch, *x.shape[-own:]))

    def flatten(self) -> Self:
        """Return all points of the batch in one row; a single point is a row of one."""
        return self._map(lambda x, own: x.reshape(-1, *x.shape[-own:]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if dtype is not None and not np.issubdtype(dtype, np.complexfloating):
            refuse_complex("the point", self.dtype)
        return np.asarray(self.matrix.detach().cpu().numpy(), dtype=dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(described(self))})"

    def _repr_html_(self) -> str:
        return as_row(type(self).__name__, described(self))


def indexed(x: Tensor, index: Any, own: int) -> Tensor:
    """Return ``x[index]`` where the index goes to the dimensions before the last `own` ones."""
    index = index if isinstance(index, tuple) else (index,)
    ellipsis = any(i is Ellipsis for i in index)
    return x[(*index, *((slice(None),) * own if ellipsis else (Ellipsis,)))]


def described(point: Any) -> list[str]:
    """Return the words of a short repr: shape, rank, depth, batch, dtype, device."""
    m, n = point.shape
    parts = [f"{m} x {n}", f"rank {point.rank}", f"depth {point.depth:g}"]
    if point.normalized and not point.depth.infinite:
        parts.append("normalized")
    if hasattr(point, "widths"):
        parts.append(f"widths {point.widths}")
    if point.batch_shape:
        parts.append(f"batch {tuple(point.batch_shape)}")
    return [*parts, str(point.dtype).removeprefix("torch."), str(point.device)]


def as_row(name: str, parts: Sequence[str]) -> str:
    """Return the words of a short repr as a row of a table, for notebooks."""
    cells = "".join(f"<td>{html.escape(part)}</td>" for part in parts)
    return f"<table><tr><th>{html.escape(name)}</th>{cells}</tr></table>"


def check_field(**parts: Tensor) -> None:
    """Refuse two matrices of a point of which one is real and one complex."""
    if len({part.is_complex() for part in parts.values()}) > 1:
        got = " and ".join(str(part.dtype) for part in parts.values())
        raise TypeError(f"{' and '.join(parts)} must both be real or both complex, got {got}")


def check_alike(*parts: Tensor, s: Tensor | None = None) -> None:
    """Refuse tensors of different dtypes or devices; `s` is real where the others are complex."""
    if s is not None and s.dtype == parts[0].dtype.to_real():
        parts = (*parts, s.to(parts[0].dtype)) if parts[0].is_complex() else (*parts, s)
    elif s is not None:
        parts = (*parts, s)
    for part in parts[1:]:
        if (part.dtype, part.device) != (parts[0].dtype, parts[0].device):
            got = " and ".join(f"{x.dtype} on {x.device}" for x in (parts[0], part))
            raise ValueError(f"the tensors of a point must share dtype and device, got {got}")


def check_orthonormal(frame: Tensor, name: str, bound: float, what: str = "columns") -> None:
    """Refuse a frame whose columns are not orthonormal up to `bound`."""
    eye = torch.eye(frame.shape[-1], dtype=frame.dtype, device=frame.device)
    deviation = (frame.mH @ frame - eye).abs()
    error = float(deviation.detach().max()) if deviation.numel() else 0.0
    if not error <= bound:
        raise ValueError(f"{name} must have orthonormal {what}, got a deviation of {error:.1e}")


def check_spectrum(s: Tensor, name: str) -> None:
    """Refuse singular values that are negative, or do not descend."""
    s, eps = s.detach(), torch.finfo(s.dtype).eps
    if bool((s < 0).any()):
        raise ValueError(f"{name} must be non-negative, got {float(s.min()):.3g}")
    if bool((s[..., 1:] > s[..., :-1] * (1.0 + 10.0 * eps)).any()):
        raise ValueError(f"{name} must descend, got values that rise: sort them with their vectors")
