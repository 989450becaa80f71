"""Points whose rows lie on several processes, as `Collapsed` of DTensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from dln_geometry.dynamics.sharded.ranks import Ranks
from dln_geometry.dynamics.sharded.rows import rows_of
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_depth


class ShardedPoint(Collapsed):
    """A `Collapsed` of DTensors: several processes hold the rows of L and R.

    All processes ask together for its singular values and its defect. What needs all rows of a
    matrix in one process is refused in words.
    """

    L: Any
    R: Any

    def _small(self) -> Collapsed:
        """Return the point of the triangular factors, which every process has."""
        ranks = Ranks(self.L.device_mesh)
        a, b = (ranks.triangle(x.detach().to_local())[0] for x in (self.L, self.R))
        return Collapsed(a, b, self.depth, self.normalized, check=False)

    @property
    def singular_values(self) -> Any:
        return self._small().singular_values

    def defect(self) -> Tensor:
        return self._small().defect()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        """Raise TypeError: it needs all rows in one process."""
        raise TypeError(
            "point must be whole, got rows that several processes hold: sharded.gather(point) puts "
            "them together"
        )

    M: Any = property(_refuse)
    matrix: Any = property(_refuse)
    point = factors = entries = power = __array__ = _refuse


def is_sharded(point: Any) -> bool:
    """Tell whether a point is a `Collapsed` of DTensors."""
    return isinstance(point, Collapsed) and isinstance(point.L, DTensor)


def cut(x: Tensor, ranks: Ranks) -> DTensor:
    """Return a matrix (..., m, r) that every process has as one of which each keeps its rows."""
    first, last = rows_of(x.shape[-2], ranks.count, ranks.rank)
    return by_rows(x[..., first:last, :].to(ranks.device).clone(), x.shape[-2], ranks)


def cut_point(point: Collapsed, ranks: Ranks) -> Collapsed:
    """Return a point that every process has, cut by rows."""
    left, right = (cut(x.detach(), ranks) for x in (point.L, point.R))
    return ShardedPoint(left, right, point.depth, point.normalized, check=False)


def by_rows(rows: Tensor, count: int, ranks: Ranks) -> DTensor:
    """Return the matrix with `count` rows of which this process holds these."""
    shape = (*rows.shape[:-2], count, rows.shape[-1])
    stride = torch.empty(shape, device="meta").stride()
    where = [Shard(rows.ndim - 2)]
    rows = rows.contiguous()
    return DTensor.from_local(
        rows, ranks.mesh, where, run_check=False, shape=torch.Size(shape), stride=stride
    )


def point_by_rows(
    left: Tensor, right: Tensor, like: Collapsed, shape: Any, ranks: Ranks
) -> Collapsed:
    """Return the point of the own rows of L and R, with depth and normalisation of another."""
    m, n = shape
    parts = by_rows(left, m, ranks), by_rows(right, n, ranks)
    return ShardedPoint(*parts, like.depth, like.normalized, check=False)


def own_rows(point: Collapsed, ranks: Ranks) -> Collapsed:
    """Return the own rows of a sharded point, whose M is that of all rows."""
    left, right = (x.detach().to_local() for x in (point.L, point.R))  # pyright: ignore
    own = Collapsed(left, right, point.depth, point.normalized, check=False)
    t = ranks.triangle(left)[0]
    small = Collapsed(t, t, point.depth, point.normalized, check=False)
    vars(own)["M"] = small.M
    return own


def frames(own: Collapsed, ranks: Ranks) -> EndToEnd:
    """Return the own rows of the singular vectors of a point, and its singular values."""
    (a, turn_a), (b, turn_b) = (ranks.triangle(x) for x in (own.L, own.R))
    small = Collapsed(a, b, own.depth, own.normalized, check=False).point()
    u, v = turn_a(small.u), turn_b(small.vh.mH)
    return EndToEnd(u, small.s, v.mH, own.depth, own.normalized, check=False)


def check_point(point: Any, ranks: Ranks) -> None:
    """Refuse a point that is not cut by rows over the processes of these."""
    if not is_sharded(point):
        got = type(point).__name__
        raise TypeError(
            "start must be a point that is distributed like the loss, by sharded.distribute(start, "
            f"mesh), got {got}{' of plain tensors' if isinstance(point, Collapsed) else ''}"
        )
    for name, x in (("start.L", point.L), ("start.R", point.R)):
        assert isinstance(x, DTensor)
        if x.device_mesh != ranks.mesh:
            raise ValueError(
                f"start and loss must be on one mesh, got {x.device_mesh} and {ranks.mesh}"
            )
        if tuple(x.placements) != (Shard(x.ndim - 2),):
            raise ValueError(f"{name} must be cut by rows, got the placements {x.placements}")


def sharded_point(
    left: Any, right: Any, depth: float, normalized: bool | None, ranks: Ranks, widths: Any = None
) -> Collapsed:
    """Return the point of the own rows of L and R, of `widths` (m, n) rows in all, checked."""

    def checked() -> Collapsed:
        point = Collapsed(left, right, as_depth(depth), normalized, check=False)
        for name, x, count in zip("LR", (point.L, point.R), counts, strict=True):
            first, last = rows_of(count, ranks.count, ranks.rank)
            if x.shape[-2] != last - first:
                raise ValueError(
                    f"{name} must have the rows {first} to {last} of {count} in process "
                    f"{ranks.rank}, got {x.shape[-2]} rows"
                )
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"{name} must be finite, got NaN or infinity")
        return point

    counts = widths or [int(ranks.agreed_sum(x.shape[-2])) for x in (left, right)]
    own = ranks.together(checked)
    a, b = (ranks.triangle(x)[0] for x in (own.L, own.R))
    # Raises unless the two are balanced.
    Collapsed(a, b, own.depth, own.normalized)
    return point_by_rows(own.L, own.R, own, counts, ranks)


def as_mesh(mesh: Any) -> DeviceMesh:
    """Return a mesh with one axis; ValueError if there is no process group or it has more."""
    if not torch.distributed.is_initialized():
        raise ValueError(
            "mesh must be one of a running process group, got none: call sharded.mesh() in "
            "processes that torchrun starts"
        )
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh must be a DeviceMesh, got {type(mesh).__name__}")
    if mesh.ndim != 1:
        raise ValueError(
            "mesh must have one axis, along which rows are cut; take one of its axes by its name; "
            f"got the shape {tuple(mesh.shape)}"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(f"mesh must hold this process, got {mesh}")
    return mesh
