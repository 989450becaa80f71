"""Wrong calls on several processes: all of them must raise the same error."""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import losses, sharded
from tests.dynamics.sharded import cases


def _is_second(mesh):
    return mesh.get_local_rank() == 1


def _flow(mesh, loss=None, point=None, **options):
    loss = sharded.distribute(cases.LOSS, mesh) if loss is None else loss
    point = sharded.distribute(cases.POINT, mesh) if point is None else point
    return dln.gradient_flow(loss, point, **{**cases.LONG, **options})


def _rows(mesh, change):
    """Return a point from rows that one process has wrong."""
    point = dln.Collapsed.random((4, 3), 2, 3, generator=0)
    m, n = (sharded.rows_of(k, mesh.size(), mesh.get_local_rank()) for k in (4, 3))
    left, right = point.L[slice(*m)], point.R[slice(*n)]
    return sharded.from_rows(change(left) if _is_second(mesh) else left, right, 3, mesh)


def _own_loss(mesh, make):
    own = sharded.rows_of(9, mesh.size(), mesh.get_local_rank())
    return sharded.RowBlocks(make(own, mesh), (9, 7), mesh)


def _sometimes(mesh):
    """Return a function of a point that fails in one process."""

    def f(point):
        if _is_second(mesh):
            raise RuntimeError("out of luck")
        return torch.zeros(())

    return f


def other_mesh(mesh):
    return torch.distributed.device_mesh.DeviceMesh("cpu", list(reversed(range(mesh.size()))))


def grid(mesh):
    return torch.distributed.device_mesh.DeviceMesh("cpu", [[k] for k in range(mesh.size())])


WRONG = {
    # What is called, and what the error must say.
    "different points": (
        lambda mesh: sharded.distribute(
            dln.Collapsed.random((4, 3), 2, 3, generator=mesh.get_local_rank()), mesh
        ),
        "x must be the same in all processes",
    ),
    "different losses": (
        lambda mesh: sharded.distribute(
            losses.Quadratic(cases.target(4, 3, seed=mesh.get_local_rank())), mesh
        ),
        "x must be the same in all processes",
    ),
    "a loss that couples rows": (
        lambda mesh: sharded.distribute(losses.Sensing(torch.ones(1, 2, 2), [1.0]), mesh),
        "a sum over the rows of X, got Sensing",
    ),
    "a function": (
        lambda mesh: sharded.distribute(losses.from_callable(torch.sum), mesh),
        "of_rows(first, last), got CallableLoss",
    ),
    "twice": (
        lambda mesh: sharded.distribute(sharded.distribute(cases.POINT, mesh), mesh),
        "x must be whole",
    ),
    "no mesh": (lambda mesh: sharded.distribute(cases.POINT, 2), "must be a DeviceMesh, got int"),
    "two axes": (lambda mesh: sharded.distribute(cases.POINT, grid(mesh)), "must have one axis"),
    "two meshes": (
        lambda mesh: _flow(mesh, point=sharded.distribute(cases.POINT, other_mesh(mesh))),
        "start and loss must be on one mesh",
    ),
    "a whole start": (lambda mesh: _flow(mesh, point=cases.POINT), "distribute(start, mesh)"),
    "a whole loss": (lambda mesh: _flow(mesh, loss=cases.LOSS), "distribute(loss, mesh)"),
    "another shape": (
        lambda mesh: _flow(mesh, loss=sharded.distribute(cases.quadratic(5, 7), mesh)),
        "loss must be one of 9 x 7 matrices",
    ),
    "another rtol": (
        lambda mesh: _flow(mesh, rtol=1e-3 / (1 + mesh.get_local_rank())),
        "rtol must be the same in all processes",
    ),
    "layers": (lambda mesh: _flow(mesh, engine="layers"), 'must not be "layers"'),
    "rodas": (lambda mesh: _flow(mesh, method="rodas"), "explicit or stabilised"),
    "dense": (lambda mesh: _flow(mesh, dense=True), "dense must be False"),
    "a failing monitor": (lambda mesh: _flow(mesh, monitor=_sometimes(mesh)), "out of luck"),
    "a failing observable": (
        lambda mesh: _flow(mesh, observe={"f": _sometimes(mesh)}),
        "out of luck",
    ),
    "too few rows": (lambda mesh: _rows(mesh, lambda x: x[:0]), "L must have the rows"),
    "unequal dtypes": (lambda mesh: _rows(mesh, lambda x: x.double()), "of one dtype"),
    "unequal ranks": (lambda mesh: _rows(mesh, lambda x: x[:, :1]), "of one dtype, batch and rank"),
    "NaN": (lambda mesh: _rows(mesh, lambda x: x * torch.nan), "L must be finite"),
    "unbalanced": (lambda mesh: _rows(mesh, lambda x: 2.0 * x), "L and R must be balanced"),
    "integers": (lambda mesh: _rows(mesh, lambda x: x.long()), "must be a floating tensor"),
    "generators": (
        lambda mesh: sharded.random((4, 3), 2, 3, mesh, generator=mesh.get_local_rank()),
        "generator must be the same in all processes",
    ),
    "a generator that is none": (
        lambda mesh: sharded.random((4, 3), 2, 3, mesh, generator="0"),
        "generator must be a torch.Generator or an integer seed",
    ),
    "a local loss of another shape": (
        lambda mesh: _own_loss(mesh, lambda own, mesh: cases.quadratic(9, 7)),
        "loss must be one of 5 x 7 matrices",
    ),
    "a local mean": (
        lambda mesh: _own_loss(
            mesh, lambda own, mesh: cases.quadratic(own[1] - own[0], 7, reduction="mean")
        ),
        "local must be a sum",
    ),
    "Langevin": (
        lambda mesh: dln.langevin(
            sharded.distribute(cases.LOSS, mesh),
            cases.POINT,
            beta=1.0,
            t_end=0.1,
            dt=0.1,
            generator=0,
        ),
        "only gradient_flow runs on several processes",
    ),
    "Langevin from rows": (
        lambda mesh: dln.langevin(
            cases.LOSS,
            sharded.distribute(cases.POINT, mesh),
            beta=1.0,
            t_end=0.1,
            dt=0.1,
            generator=0,
        ),
        "point must be whole",
    ),
    "geometry": (
        lambda mesh: dln.cometric(sharded.distribute(cases.POINT, mesh), cases.target(9, 7)),
        "point must be whole",
    ),
    "a loss at rows": (
        lambda mesh: cases.LOSS.value(sharded.distribute(cases.POINT, mesh)),
        "point must be whole",
    ),
    "a file": (lambda mesh: _flow(mesh, t_end=0.0).save("path"), "a trajectory must be whole"),
    "gathering what is whole": (lambda mesh: sharded.gather(cases.POINT), "must be a distributed"),
    "a store that is none": (lambda mesh: _flow(mesh, store="/dev/null"), "store must be"),
}


def errors(mesh):
    found = {}
    for name, (call, _) in WRONG.items():
        try:
            call(mesh)
            found[name] = "no error"
        except (TypeError, ValueError, RuntimeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found
