"""Complete the matrix of a user from its observed entries: ``dln complete``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.files import deciding, option, save_array, save_figure
from dln_geometry.cli.report import Outcome, decibel, number, outcome_of, print_table
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Completion
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed
from dln_geometry.support import Depth, as_positive, as_rank
from dln_geometry.tables import Budget, Entries, load_ids, save_ids

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
class Plan:
    """Options of the command; `until` maps ``loss`` (as a share), ``gradient``, ``seconds``."""

    depth: Depth
    rank: int | None
    scale: float
    until: Mapping[str, float]
    t_end: float | None
    holdout: float
    center: bool
    seed: int
    rtol: float


@dataclass(frozen=True)
class _Split:
    """Seen entries as a loss of the centred matrix; held-out ones: rows, columns, values."""

    loss: Completion
    held: tuple[Tensor, Tensor, Tensor]
    mean: float


def results_of(out: Path) -> list[Path]:
    """Return the files of the results."""
    return [out.with_name(out.name + suffix) for suffix in SUFFIXES]


def are_results(paths: Sequence[Path]) -> bool:
    """Tell whether files are results of this command: their names of rows and columns are."""
    try:
        load_ids(paths[-1])
    except (OSError, ValueError):
        return False
    return True


def complete_matrix(
    entries: Entries,
    plan: Plan,
    out: Path,
    *,
    budget: Budget,
    store: Path | None = None,
    progress: bool = False,
) -> None:
    """Complete a matrix, write the results, print a table; `store` keeps the state of the run."""
    check_plan(plan)
    if plan.rank is not None:
        with option("rank"):
            as_rank(plan.rank, min(entries.shape), "the smaller side of the matrix")
    with deciding():
        budget.need(_memory(entries, plan), f"the run on {_sides(entries.shape)}")
    split = _split(entries, plan)
    known = f"{len(entries.values)} known entries of {_sides(entries.shape)}"
    print(f"layout: {entries.layout}; {known}")
    for note in entries.notes:
        print(f"note: {note}")
    _warn_of_fixed_spaces(plan, entries.shape)
    trajectory = _run_flow(split.loss, plan, store, progress)
    outcome = outcome_of(trajectory)
    matrix, run, figure, names = results_of(out)
    # First the file that marks the others as results.
    save_ids(names, entries.row_ids, entries.col_ids)
    save_array(matrix, (outcome.matrix + split.mean).numpy())
    trajectory.save(run)
    save_figure(_panels(trajectory, outcome.matrix), figure, 150)
    _print_results(trajectory, outcome, split, plan)
    print(
        f"written: {out}.npy (matrix), {out}.npz (trajectory), {out}.png (figure), "
        f"{out}.json (names)"
    )


def _sides(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _memory(entries: Entries, plan: Plan) -> float:
    """Estimate the largest memory of a run in bytes: states, entries, and the dense result."""
    m, n = entries.shape
    rank = min(m, n) if plan.rank is None else plan.rank
    state = (m + n) * rank + rank * rank
    return 8.0 * (STATES * state + PER_ENTRY * len(entries.values) + DENSE * m * n)


def check_plan(plan: Plan) -> None:
    """Refuse numbers out of range, by the names of the options."""
    if not 0 < plan.scale <= 10:
        raise ValueError(f"--scale must lie in (0, 10], got {plan.scale}")
    if not 0 <= plan.holdout < 1:
        raise ValueError(f"--holdout must lie in [0, 1), got {plan.holdout}")
    with option("rtol"):
        if as_positive(plan.rtol, "rtol") >= 1:
            raise ValueError(f"rtol must be less than 1, got {plan.rtol}")
    times = {"t-end": plan.t_end, "seconds": plan.until.get("seconds")}
    losses = {f"until-{name}": plan.until.get(name) for name in ("loss", "gradient")}
    for name, value in (times | losses).items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"--{name} must be >= 0 and finite, got {value}")


def _warn_of_fixed_spaces(plan: Plan, shape: tuple[int, int]) -> None:
    """Name the spaces of the start that a flow of infinite depth cannot change."""
    rank = min(shape) if plan.rank is None else plan.rank
    pairs = zip(("column space", "row space"), shape, strict=True)
    names = [name for name, side in pairs if rank < side]
    if names and plan.depth.infinite:
        sys.stderr.write(
            f"warning: at infinite depth a flow of rank {rank} keeps the {' and '.join(names)} "
            "of its random start\n"
        )


def _split(entries: Entries, plan: Plan) -> _Split:
    """Hold out a share of the entries, and centre the others."""
    rows, cols = torch.from_numpy(entries.rows), torch.from_numpy(entries.cols)
    values = torch.from_numpy(entries.values)
    count, least = len(values), 2 if plan.center else 1
    out = round(plan.holdout * count)
    if count - out < least:
        raise ValueError(
            f"too few entries are left to learn from: they must be at least {least}"
            f"{', for their mean is taken away' if plan.center else ''}, "
            f"got {count - out} of {count} with --holdout {plan.holdout:g}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(plan.seed))
    seen, held = order[out:], order[:out]
    mean = float(values[seen].mean()) if plan.center else 0.0
    loss = Completion(rows[seen], cols[seen], values[seen] - mean, entries.shape)
    return _Split(loss, (rows[held], cols[held], values[held]), mean)


def _run_flow(loss: Completion, plan: Plan, store: Path | None, progress: bool) -> Trajectory:
    """Run the gradient flow from a small balanced start."""
    m, n = loss.shape
    zero = 0.5 * float(loss.values.square().sum())
    if not zero > 0:
        what = "different from their mean" if plan.center else "different from 0"
        raise ValueError(f"the entries must be {what}, got all equal")
    size = plan.scale * math.sqrt(2.0 * zero / len(loss.values)) * math.sqrt(m * n)
    generator, dtype = torch.Generator().manual_seed(plan.seed + 1), loss.values.dtype
    start = Collapsed.random(
        (m, n), plan.rank, plan.depth, scale=size, generator=generator, dtype=dtype
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


def _print_results(trajectory: Trajectory, outcome: Outcome, split: _Split, plan: Plan) -> None:
    (m, n), count = split.loss.shape, len(split.loss.values)
    held_rows, held_cols, held = split.held
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
        error = (outcome.matrix[held_rows, held_cols] + split.mean - held).square()
        base = (held - split.mean).square().sum()
        rows += [
            ("held-out rms error", number(float(error.mean().sqrt()))),
            ("held-out error (dB)", f"{decibel(float(error.sum() / base)):.2f}" if base else "–"),
        ]
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
    shown = caption if len(held) and plan.center else None
    print_table("Matrix completion", ("", "value"), rows, shown)


def _panels(trajectory: Trajectory, centred: Tensor) -> Figure:
    """Draw the matrix, the loss and the singular values against time, entropy against loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 7.0), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)
    plot.matrix(centred, a, aspect="auto").set_title("completed, mean taken away")
    figure.colorbar(a.images[0], ax=a)
    plot.loss(trajectory, b).set_title("loss")
    plot.singular_values(trajectory, c).set_title("singular values")
    plot.entropy(trajectory, d).set_title("entropy against loss")
    return figure
