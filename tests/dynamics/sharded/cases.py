"""Flows that one process and several run alike, as functions of what a process is given."""

from __future__ import annotations

import math
import os

import torch

import dln_geometry as dln
from dln_geometry import losses, sharded

F64 = torch.float64


def target(m, n, dtype=F64, seed=0):
    generator = torch.Generator().manual_seed(100 * m + n + seed)
    return torch.randn(m, n, generator=generator, dtype=F64).to(dtype)


def places(m, n):
    """Return rows and columns of some entries; the last row has none."""
    generator = torch.Generator().manual_seed(100 * m + n)
    return (torch.rand(m - 1, n, generator=generator) < 0.6).nonzero(as_tuple=True)


def quadratic(m, n, dtype=F64, **options):
    return losses.Quadratic(target(m, n, dtype), **options)


def completion(m, n, dtype=F64, kind=losses.Completion, weighted=False, **options):
    rows, cols = places(m, n)
    values = target(m, n, dtype)[rows, cols]
    if kind is losses.Logistic:
        options["offsets"], values = 0.1 * values, values.sigmoid()
    if weighted:
        options["weights"] = 0.5 + values.square()
    return kind(rows, cols, values, (m, n), **options)


def start(m, n, rank, depth, dtype=F64, spectrum=None, batch=()):
    spectrum = [1.0 - 0.2 * k for k in range(rank)] if spectrum is None else spectrum
    spectrum = torch.tensor(spectrum, dtype=dtype.to_real())
    return dln.Collapsed.random(
        (m, n), rank, depth, spectrum=spectrum, generator=1, dtype=dtype, batch=batch
    )


def inputs(k, n):
    return target(k, n, seed=7)


FEW = {"t_end": 0.02, "rtol": 1e-4, "method": "rk5", "save_at": [0.0, 0.01, 0.02]}

CASES = {
    # Loss, start, options. In four processes of 5 rows the last has none.
    "depth 1 below full rank": (quadratic(7, 5), start(7, 5, 2, 1), {}),
    "depth 1 of full rank": (completion(5, 6), start(5, 6, 5, 1), {"until": {"gradient": 0.01}}),
    "depth 2, a mean": (completion(9, 6, weighted=True, reduction="mean"), start(9, 6, 3, 2), {}),
    "depth 2, square": (quadratic(5, 5), start(5, 5, 5, 2), {"until": {"gradient": 0.01}}),
    "depth 3": (quadratic(6, 9), start(6, 9, 3, 3), {"until": {"gradient": 0.01}}),
    "depth 3 by eigh": (quadratic(6, 9), start(6, 9, 3, 3), {"engine": "spectral", "decay": 0.2}),
    "depth 4, float32": (completion(8, 9, torch.float32), start(8, 9, 2, 4, torch.float32), {}),
    "depth 4, one rank lost": (completion(8, 9), start(8, 9, 3, 4, spectrum=[1.0, 0.5, 0.0]), {}),
    "depth 6, square": (quadratic(4, 4), start(4, 4, 4, 6), {}),
    "depth 2.5, rebalanced": (
        completion(7, 5, kind=losses.Logistic),
        start(7, 5, 2, 2.5),
        {"rebalance": 1e-15, "decay": 0.1, "until": {"gradient": 0.01}},
    ),
    "depth 150": (quadratic(5, 5), start(5, 5, 2, 150), {"t_end": 1e-4, "save_at": None}),
    "infinite depth": (
        completion(5, 5),
        start(5, 5, 2, math.inf),
        {"until": {"gradient": 0.01}, "decay": 0.1},
    ),
    "regression": (losses.Regression(inputs(9, 5), target(9, 7)), start(7, 5, 2, 3), {}),
    "regression, no rest": (losses.Regression(inputs(3, 5), target(3, 7)), start(7, 5, 2, 3), {}),
    "Huber": (losses.Huber(target(7, 5), 0.5), start(7, 5, 2, 3), {}),
    "Huber on inputs": (
        losses.Huber(target(4, 7), 0.5, inputs=inputs(4, 5)),
        start(7, 5, 2, 3),
        {},
    ),
    "complex": (quadratic(7, 5, torch.complex128), start(7, 5, 2, 3, torch.complex128), {}),
    "a batch": (
        losses.Quadratic(torch.stack([target(7, 5), 3.0 * target(7, 5, seed=1)])),
        start(7, 5, 2, 3, batch=(2,)),
        {"until": {"gradient": 0.3}},
    ),
    "stabilised": (quadratic(7, 5), start(7, 5, 2, 3), {"method": "rkc"}),
    "automatic": (
        completion(7, 5),
        start(7, 5, 2, 2.5),
        {"method": None, "rtol": 1e-7, "keep_points": True},
    ),
    "until": (quadratic(7, 5), start(7, 5, 2, 2), {"t_end": 0.5, "until": {"loss": 12.0}}),
}


def flow(loss, point, options, **more):
    return dln.gradient_flow(loss, point, **{**FEW, **options, **more})


def told(path):
    """Return what is compared of a trajectory."""
    return {
        "matrix": path.final.matrix,
        "loss": path.loss,
        "singular values": path.singular_values,
        "defect": path.defect,
        "t": path.t,
        "status": path.status,
        "stats": {k: path.stats[k] for k in ("evaluations", "steps", "rejected", "corrections")},
    }


def every_case(mesh):
    results = {}
    for name, (loss, point, options) in CASES.items():
        cut = sharded.distribute(loss, mesh), sharded.distribute(point, mesh)
        path = flow(*cut, options)
        results[name] = told(sharded.gather(path))
        if path.points:
            ends = sharded.gather(path).points
            results[name]["points"] = [p.matrix for p in ends]
    return results


LOSS, POINT = completion(9, 7), start(9, 7, 2, 2.5)
VALIDATION = dln.Validation([0, 8, 3], [1, 2, 0], [1.0, -1.0, 0.5], (9, 7))
LONG = {"t_end": 0.2, "rtol": 1e-4, "save_at": None, "method": "rk5"}


def watched(mesh):
    """Return a run with a monitor, observables and a rule, from points that no process had."""
    point = sharded.random((9, 7), 2, 2.5, mesh, spectrum=[1.0, 0.5], generator=3, dtype=F64)
    own = sharded.rows_of(9, mesh.size(), mesh.get_local_rank())
    loss = sharded.RowBlocks(
        quadratic(9, 7).of_rows(*own) if own[0] < own[1] else None, (9, 7), mesh
    )
    path = dln.gradient_flow(
        loss,
        point,
        **LONG,
        monitor=sharded.distribute(VALIDATION, mesh),
        patience=5,
        observe={"norm": lambda p: sharded.gather(p).matrix.norm()},
    )
    whole = sharded.gather(path)
    seen = whole.monitored
    return {
        **told(whole),
        "norm": path.observed["norm"],
        "start": sharded.gather(point).matrix,
        "values": seen.values,
        "value": loss.value(point),
        "rows": loss.gradient(point),
        "singular values": point.singular_values,
        "defect": point.defect(),
        "traffic": dict(loss.ranks.traffic),
    }


def stored(mesh, folder, steps, die=None):
    """Return a run that goes on from a store, at most to a number of steps."""
    calls = 0

    def norm(p):
        nonlocal calls
        calls += 1
        if die is not None and calls == die and mesh.get_local_rank() == mesh.size() - 1:
            os._exit(1)
        return torch.zeros(())

    point = sharded.random((9, 7), 2, 2.5, mesh, spectrum=[1.0, 0.5], generator=3, dtype=F64)
    cut = sharded.distribute(LOSS, mesh), point
    more = {"store": folder, "every": {"steps": 1}, "observe": {"norm": norm}}
    until = {"steps": steps} if steps else {"loss": 0.0}
    monitor = sharded.distribute(VALIDATION, mesh)
    path = dln.gradient_flow(*cut, **LONG, **more, until=until, monitor=monitor)
    return told(sharded.gather(path))
