"""A gradient flow to a matrix: ``dln flow``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dln_geometry import plot
from dln_geometry.cli.exchange import RUNS, check_results, check_store, read_input
from dln_geometry.cli.files import option
from dln_geometry.cli.machine import Machine, as_machine
from dln_geometry.cli.report import depth_in_json, outcome_of, shown_progress, worst_defect
from dln_geometry.cli.runs.finishing import count_option, finish, panels, positive_option
from dln_geometry.cli.signals import continuable
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Quadratic
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import Depth, as_depth, as_rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT = 1e-6
"""Default rule: the share of the loss of the matrix 0 that is left."""
FLAT = 1e-6
"""Default rule: the norm of the gradient, relative to what a start of that scale can have."""


def follow_flow(
    matrix: Path,
    depth: float,
    rank: int | None,
    scale: float,
    start: Path | None,
    decay: float,
    t_end: float | None,
    until_loss: float | None,
    until_gradient: float | None,
    seconds: float | None,
    save: int | None,
    rtol: float,
    out: Path | None,
    figure: Path | None,
    store: Path | None,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
    force: bool,
    **reading: Any,
) -> None:
    """Check the options, run the flow, and write and print its results."""
    began, machine = time.perf_counter(), as_machine(device, dtype, seed)
    with option("depth"):
        layers = as_depth(depth)
    with option("rtol"):
        if not 0 < rtol < 1:
            raise ValueError(f"rtol must lie in (0, 1), got {rtol}")
    positive_option(scale, "scale")
    positive_option(decay, "decay", zero=True)
    end = positive_option(t_end, "t-end")
    limits = {"loss": until_loss, "gradient": until_gradient, "seconds": seconds}
    names = {"loss": "until-loss", "gradient": "until-gradient", "seconds": "seconds"}
    until = {k: positive_option(x, names[k], zero=True) for k, x in limits.items() if x is not None}
    if count_option(save, "save", 2) is not None and end is None:
        raise ValueError(f"--save must come with --t-end, got --save {save} alone")
    check_results(out, RUNS, figure, (matrix, start, store), force=force)
    check_store(store, matrix)
    y = machine.tensor(read_input(matrix, **reading).values)
    point = _start(start, y, layers, rank, scale, machine, reading)
    size = float(torch.linalg.norm(y))
    if not size > 0:
        raise ValueError(f"{matrix} must hold a matrix different from 0")
    if end is None and not {"loss", "gradient"} & until.keys():
        until["loss"] = LEFT
        s = float(point.singular_values.max())
        until["gradient"] = FLAT * s ** (1.0 - layers.inverse) * size
    if "loss" in until:
        until["loss"] = (until["loss"] or 0.0) * 0.5 * size**2
    limit: Any = until
    loss = Quadratic(y)
    with continuable(store), shown_progress("flow") as progress:
        run = gradient_flow(
            loss,
            point,
            t_end=end,
            until=limit,
            decay=decay,
            save_at=save,
            rtol=rtol,
            progress=progress,
            store=store,
        )
    outcome = outcome_of(run)
    found = {
        "shape": " x ".join(map(str, y.shape)) if not as_json else list(y.shape),
        "depth": depth_in_json(depth),
        "rank": point.rank if isinstance(point, EndToEnd) else point.L.shape[-1],
        "status": run.status,
        "time": float(run.t[-1]),
        "loss": outcome.loss,
        "share_of_loss_left": outcome.loss / (0.5 * size**2),
        "effective_rank": outcome.effective_rank,
        "entropy": outcome.entropy,
        "singular_values": (run.singular_values if run.singular_values is not None else y)[-1],
        "defect": worst_defect(run),
        "evaluations": run.stats["evaluations"],
    }
    finish(
        f"Gradient flow to {matrix.name}",
        found,
        run,
        out=out,
        figure=figure,
        drawn=lambda: _drawn(run),
        as_json=as_json,
        began=began,
        caption="Defect: largest relative violation of balance on the way.",
    )


def _start(
    path: Path | None,
    y: torch.Tensor,
    depth: Depth,
    rank: int | None,
    scale: float,
    machine: Machine,
    reading: dict[str, Any],
) -> Collapsed | EndToEnd:
    """Return the matrix of a file as a point, or a random balanced start."""
    m, n = y.shape
    if rank is not None:
        with option("rank"):
            as_rank(rank, min(m, n), "the smaller side of the matrix")
    if path is None:
        size = scale * float(torch.linalg.norm(y)) / math.sqrt(min(m, n))
        generator = machine.generator(1)
        kind: Any = {"dtype": machine.dtype, "device": machine.device}
        return Collapsed.random((m, n), rank, depth, scale=size, generator=generator, **kind)
    x = machine.tensor(read_input(path, **reading).values)
    if x.shape != y.shape:
        raise ValueError(f"--start must be of shape {m} x {n}, got {x.shape[0]} x {x.shape[1]}")
    with option("start"):
        return EndToEnd.of(x, depth, rank=rank)


def _drawn(run: Trajectory) -> Figure:
    figure, (a, b) = panels(2)
    plot.loss(run, a).set_title("loss")
    plot.singular_values(run, b).set_title("singular values")
    return figure
