"""Points and losses to the processes of a mesh and back, and the mesh itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from dln_geometry.dynamics.sharded.blocks import RowBlocks
from dln_geometry.dynamics.sharded.points import (
    as_mesh,
    cut_point,
    is_sharded,
    sharded_point,
)
from dln_geometry.dynamics.sharded.ranks import Ranks
from dln_geometry.dynamics.sharded.rows import rows_of
from dln_geometry.dynamics.store import digests
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_choice, as_matrix_shape, as_positive, as_rank, as_seed

ROWS = 1024
"""Rows that are drawn from one stream of random numbers."""


def mesh(*, device: str | None = None, timeout: float = 300.0) -> DeviceMesh:
    """Return all processes that torchrun started as a mesh with one axis; join them if need be.

    Parameters
    ----------
    device : {"cpu", "cuda"}, optional
        Where the matrices lie: by default on the GPUs if there are any, each process on the one
        of its ``LOCAL_RANK``. Processes on CPUs speak by gloo, on GPUs by NCCL.
    timeout : float
        Seconds after which a process that does not answer is given up.

    Raises
    ------
    ValueError
        If no launcher has told the process its number.

    Examples
    --------
    >>> try:
    ...     dln.sharded.mesh(device="cpu")
    ... except ValueError as error:
    ...     print(str(error)[:53])
    the process must be started by torchrun, which sets R
    """
    seconds = as_positive(timeout, "timeout")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    kind = kind if device is None else as_choice(device, ("cpu", "cuda"), "device")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError('device must be "cpu" without a GPU, got "cuda"')
    if not dist.is_initialized():
        if missing := [name for name in ("RANK", "WORLD_SIZE") if name not in os.environ]:
            raise ValueError(
                "the process must be started by torchrun, which sets RANK and WORLD_SIZE, got no "
                f"{' and no '.join(missing)}"
            )
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    return init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("rows",))


@contextmanager
def alone() -> Iterator[DeviceMesh]:
    """Yield a mesh of this process alone, on the CPU: what runs on it runs on any mesh.

    Examples
    --------
    >>> with dln.sharded.alone() as mesh:
    ...     mesh.size()
    1
    """
    if dist.is_initialized():
        raise ValueError("alone must be called outside of a process group, got a running one")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,), mesh_dim_names=("rows",))
    finally:
        dist.destroy_process_group()


def distribute(x: Any, mesh: DeviceMesh) -> Any:
    """Cut a point, a loss or a `Validation` by rows over the processes of a mesh.

    All processes must call it with the same whole `x`. Data that no process holds as a whole come
    as `from_rows`, `RowBlocks` or `random`.

    Parameters
    ----------
    x : Collapsed, EndToEnd, loss of data or Validation
        Of losses those that are sums over rows of X: `Quadratic`, `Completion`, `Regression`,
        `Logistic`, `Poisson`, `LpNorm`, `Huber`, and any with the method ``of_rows(first, last)``.
    mesh : DeviceMesh
        The processes, along one axis.

    Returns
    -------
    Collapsed of DTensors, `RowBlocks` or Validation

    Examples
    --------
    >>> with dln.sharded.alone() as mesh:
    ...     start = dln.sharded.distribute(dln.Collapsed.random((3, 2), 1, 3, generator=0), mesh)
    ...     type(start.L).__name__, tuple(start.L.shape)
    ('DTensor', (3, 1))
    """
    return _distributed(x, Ranks(as_mesh(mesh)))


def _distributed(x: Any, ranks: Ranks) -> Any:
    if is_sharded(x) or isinstance(x, RowBlocks):
        raise TypeError(f"x must be whole, got what is distributed already: {x!r}")
    if isinstance(x, Collapsed | EndToEnd):
        point = Collapsed.of(x).detach()
        ranks.alike("the same in all processes", x=digests({"x": point}))
        return cut_point(point, ranks)
    if callable(own := getattr(x, "distributed", None)):
        return own(lambda loss: _distributed(loss, ranks))
    if not callable(cut := getattr(x, "of_rows", None)):
        raise TypeError(
            "x must be a point or a loss that is a sum over the rows of X, with of_rows(first, "
            f"last), got {type(x).__name__}"
        )
    ranks.alike("the same in all processes", x=digests({"x": x}))
    part: Any = cut(*rows_of(x.shape[0], ranks.count, ranks.rank))
    # A loss of entries, none of which lies in these rows.
    empty = bool(getattr(part, "entries", ())) and not len(part.rows)
    part = None if empty else part.to(device=ranks.device) if hasattr(part, "to") else part
    return RowBlocks.of(part, tuple(x.shape), ranks)


def from_rows(
    left: Any, right: Any, depth: float, mesh: DeviceMesh, *, normalized: bool | None = None
) -> Collapsed:
    """Return the point of which this process holds these rows of L and R.

    Parameters
    ----------
    left, right : Tensor, shape (..., m_p, r) and (..., n_p, r)
        The rows `rows_of` says, or DTensors that are cut by rows over the mesh.
    depth, mesh, normalized
        As in `Collapsed` and `distribute`.

    Raises
    ------
    ValueError
        In all processes, if the rows of one do not fit, or L and R are not balanced.

    Examples
    --------
    >>> with dln.sharded.alone() as mesh:
    ...     dln.sharded.from_rows(torch.eye(3, 2), torch.eye(2), 3, mesh).shape
    (3, 2)
    """
    ranks = Ranks(as_mesh(mesh))
    parts: list[Any] = []

    def read() -> None:
        for name, x in (("left", left), ("right", right)):
            if isinstance(x, DTensor) and x.device_mesh != ranks.mesh:
                raise ValueError(f"{name} must be on the mesh, got {x.device_mesh}")
            x = x.to_local() if isinstance(x, DTensor) else x
            if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
                raise TypeError(f"{name} must be a floating tensor, got {type(x).__name__}")
            if x.ndim < 2:
                raise ValueError(f"{name} must have shape (..., rows, r), got {tuple(x.shape)}")
            parts.append(x.detach().to(ranks.device))

    ranks.together(read)
    facts = [(str(x.dtype), tuple(x.shape[:-2]), x.shape[-1]) for x in parts]
    ranks.alike("of one dtype, batch and rank in all processes", rows=facts)
    own_left, own_right = parts
    return sharded_point(own_left, own_right, depth, normalized, ranks)


def random(
    shape: tuple[int, int],
    rank: int,
    depth: float,
    mesh: DeviceMesh,
    *,
    scale: float = 1.0,
    spectrum: Any = None,
    generator: torch.Generator | int | None = None,
    dtype: torch.dtype | None = None,
) -> Collapsed:
    """Draw a point with Haar singular vectors, of which every process holds its rows alone.

    The same point, to rounding, on any number of processes; another one than `Collapsed.random`
    draws. A `generator` must be in the same state in all processes.

    Examples
    --------
    >>> with dln.sharded.alone() as mesh:
    ...     start = dln.sharded.random((3, 2), 2, 3, mesh, spectrum=[2.0, 1.0], generator=0)
    ...     dln.sharded.gather(start).singular_values.round(decimals=4)
    tensor([2., 1.])
    """
    ranks, (m, n) = Ranks(as_mesh(mesh)), as_matrix_shape(shape)
    r = as_rank(rank, min(m, n), "min(m, n)")
    seed = _seed_of(generator, ranks)
    # Of a square point, the columns of L have the lengths of all points with its spectrum.
    square = Collapsed.random(
        (r, r), r, depth, scale=scale, spectrum=spectrum, generator=0, dtype=dtype
    )
    root = torch.linalg.vector_norm(square.L, dim=-2).to(ranks.device)
    if root.ndim > 1:
        raise ValueError(f"spectrum must have shape ({r},), got {tuple(root.shape)}")
    sides = []
    for side, count in enumerate((m, n)):
        first, last = rows_of(count, ranks.count, ranks.rank)
        x = _normal_rows(first, last, r, (seed, side), square.dtype).to(ranks.device)
        t, turn = ranks.triangle(x)
        # With a positive diagonal of T the frame is unique, and Haar.
        sides.append(turn(torch.diag_embed(torch.diagonal(t).sgn())) * root)
    own_left, own_right = sides
    point = sharded_point(own_left, own_right, depth, square.normalized, ranks, (m, n))
    # Other processes make it to rounding: a store knows it by what it was drawn from.
    told = {"scale": scale, "spectrum": spectrum, "seed": seed, "dtype": square.dtype}
    vars(point)["origin"] = {"shape": (m, n), "rank": r, "depth": point.depth, **told}
    return point


def _seed_of(generator: Any, ranks: Ranks) -> int:
    """Return one seed in all processes."""
    if generator is None:
        return ranks.first(lambda: torch.Generator().seed() % 2**63)
    if isinstance(generator, torch.Generator):
        kind: Any = {"generator": generator, "device": generator.device}
        seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64, **kind))
    else:
        seed = ranks.together(lambda: as_seed(generator, "generator"))
    ranks.alike("the same in all processes", generator=seed)
    return seed


def _normal_rows(
    first: int, last: int, r: int, seed: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Return rows of a Gaussian matrix that do not depend on how it is cut."""
    parts = [torch.zeros(0, r, dtype=dtype)]
    for block in range(first // ROWS, -(-last // ROWS)):
        own = np.random.SeedSequence([*seed, block]).generate_state(1, np.uint64)
        stream = torch.Generator().manual_seed(int(own[0]))
        rows = torch.randn(ROWS, r, generator=stream, dtype=dtype)
        start = block * ROWS
        parts.append(rows[max(first - start, 0) : max(last - start, 0)])
    return torch.cat(parts)


def gather(x: Any) -> Any:
    """Return a distributed point, or a trajectory of such points, whole in every process.

    Examples
    --------
    >>> with dln.sharded.alone() as mesh:
    ...     start = dln.sharded.distribute(dln.Collapsed.random((3, 2), 1, 3, generator=0), mesh)
    ...     type(dln.sharded.gather(start).L).__name__
    'Tensor'
    """
    if is_sharded(x):
        left, right = x.L.full_tensor(), x.R.full_tensor()
        return Collapsed(left, right, x.depth, x.normalized, check=False)
    if isinstance(x, Trajectory):
        points = None if x.points is None else tuple(gather(p) for p in x.points)
        final = gather(x.final) if is_sharded(x.final) else x.final
        seen = x.monitored
        if seen is not None and is_sharded(seen.last):
            seen = replace(seen, last=gather(seen.last))
        return replace(x, final=final, points=points, monitored=seen)
    raise TypeError(f"x must be a distributed point or a trajectory, got {type(x).__name__}")
