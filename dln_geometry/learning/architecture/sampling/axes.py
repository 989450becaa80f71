"""Linear maps between a few slices of every axis: directions of parameters of any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Columns are dependent if a unit combination of them is shorter than the root of this.
_DEPENDENT = 1e-10


@dataclass(frozen=True, eq=False)
class _Axis:
    """Some slices of one axis, and what may be added to them: each other, and ones."""

    axis: int
    places: Tensor
    # Shape (sources, entries of a slice).
    sources: Tensor

    def rows(self, x: Tensor) -> Tensor:
        """Return the slices of a tensor like the parameter, shape (places, entries)."""
        some = x.index_select(self.axis, self.places).movedim(self.axis, 0)
        return some.reshape(len(self.places), -1)


class SampledAxes:
    """Directions of parameters that add to some slices multiples of each other and of ones.

    On each of the first two axes of each parameter ``slice_i += a_ij slice_j`` and
    ``slice_i += b_i``, i and j among a few places, the same for all axes of one length, since the
    units of two layers that touch have the same numbers. So they hold scales, rescalings, gauges,
    rotations and shifts of these units. Of whole parameters their multiples are directions, too.

    Parameters
    ----------
    params : dict of str to Tensor
    places : dict of int to Tensor
        The places, for each length of an axis.
    """

    def __init__(self, params: Mapping[str, Tensor], places: Mapping[int, Tensor]) -> None:
        self.params = dict(params)
        self._axes: dict[str, list[_Axis]] = {}
        self._wholes: dict[str, list[Tensor]] = {}
        for name, q in self.params.items():
            own = []
            for axis, n in enumerate(q.shape[:2]):
                at = places[n].to(q.device)
                slices = q.index_select(axis, at).movedim(axis, 0).reshape(len(at), -1)
                ones = torch.ones_like(slices[:1])
                # The multiples of the entries of a vector are those of ones.
                own.append(_Axis(axis, at, torch.cat([slices, ones]) if q.ndim > 1 else ones))
            self._axes[name] = own
            self._wholes[name] = [q, torch.ones_like(q)] if q.ndim == 1 else [q]
        self._maps = {name: self._orthonormal(name) for name in self.params}

    @property
    def count(self) -> int:
        """Number of independent directions."""
        return sum(m.shape[1] for m in self._maps.values())

    def row(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """Return the products of a gradient with an orthonormal basis of the directions."""
        return torch.cat([self._products(n, gradient[n]) @ m for n, m in self._maps.items()])

    def direction(self, coordinates: Tensor) -> dict[str, Tensor]:
        """Return the direction with these coordinates in the basis."""
        found, start = {}, 0
        for name, mapped in self._maps.items():
            own = mapped @ coordinates[start : start + mapped.shape[1]]
            start += mapped.shape[1]
            found[name] = self._made(name, own)
        return found

    def _made(self, name: str, columns: Tensor) -> Tensor:
        q = self.params[name]
        out, start = torch.zeros_like(q), 0
        for a in self._axes[name]:
            count = len(a.places) * len(a.sources)
            mixed = columns[start : start + count].reshape(len(a.places), -1) @ a.sources
            start += count
            shape = q.shape[: a.axis] + q.shape[a.axis + 1 :]
            out.index_add_(a.axis, a.places, mixed.reshape(-1, *shape).movedim(0, a.axis))
        for factor, whole in zip(columns[start:], self._wholes[name], strict=True):
            out += factor * whole
        return out

    def _products(self, name: str, x: Tensor) -> Tensor:
        """Return the products of a tensor with all directions of a parameter."""
        own = [(a.rows(x) @ a.sources.mT).flatten() for a in self._axes[name]]
        return torch.cat([*own, *((x * w).sum()[None] for w in self._wholes[name])])

    def _orthonormal(self, name: str) -> Tensor:
        """Return the combinations of the directions of a parameter that are orthonormal."""
        axes, whole = self._axes[name], self._wholes[name]
        sizes = [len(a.places) * len(a.sources) for a in axes]
        starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        n = starts[-1] + len(whole)
        gram = self.params[name].new_zeros(n, n)
        for a, start, size in zip(axes, starts, sizes, strict=False):
            same = torch.eye(len(a.places)).to(gram)
            place = slice(start, start + size)
            gram[place, place] = torch.kron(same, a.sources @ a.sources.mT)
        if len(axes) == 2:
            first, second = slice(0, sizes[0]), slice(starts[1], starts[2])
            gram[first, second] = mixed = self._crossed(name)
            gram[second, first] = mixed.mT
        for k, w in enumerate(whole, starts[-1]):
            gram[k] = gram[:, k] = self._products(name, w)
        scale = gram.diagonal().sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        values, vectors = torch.linalg.eigh(gram / scale / scale[:, None])
        kept = values > _DEPENDENT * max(float(values[-1]), 1e-300)
        return vectors[:, kept] / values[kept].sqrt() / scale[:, None]

    def _crossed(self, name: str) -> Tensor:
        """Return the products of the directions of the first axis with those of the second."""
        (a, b), shape = self._axes[name], self.params[name].shape
        rest = shape[2:].numel()
        along = a.sources.reshape(-1, shape[1], rest)[:, b.places]
        across = b.sources.reshape(-1, shape[0], rest)[:, a.places]
        mixed = torch.einsum("jko,lio->ijkl", along, across)
        return mixed.reshape(len(a.places) * len(a.sources), -1)
