"""The gradient flow of the observed entries alone, to its end: ``dln complete --flow``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.completing.split import (
    check_limits,
    held_out_places,
    result_files,
    robust_bound,
    sides_of,
)
from dln_geometry.cli.exchange import save_array, save_figure
from dln_geometry.cli.files import deciding, option
from dln_geometry.cli.machine import Machine
from dln_geometry.cli.report import (
    Outcome,
    decibel,
    depth_in_json,
    number,
    outcome_of,
    print_json,
    print_table,
    shown_progress,
    worst_defect,
)
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Completion
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed
from dln_geometry.support import Depth, as_rank
from dln_geometry.tables import Budget, Entries, save_ids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".npy", ".npz", ".png", ".json")
"""Suffixes of the results: the matrix, the run, the figure, the names of rows and columns."""
EXPLAINED = 1e-3
"""Default rule: the share of the observed variation that may be left unexplained."""
STATES, PER_ENTRY, DENSE = 20, 20, 8
"""Numbers kept at once, measured: states of the network, numbers per entry, dense matrices."""
FLAT = 1e-3
"""Default rule: the norm of the gradient, relative to what a start of that scale can have."""


@dataclass(frozen=True)
class FlowPlan:
    """Options of a flow; `until` maps ``loss`` (as a share), ``gradient``, ``seconds``."""

    depth: Depth
    rank: int | None
    scale: float
    until: Mapping[str, float]
    t_end: float | None
    holdout: float
    center: bool
    machine: Machine
    rtol: float


@dataclass(frozen=True)
class _Split:
    """Seen entries as a loss of the centred matrix; held-out ones: rows, columns, values."""

    loss: Completion
    held: tuple[Tensor, Tensor, Tensor]
    mean: float


def complete_by_flow(
    entries: Entries,
    plan: FlowPlan,
    out: Path,
    *,
    budget: Budget,
    store: Path | None = None,
    as_json: bool = False,
) -> None:
    """Complete a matrix, write the results, print a table; `store` keeps the state of the run."""
    if plan.rank is not None:
        with option("rank"):
            as_rank(plan.rank, min(entries.shape), "the smaller side of the matrix")
    with deciding():
        budget.need(_memory(entries, plan), f"the run on {sides_of(entries.shape)}")
    split = _split(entries, plan)
    _warn_of_fixed_spaces(plan, entries.shape)
    with shown_progress("flow") as progress:
        trajectory = _run_flow(split.loss, plan, store, progress)
    outcome = outcome_of(trajectory)
    matrix, run, figure, names = result_files(out, SUFFIXES)
    # First the file that marks the others as results.
    save_ids(names, entries.row_ids, entries.col_ids)
    save_array(matrix, (outcome.matrix + split.mean).cpu().numpy())
    trajectory.save(run)
    save_figure(_panels(trajectory, outcome.matrix), figure, 150)
    written = [matrix, run, figure, names]
    if as_json:
        print_json(_told_of(trajectory, outcome, split, plan) | {"written": written})
        return
    _print_results(trajectory, outcome, split, plan)
    print(
        f"written: {out}.npy (matrix), {out}.npz (trajectory), {out}.png (figure), "
        f"{out}.json (names)"
    )


def _memory(entries: Entries, plan: FlowPlan) -> float:
    """Estimate the largest memory of a run in bytes: states, entries, and the dense result."""
    m, n = entries.shape
    rank = min(m, n) if plan.rank is None else plan.rank
    state = (m + n) * rank + rank * rank
    return 8.0 * (STATES * state + PER_ENTRY * len(entries.values) + DENSE * m * n)


def check_flow(plan: FlowPlan) -> None:
    """Refuse numbers out of range, by the names of the options."""
    if not 0 < plan.scale <= 10:
        raise ValueError(f"--scale must lie in (0, 10], got {plan.scale}")
    times = {"t-end": plan.t_end, "seconds": plan.until.get("seconds")}
    losses = {f"until-{name}": plan.until.get(name) for name in ("loss", "gradient")}
    check_limits(times | losses)


def _warn_of_fixed_spaces(plan: FlowPlan, shape: tuple[int, int]) -> None:
    """Name the spaces of the start that a flow of infinite depth cannot change."""
    rank = min(shape) if plan.rank is None else plan.rank
    pairs = zip(("column space", "row space"), shape, strict=True)
    names = [name for name, side in pairs if rank < side]
    if names and plan.depth.infinite:
        sys.stderr.write(
            f"warning: at infinite depth a flow of rank {rank} keeps the {' and '.join(names)} "
            "of its random start\n"
        )


def _split(entries: Entries, plan: FlowPlan) -> _Split:
    """Hold out a share of the entries, and centre the others."""
    rows, cols = (torch.from_numpy(x).to(plan.machine.device) for x in (entries.rows, entries.cols))
    values = plan.machine.tensor(entries.values)
    least, why = (2, ", for their mean is taken away") if plan.center else (1, "")
    seen, held = held_out_places(len(values), plan.holdout, plan.machine.seed, least, why)
    mean = float(values[seen].mean()) if plan.center else 0.0
    loss = Completion(rows[seen], cols[seen], values[seen] - mean, entries.shape)
    return _Split(loss, (rows[held], cols[held], values[held]), mean)


def _run_flow(loss: Completion, plan: FlowPlan, store: Path | None, progress: Any) -> Trajectory:
    """Run the gradient flow from a small balanced start."""
    m, n = loss.shape
    zero = 0.5 * float(loss.values.square().sum())
    if not zero > 0:
        what = "different from their mean" if plan.center else "different from 0"
        raise ValueError(f"the entries must be {what}, got all equal")
    size = plan.scale * math.sqrt(2.0 * zero / len(loss.values)) * math.sqrt(m * n)
    machine = plan.machine
    kind: Any = {"dtype": machine.dtype, "device": machine.device}
    start = Collapsed.random(
        (m, n), plan.rank, plan.depth, scale=size, generator=machine.generator(1), **kind
    )
    until = dict(plan.until)
    if plan.t_end is None and not {"loss", "gradient"} & until.keys():
        until["loss"] = EXPLAINED
        # Where the singular values are of size s the speed is about s^{1-1/N} |G|. The flow passes
        # its slow phases at the speed of its start, and is far slower only where it ends.
        until["gradient"] = FLAT * size ** (1.0 - plan.depth.inverse) * math.sqrt(2.0 * zero)
    if "loss" in until:
        until["loss"] *= zero
    return gradient_flow(
        loss, start, t_end=plan.t_end, until=until, rtol=plan.rtol, progress=progress, store=store
    )


def _held_out(outcome: Outcome, split: _Split) -> tuple[float, float]:
    """Return the rms errors on the held-out entries: of the flow, and of the mean."""
    rows, cols, held = split.held
    if not len(held):
        return math.nan, math.nan
    error = (outcome.matrix[rows, cols] + split.mean - held).square().mean().sqrt()
    return float(error), float((held - split.mean).square().mean().sqrt())


def _told_of(
    trajectory: Trajectory, outcome: Outcome, split: _Split, plan: FlowPlan
) -> dict[str, Any]:
    """Return the end of a flow for JSON."""
    count = len(split.loss.values)
    error, base = _held_out(outcome, split)
    return {
        "shape": list(split.loss.shape),
        "entries": count,
        "depth": depth_in_json(plan.depth),
        "rank": plan.rank,
        "mean": split.mean,
        "observed_loss": outcome.loss,
        "observed_error": math.sqrt(2.0 * outcome.loss / count),
        "held_out_entries": len(split.held[2]),
        "held_out_error": error,
        "held_out_mean_error": base,
        "effective_rank": outcome.effective_rank,
        "entropy": outcome.entropy,
        "defect": worst_defect(trajectory),
        "status": trajectory.status,
        "time": float(trajectory.t[-1]),
        "evaluations": trajectory.stats["evaluations"],
        "seconds": trajectory.stats["seconds"],
    }


def _print_results(trajectory: Trajectory, outcome: Outcome, split: _Split, plan: FlowPlan) -> None:
    (m, n), count = split.loss.shape, len(split.loss.values)
    held = split.held[2]
    rows = [
        ("matrix", f"{m} x {n}, rank <= {min(m, n) if plan.rank is None else plan.rank}"),
        ("depth", f"{plan.depth:g}"),
        ("entries seen", str(count)),
        ("entries held out", str(len(held))),
        ("mean taken away", number(split.mean) if plan.center else "–"),
        ("observed loss", number(outcome.loss)),
        ("observed rms error", number(math.sqrt(2.0 * outcome.loss / count))),
    ]
    if len(held):
        error, base = _held_out(outcome, split)
        shown = f"{decibel((error / base) ** 2):.2f}" if base else "–"
        rows += [("held-out rms error", number(error)), ("held-out error (dB)", shown)]
    rows += [
        ("effective rank", f"{outcome.effective_rank:.2f}"),
        ("entropy", number(outcome.entropy, 6)),
        ("moments' drift", outcome.drift),
        ("stopped by", str(trajectory.status)),
        ("time", number(float(trajectory.t[-1]))),
        ("evaluations", str(trajectory.stats["evaluations"])),
        ("seconds", outcome.seconds),
    ]
    caption = (
        "Held-out error: squared error over that of the mean of the seen entries;\n"
        "lower is better, 0 dB knows no more than the mean."
    )
    told = caption if len(held) and plan.center else None
    print_table("Matrix completion", ("", "value"), rows, told)


def _panels(trajectory: Trajectory, centred: Tensor) -> Figure:
    """Draw the matrix, the loss and the singular values against time, entropy against loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 7.0), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)
    bound = robust_bound(centred.cpu().numpy())
    plot.matrix(centred, a, vmin=-bound, vmax=bound, aspect="auto")
    a.set_title("completed, mean taken away")
    figure.colorbar(a.images[0], ax=a)
    plot.loss(trajectory, b).set_title("loss")
    plot.singular_values(trajectory, c).set_title("singular values")
    plot.entropy(trajectory, d).set_title("entropy against loss")
    return figure
