"""Completion of a user's matrix from its observed entries."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.files import Entries
from dln_geometry.cli.report import decibel, effective_rank, number, print_table, writable
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Completion
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_depth, as_rank, written_whole

__all__ = ["WRITTEN", "Plan", "run"]

WRITTEN = (".npy", ".npz", ".png")
"""Suffixes of the results."""
EXPLAINED = 1e-3
"""Default rule: the share of the observed variation that may be left unexplained."""
FLAT = 1e-3
"""Default rule: the norm of the gradient, relative to what a start of that scale can have."""


@dataclass(frozen=True)
class Plan:
    """How to complete a matrix.

    Attributes
    ----------
    depth : float
        Real depth >= 1, or infinity.
    rank : int or None
        Bound on the rank; `None` is full rank.
    scale : float
        Singular values of the start, relative to the norm that the whole matrix has if it varies
        like its observed entries.
    until : mapping
        Stopping rules of the user: ``loss`` as a share of that of the mean, ``gradient``,
        ``seconds``.
    t_end : float or None
        End of time.
    holdout : float
        Share of the entries that the flow does not see, to measure the error on.
    center : bool
        Take the mean of the seen entries away, and add it again in the end.
    seed : int
        Of the held-out entries and of the start.
    rtol : float
        Tolerance of the integrator.
    """

    depth: float
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
    """Seen entries as a loss of the centred matrix, held-out ones as they were."""

    loss: Completion
    rows: Tensor
    cols: Tensor
    values: Tensor
    mean: float


def run(
    entries: Entries, plan: Plan, out: Path, *, store: Path | None = None, progress: bool = False
) -> None:
    """Complete a matrix; write ``OUT.npy``, ``OUT.npz`` (the run) and ``OUT.png``; print a table.

    Parameters
    ----------
    entries : Entries
        What is known.
    plan : Plan
        How to go on.
    out : Path
        Name of the results, without suffix.
    store : Path, optional
        File from which a killed run continues.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If the plan does not fit the entries.
    """
    _check(plan, entries.shape)
    for suffix in WRITTEN:
        writable(out.with_name(out.name + suffix), WRITTEN)
    split = _split(entries, plan)
    m, n = entries.shape
    print(f"layout: {entries.layout}; {len(entries.values)} known entries of {m} x {n}")
    _warn(plan, entries.shape)
    trajectory = _flow(split.loss, plan, store, progress)
    matrix = _matrix(trajectory) + split.mean
    with written_whole(out.with_name(f"{out.name}.npy")) as handle:
        np.save(handle, matrix.numpy(), allow_pickle=False)
    trajectory.save(out.with_name(f"{out.name}.npz"))
    _figure(trajectory, matrix, split).savefig(out.with_name(f"{out.name}.png"), dpi=150)
    _print(trajectory, matrix, split, plan)
    print(f"written: {out}.npy (matrix), {out}.npz (trajectory), {out}.png (figure)")


def _check(plan: Plan, shape: tuple[int, int]) -> None:
    """Refuse numbers that make no sense, by the names of the options."""
    as_depth(plan.depth)
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


def _warn(plan: Plan, shape: tuple[int, int]) -> None:
    """Say what a flow of infinite depth cannot change: there, zero singular values do not mix."""
    if not math.isinf(plan.depth):
        return
    rank = min(shape) if plan.rank is None else plan.rank
    spaces = ("column space", "row space")
    names = [name for name, side in zip(spaces, shape, strict=True) if rank < side]
    if names:
        sys.stderr.write(
            f"warning: at infinite depth a flow of rank {rank} keeps the {' and '.join(names)} "
            "of its random start\n"
        )


def _split(entries: Entries, plan: Plan) -> _Split:
    """Hold out a share of the entries, and centre the others."""
    rows, cols = torch.from_numpy(entries.rows), torch.from_numpy(entries.cols)
    values = torch.from_numpy(entries.values)
    count = len(values)
    out = round(plan.holdout * count)
    least = 2 if plan.center else 1
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
    return _Split(loss, rows[held], cols[held], values[held], mean)


def _flow(loss: Completion, plan: Plan, store: Path | None, progress: bool) -> Trajectory:
    """Run the gradient flow from a small balanced start."""
    m, n = loss.shape
    zero = 0.5 * float(loss.values.square().sum())
    if not zero > 0:
        what = "different from their mean" if plan.center else "different from 0"
        raise ValueError(f"the entries must be {what}, got all equal")
    spread = math.sqrt(2.0 * zero / len(loss.values))
    start = Collapsed.random(
        (m, n),
        plan.rank,
        plan.depth,
        scale=plan.scale * spread * math.sqrt(m * n),
        generator=torch.Generator().manual_seed(plan.seed + 1),
        dtype=loss.values.dtype,
    )
    until = dict(plan.until)
    if plan.t_end is None and not {"loss", "gradient"} & until.keys():
        until["loss"] = EXPLAINED
        # At a start s the velocity is of the order s^{1-1/N} |G|: the flow passes its slow
        # phases at about that speed, and is far below it only where it has come to rest.
        size = plan.scale * spread * math.sqrt(m * n)
        until["gradient"] = FLAT * size ** (1.0 - 1.0 / plan.depth) * math.sqrt(2.0 * zero)
    if "loss" in until:
        until["loss"] *= zero
    return gradient_flow(
        loss, start, t_end=plan.t_end, until=until, rtol=plan.rtol, progress=progress, store=store
    )


def _matrix(trajectory: Trajectory) -> Tensor:
    point = trajectory.final
    assert isinstance(point, Collapsed | EndToEnd)
    return point.matrix


def _print(trajectory: Trajectory, matrix: Tensor, split: _Split, plan: Plan) -> None:
    """Print what was done and how good it is."""
    loss = split.loss
    count = len(loss.values)
    assert trajectory.loss is not None
    assert trajectory.singular_values is not None
    assert trajectory.defect is not None
    s = trajectory.singular_values[-1]
    point = trajectory.final
    assert isinstance(point, Collapsed | EndToEnd)
    final = float(trajectory.loss[-1])
    rows = [
        ("matrix", f"{loss.shape[0]} x {loss.shape[1]}, rank <= {s.shape[-1]}"),
        ("depth", f"{plan.depth:g}"),
        ("entries seen", str(count)),
        ("entries held out", str(len(split.values))),
        ("mean taken away", number(split.mean) if plan.center else "–"),
        ("observed loss", number(final)),
        ("observed rms error", number(math.sqrt(2.0 * final / count))),
    ]
    if len(split.values):
        error = (matrix[split.rows, split.cols] - split.values).square()
        base = (split.values - split.mean).square().sum()
        rows += [
            ("held-out rms error", number(float(error.mean().sqrt()))),
            ("held-out error (dB)", f"{decibel(float(error.sum() / base)):.2f}" if base else "–"),
        ]
    rows += [
        ("effective rank", f"{effective_rank(s):.2f}"),
        ("entropy", number(float(entropy(point)), 6)),
        ("moments' drift", f"{float(trajectory.defect.max()):.1e}" if plan.depth > 1 else "–"),
        ("stopped by", str(trajectory.status)),
        ("time", number(float(trajectory.t[-1]))),
        ("evaluations", str(trajectory.stats["evaluations"])),
        ("seconds", f"{trajectory.stats['seconds']:.1f}"),
    ]
    print_table(
        "Matrix completion",
        ("", "value"),
        rows,
        "Held-out error: squared error over that of the mean of the seen entries;\n"
        "lower is better, 0 dB knows no more than the mean."
        if len(split.values) and plan.center
        else None,
    )


def _figure(trajectory: Trajectory, matrix: Tensor, split: _Split) -> Figure:
    """Draw the matrix, the loss and the singular values against time, entropy against loss."""
    figure = Figure(figsize=(9.0, 7.0), layout="constrained")
    (a, b), (c, d) = figure.subplots(2, 2)
    plot.matrix(matrix - split.mean, a, aspect="auto").set_title("completed, mean taken away")
    figure.colorbar(a.images[0], ax=a)
    plot.loss(trajectory, b).set_title("loss")
    plot.singular_values(trajectory, c).set_title("singular values")
    plot.entropy(trajectory, d).set_title("entropy against loss")
    return figure
