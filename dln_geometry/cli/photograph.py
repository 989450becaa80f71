"""The main job: a photograph from 40 % of its pixels, by networks of several depths."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.report import (
    ReportedLoss,
    decibel,
    effective_rank,
    number,
    print_table,
    progress_bar,
    writable,
)
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Completion
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy
from dln_geometry.geometry.points import Collapsed, EndToEnd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Puzzle", "Result", "complete", "hide", "load_photograph", "run"]

DEPTHS = (1, 2, 3, 4)
HIDDEN = 0.6
START = 3e-4
"""Singular values of the start, relative to the Frobenius norm of the picture."""
RTOL = 1e-5
STOP = 0.03
"""Share of the variance of the observed pixels that every depth leaves unexplained."""


@dataclass(frozen=True)
class Puzzle:
    """A picture of which some pixels are hidden.

    Attributes
    ----------
    picture : Tensor, shape (m, n)
        Grey levels from 0 to 1.
    observed : Tensor of bool, shape (m, n)
        What the flow sees.
    mean, unit : float
        Mean of the observed pixels, and the norm that the whole centred picture has if it varies
        like them; ``(picture - mean) / unit`` is what is completed.
    """

    picture: Tensor
    observed: Tensor
    mean: float
    unit: float

    @property
    def loss(self) -> Completion:
        """The squared error on the observed pixels."""
        rows, cols = self.observed.nonzero(as_tuple=True)
        values = (self.picture[self.observed] - self.mean) / self.unit
        return Completion(rows, cols, values, (self.picture.shape[0], self.picture.shape[1]))


@dataclass(frozen=True)
class Result:
    """What one depth made of a puzzle: its run, the picture, the error on hidden pixels in dB."""

    depth: int
    trajectory: Trajectory
    picture: Tensor
    held_out: float


def load_photograph(height: int) -> Tensor:
    """Return the photograph that ships with matplotlib, grey, scaled to a height in pixels."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    path = get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(str(path)) as image:
        width = round(image.width * height / image.height)
        grey = image.convert("L").resize((width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(grey, dtype=np.float32) / 255.0)


def hide(picture: Tensor, share: float, generator: torch.Generator) -> Puzzle:
    """Hide a share of the pixels, drawn without replacement."""
    count = picture.numel()
    order = torch.randperm(count, generator=generator)
    observed = torch.zeros(count, dtype=torch.bool)
    observed[order[: count - round(share * count)]] = True
    observed = observed.reshape(picture.shape)
    seen = picture[observed]
    unit = float(seen.std(correction=0)) * math.sqrt(count)
    return Puzzle(picture, observed, float(seen.mean()), unit)


def run(out: Path, *, store: Path | None = None, quick: bool = False, seed: int = 0) -> None:
    """Complete the photograph at every depth, print the table, write the figure.

    Parameters
    ----------
    out : Path
        The figure.
    store : Path, optional
        Folder of the states from which a killed job continues.
    quick : bool
        Take a picture of 96 lines: a second instead of a quarter of a minute.
    seed : int
        Of the hidden pixels and of the start.

    Raises
    ------
    ValueError
        If `store` is a file, or holds the states of another job.
    """
    writable(out, (".png", ".pdf", ".svg"))
    height = 96 if quick else 320
    if store is not None and store.exists() and not store.is_dir():
        raise ValueError(f"--store must be a folder, got the file {store}")
    generator = torch.Generator().manual_seed(seed)
    puzzle = hide(load_photograph(height), HIDDEN, generator)
    with _one_thread(), progress_bar() as bar:
        task = bar.add_task("photograph", total=float(len(DEPTHS)), note="")
        results = []
        for k, depth in enumerate(DEPTHS):
            file = None if store is None else store / f"{height}-{seed}-depth-{depth}.pt"
            # Every depth starts from the same singular vectors.
            frames = torch.Generator().manual_seed(seed + 1)

            def tell(fraction: float, done: int = k, n: int = depth) -> None:
                bar.update(task, completed=done + fraction, note=f"depth {n}")

            results.append(complete(puzzle, depth, frames, file, tell))
        bar.update(task, completed=len(DEPTHS), note="figure")
        _figure(puzzle, results).savefig(out, dpi=200)
        bar.update(task, note="")
    _print(results)
    print(f"figure: {out}")


def complete(
    puzzle: Puzzle,
    depth: int,
    generator: torch.Generator,
    store: Path | None,
    tell: Callable[[float], None],
) -> Result:
    """Run the flow of one depth until the observed pixels are explained up to `STOP`.

    Parameters
    ----------
    puzzle : Puzzle
        What is to be completed.
    depth : int
        Number of layers.
    generator : torch.Generator
        Source of the singular vectors of the start.
    store : Path or None
        File from which a killed run continues.
    tell : callable
        Called with how much of the way is done, from 0 to 1.
    """
    loss = puzzle.loss
    first = 0.5 * float(loss.values.square().sum())
    last = STOP * first

    def report(value: float) -> None:
        # A trial step that will be rejected may lie anywhere, NaN included.
        if last < value < first:
            tell(math.log(first / value) / math.log(first / last))

    # Full rank: whatever is of low rank in the end, the flow has made so.
    start = Collapsed.random(loss.shape, None, depth, scale=START, generator=generator)
    trajectory = gradient_flow(
        ReportedLoss(loss, report),
        start,
        until={"loss": last},
        rtol=RTOL,
        # Low order means short steps: where few would do, they draw smooth curves.
        method="rk3" if depth <= 2 else None,
        store=store,
    )
    point = trajectory.final
    assert isinstance(point, Collapsed | EndToEnd)
    picture = puzzle.mean + puzzle.unit * point.matrix
    hidden = ~puzzle.observed
    error = (picture - puzzle.picture)[hidden].square().sum()
    variation = (puzzle.picture[hidden] - puzzle.mean).square().sum()
    return Result(depth, trajectory, picture, decibel(float(error / variation)))


def _print(results: Sequence[Result]) -> None:
    """Print a line for each depth."""
    rows = []
    for result in results:
        path = result.trajectory
        assert path.loss is not None
        assert path.singular_values is not None
        assert path.defect is not None
        point = path.final
        assert isinstance(point, Collapsed | EndToEnd)
        rows.append(
            (
                str(result.depth),
                number(float(path.loss[-1])),
                f"{round(result.held_out, 2) + 0.0:.2f}",
                f"{effective_rank(path.singular_values[-1]):.1f}",
                f"{float(entropy(point)):.1f}" if result.depth > 1 else "0",
                f"{float(path.defect.max()):.1e}" if result.depth > 1 else "–",
                f"{path.stats['seconds']:.1f}",
            )
        )
    columns = (
        "depth",
        "observed\nloss",
        "held-out\nerror (dB)",
        "effective\nrank",
        "entropy",
        "moments'\ndrift",
        "seconds",
    )
    print_table(
        f"A photograph from {1 - HIDDEN:.0%} of its pixels",
        columns,
        rows,
        "Held-out error: squared error on the hidden pixels over that of the mean\n"
        "grey; lower is better, 0 dB knows no more than the mean. Every depth stops\n"
        f"at its first step below {STOP:.0%} of the observed loss of the mean. Effective rank:\n"
        "exp of the entropy of s / sum s. Entropy: log volume of balanced factorisations.\n"
        "Drift: largest violation of balance on the way.",
    )


def _figure(puzzle: Puzzle, results: Sequence[Result]) -> Figure:
    """Draw the pictures, the singular values against time, and the entropy against the loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.5), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(2.5, 3.0))
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0, "interpolation": "nearest"}
    seen = torch.where(puzzle.observed, puzzle.picture, math.nan)
    pictures = [
        ("original", puzzle.picture),
        (f"observed ({1 - HIDDEN:.0%})", seen),
        *((f"depth {r.depth}: {_minus(r.held_out)} dB", r.picture) for r in results),
    ]
    for ax, (title, picture) in zip(top.subplots(1, len(pictures)), pictures, strict=True):
        plot.matrix(picture, ax, **grey).set_title(title, fontsize=10)
    panels = bottom.subplots(1, len(results) + 1, width_ratios=(*(1.0,) * len(results), 1.3))
    top_value = 1.05 * max(float(_largest(result.trajectory)) for result in results)
    for ax, result in zip(panels, results, strict=False):
        plot.singular_values(result.trajectory, ax).set_title(f"depth {result.depth}", fontsize=10)
        ax.set_ylim(0.0, top_value)
        if ax is not panels[0]:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
    for result, colour in zip(results[1:], ("C0", "C1", "C3"), strict=False):
        plot.entropy(
            result.trajectory,
            panels[-1],
            relative=True,
            color=colour,
            label=f"depth {result.depth}",
        )
    panels[-1].set_title("entropy against loss", fontsize=10)
    panels[-1].legend(frameon=False)
    return figure


def _minus(x: float) -> str:
    """Return a number of decibels as it is printed, with a minus and without -0."""
    return f"{round(x, 1) + 0.0:.1f}".replace("-", "−")


def _largest(trajectory: Trajectory) -> Tensor:
    assert trajectory.singular_values is not None
    return trajectory.singular_values.max()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one core: the matrices are small, and waiting threads would cost more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
