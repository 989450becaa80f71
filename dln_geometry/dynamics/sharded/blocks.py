"""A loss that is a sum over blocks of rows of X, of which every process holds one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from dln_geometry.dynamics.losses import contract, evaluate
from dln_geometry.dynamics.sharded.keeper import SharedStore
from dln_geometry.dynamics.sharded.points import as_mesh, check_point, own_rows
from dln_geometry.dynamics.sharded.ranks import Ranks, sketch
from dln_geometry.dynamics.sharded.rows import rows_of
from dln_geometry.dynamics.store import digests
from dln_geometry.support import as_matrix_shape, check_loss


class RowBlocks:
    """The loss ``E(X) = sum_p E_p(rows of X in process p)``.

    An evaluation gathers the rows of R in every process, adds up ``G^T L`` where the rows of R
    live, and sums one number: 2 n r numbers sent and received by each process, whatever the loss.

    Parameters
    ----------
    local : Loss or None
        The loss of the rows that this process holds (`rows_of`), a sum; None where it has no data.
    shape : tuple of int
        Shape (m, n) of X.
    mesh : DeviceMesh
        The processes, along one axis.

    Examples
    --------
    In a process of its own, which holds all rows:

    >>> import torch
    >>> with dln.sharded.alone() as mesh:
    ...     rows = dln.losses.Completion([0, 1], [0, 1], [1.0, 3.0], (2, 2))
    ...     loss = dln.sharded.RowBlocks(rows, (2, 2), mesh)
    ...     start = dln.sharded.distribute(dln.Collapsed.random((2, 2), 1, 3, generator=0), mesh)
    ...     path = dln.gradient_flow(loss, start, t_end=1.0)
    ...     dln.sharded.gather(path).final.shape
    (2, 2)
    """

    def __init__(self, local: Any, shape: Any, mesh: DeviceMesh) -> None:
        self._set(local, as_matrix_shape(shape), Ranks(as_mesh(mesh)))
        self.ranks.together(self._check)
        self.ranks.alike("the same in all processes", shape=self.shape)

    def _set(self, local: Any, shape: tuple[int, int], ranks: Ranks) -> None:
        self.local, self.shape, self.ranks = local, shape, ranks
        self.first, self.last = rows_of(shape[0], ranks.count, ranks.rank)

    def _check(self) -> None:
        if self.local is None:
            return
        own = (self.last - self.first, self.shape[1])
        check_loss(self.local, own, "value", "gradient")
        if (given := getattr(self.local, "shape", own)) != own:
            raise ValueError(
                f"local must have the shape {own} of the rows {self.first} to {self.last} of X, "
                f"got {tuple(given)}"
            )
        if getattr(self.local, "reduction", "sum") != "sum":
            raise ValueError(
                "local must be a sum, got a mean over the data of one process: distribute the "
                "whole loss, or take sums"
            )

    @classmethod
    def of(cls, local: Any, shape: tuple[int, int], ranks: Ranks) -> RowBlocks:
        """Return the loss of parts that fit."""
        loss = object.__new__(cls)
        loss._set(local, shape, ranks)
        return loss

    def to(self, *, dtype: Any = None, device: Any = None) -> RowBlocks:
        """Return the loss on data of this dtype and device."""
        move = getattr(self.local, "to", None)
        local = self.local if move is None else move(dtype=dtype, device=device)
        return self if local is self.local else self.of(local, self.shape, self.ranks)

    def share(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E_p, G_p R, G_p^T L_p)`` of the own rows, given theirs of L and all of R."""
        if self.local is None or left.shape[-2] == 0:
            value = left.real.new_zeros(left.shape[:-2])
            return value, torch.zeros_like(left), torch.zeros_like(right)
        return contract(self.local, left, right)

    def own_value(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``E_p``, which must have the leading dimensions of the factors."""
        value, batch = self.share(left, right)[0], left.shape[:-2]
        if value.shape != batch:
            raise ValueError(
                f"loss must have one value for every start {tuple(batch)}, got shape "
                f"{tuple(value.shape)}"
            )
        return value

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` at ``X = L R^T``, all matrices by their own rows."""
        n = self.shape[1]
        value, g_right, g_left = self.share(left, self.ranks.gathered(right, n))
        return self.ranks.summed(value)[0], g_right, self.ranks.scattered(g_left, n)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(E, G)`` at X, both matrices by their own rows."""
        if self.local is None or not x.shape[-2]:
            value, g = x.real.new_zeros(x.shape[:-2]), torch.zeros_like(x)
        else:
            value, g = evaluate(self.local, x)
        return self.ranks.summed(value)[0], g

    def value(self, x: Any) -> Tensor:
        """Return ``E(X)`` at a point that is distributed like the loss, in every process."""
        loss, left, right = self._enter(x)
        return loss.ranks.summed(loss.share(left, right)[0])[0]

    def gradient(self, x: Any) -> Tensor:
        """Return the own rows of the Euclidean gradient, dense or sparse, (..., m_p, n)."""
        loss, left, right = self._enter(x)
        if loss.local is None or not left.shape[-2]:
            return left.new_zeros(*left.shape[:-1], self.shape[1])
        return loss.local.gradient(left @ right.mH)

    def _enter(self, x: Any) -> tuple[RowBlocks, Tensor, Tensor]:
        check_point(x, self.ranks)
        if x.shape != self.shape:
            raise ValueError(f"x must have the shape {self.shape} of the loss, got {x.shape}")
        own = own_rows(x, self.ranks)
        loss = self.to(dtype=own.dtype, device=own.device)
        return loss, own.L @ own.M, self.ranks.gathered(own.R, self.shape[1]).clone()

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the loss, whatever the number of processes that hold it."""
        local, ranks = self.local, self.ranks
        by_row, entries = getattr(local, "by_row", {}), getattr(local, "entries", ())
        own = getattr(local, "fingerprint", None)
        if local is not None and (own is None or own() is None):
            raise TypeError(f"loss must have a fingerprint for a store, got {local!r}")
        kinds = ranks.told(None if local is None else (type(local).__name__, dict(by_row), entries))
        kinds = [kind for kind in kinds if kind is not None]
        content: Any = {} if own is None else own()
        facts = {"shape": list(self.shape), "kinds": sorted({kind[0] for kind in kinds})}
        if len(facts["kinds"]) != 1 or not (kinds[0][1] or kinds[0][2]):
            # Losses of a user's own are told apart by process: the run needs as many again.
            return {**facts, "parts": ranks.told(digests({"": content}))}
        _, by_row, entries = kinds[0]
        content = dict(content)
        content.pop("shape", None)
        none = torch.zeros(0, 1)
        if entries:
            found = {name: content.pop(name, None) for name in entries}
            columns = [x.movedim(-1, 0) for x in found.values() if x is not None] or [none]
            columns[0] = columns[0] + self.first
            facts["entries"] = sketch(ranks, columns, None)
        for name, axis in by_row.items():
            if not name.startswith("_"):
                x = none if local is None else content.pop(name).movedim(axis, 0)
                facts[name] = sketch(ranks, [x], self.first)
        # The rest is the same in every process that has data.
        rest = ranks.told(None if local is None else digests({"": content}))
        return {**facts, "rest": next(x for x in rest if x is not None)}

    def held(
        self, path: Any, facts: dict[str, Any], schedule: Any
    ) -> AbstractContextManager[SharedStore]:
        """Open the store of a run on this loss: the first process writes it."""
        return SharedStore.opened(self.ranks, path, facts, schedule)

    def __repr__(self) -> str:
        m, n = self.shape
        return f"RowBlocks({m} x {n}, rows {self.first} to {self.last}, {self.local!r})"
