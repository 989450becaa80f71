"""Complete the matrix of a user from its observed entries: ``dln complete``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.files import Entries
from dln_geometry.cli.report import Outcome, check_output, decibel, number, outcome_of, print_table
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Completion
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed
from dln_geometry.support import Depth, as_rank, written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".npy", ".npz", ".png")
"""Suffixes of the results: the matrix, the run, the figure."""
EXPLAINED = 1e-3
"""Default rule: the share of the observed variation that may be left unexplained."""
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


def complete_matrix(
    entries: Entries, plan: Plan, out: Path, *, store: Path | None = None, progress: bool = False
) -> None:
    """Complete a matrix, write the results, print a table; `store` keeps the state of the run."""
    _check_plan(plan, entries.shape)
    paths = [out.with_name(out.name + suffix) for suffix in SUFFIXES]
    for path in paths:
        check_output(path, SUFFIXES)
    split = _split(entries, plan)
    m, n = entries.shape
    print(f"layout: {entries.layout}; {len(entries.values)} known entries of {m} x {n}")
    _warn_of_fixed_spaces(plan, entries.shape)
    trajectory = _run_flow(split.loss, plan, store, progress)
    outcome = outcome_of(trajectory)
    matrix = outcome.matrix + split.mean
    with written_whole(paths[0]) as handle:
        np.save(handle, matrix.numpy(), allow_pickle=False)
    trajectory.save(paths[1])
    _panels(trajectory, outcome.matrix).savefig(paths[2], dpi=150)
    _print_results(trajectory, outcome, split, plan)
    print(f"written: {out}.npy (matrix), {out}.npz (trajectory), {out}.png (figure)")


def _check_plan(plan: Plan, shape: tuple[int, int]) -> None:
    """Refuse numbers out of range, by the names of the options."""
    if plan.rank is not None:
        as_rank(plan.rank, min(shape), "the smaller side of the matrix")
    if not 0 < plan.scale <= 10:
        raise ValueError(f"--scale must lie in (0, 10], got {plan.scale}")
    if not 0 <= plan.holdout < 1:
        raise ValueError(f"--holdout must lie in [0, 1), got {plan.holdout}")
    if plan.t_end is not None and not plan.t_end >= 0:
        raise ValueError(f"--t-end must be >= 0, got {plan.t_end}")
    for name, value in plan.until.items():
        if not value >= 0:
            option = "--seconds" if name == "seconds" else f"--until-{name}"
            raise ValueError(f"{option} must be >= 0, got {value}")


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
