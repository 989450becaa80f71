"""Complete a photograph from 40 % of its pixels at several depths: ``dln`` without a command."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry import plot
from dln_geometry.cli.exchange import FIGURES, check_outputs, is_ours, save_figure
from dln_geometry.cli.machine import Machine, as_machine
from dln_geometry.cli.report import (
    Outcome,
    decibel,
    number,
    outcome_of,
    print_json,
    print_table,
    worst_defect,
)
from dln_geometry.cli.signals import continuable
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Completion
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed
from dln_geometry.support import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTHS = (1, 2, 3, 4)
HIDDEN = 0.6
START = 3e-4
"""Singular values of the start, relative to the Frobenius norm of the picture."""
RTOL = 1e-5
STOP = 0.03
"""Share of the variance of the observed pixels that every depth leaves unexplained."""


@dataclass(frozen=True)
class Puzzle:
    """A picture of grey levels from 0 to 1, of which the flow sees the `observed` pixels alone.

    It completes ``(picture - mean) / unit``: `mean` is that of the observed pixels, `unit` the norm
    of the whole centred picture if it varies like them.
    """

    picture: Tensor
    observed: Tensor
    mean: float
    unit: float

    @property
    def loss(self) -> Completion:
        """The squared error on the observed pixels."""
        (rows, cols), (m, n) = self.observed.nonzero(as_tuple=True), self.picture.shape
        values = (self.picture[self.observed] - self.mean) / self.unit
        return Completion(rows, cols, values, (m, n))


@dataclass(frozen=True)
class Result:
    """The completion of a puzzle at one depth, and its error on the hidden pixels in dB."""

    depth: int
    trajectory: Trajectory
    outcome: Outcome
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
    observed = torch.zeros(picture.shape, dtype=torch.bool)
    observed.view(-1)[order[: count - round(share * count)]] = True
    observed = observed.to(picture.device)
    seen = picture[observed]
    unit = float(seen.std(correction=0)) * math.sqrt(count)
    return Puzzle(picture, observed, float(seen.mean()), unit)


def complete_photograph(
    out: Path,
    *,
    store: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    as_json: bool = False,
    force: bool = False,
) -> None:
    """Complete the photograph at every depth, print the table, write the figure to `out`."""
    machine = as_machine(device, dtype, seed)
    with continuable(store):
        results = _complete_all(out, store, machine, quick=quick, force=force)
    if as_json:
        print_json({"depths": [_told_of_depth(result) for result in results], "written": [out]})
        return
    _print_depths(results)
    print(f"figure: {out}")


def _complete_all(
    out: Path, store: Path | None, machine: Machine, *, quick: bool, force: bool
) -> list[Result]:
    height = 96 if quick else 320
    if store is not None and store.exists() and not store.is_dir():
        raise ValueError(f"--store must be a folder, got the file {store}")
    states = [] if store is None else [store, *(_state(store, height, machine, n) for n in DEPTHS)]
    check_outputs([out], states, is_ours, force=force, suffixes=FIGURES)
    puzzle = hide(machine.tensor(load_photograph(height)), HIDDEN, machine.generator())
    results = []
    with _one_thread(), progress_bar("photograph", len(DEPTHS), stderr=True) as show:
        for k, depth in enumerate(DEPTHS):
            file = None if store is None else _state(store, height, machine, depth)
            # Every depth starts from the same singular vectors.
            frames = machine.generator(1)

            def tell(fraction: float, done: int = k, n: int = depth) -> None:
                show(done + fraction, f"depth {n}")

            results.append(complete_at_depth(puzzle, depth, frames, file, tell))
        show(len(DEPTHS), "figure")
        save_figure(_gallery(puzzle, results), out, 200)
        show(len(DEPTHS), "")
    return results


def _state(store: Path, height: int, machine: Machine, depth: int) -> Path:
    """Return the store of one depth."""
    kind = "" if machine.dtype == torch.float32 else "-double"
    return store / f"{height}-{machine.seed}{kind}-depth-{depth}.zarr"


def _told_of_depth(result: Result) -> dict[str, Any]:
    """Return the numbers of a depth for JSON."""
    outcome = result.outcome
    return {
        "depth": result.depth,
        "loss": outcome.loss,
        "held_out_decibel": result.held_out,
        "effective_rank": outcome.effective_rank,
        "entropy": outcome.entropy,
        "defect": worst_defect(result.trajectory),
        "seconds": result.trajectory.stats["seconds"],
    }


def complete_at_depth(
    puzzle: Puzzle,
    depth: int,
    generator: torch.Generator,
    store: Path | None = None,
    tell: Callable[[float], None] | None = None,
) -> Result:
    """Run the flow of one depth until `STOP` of the loss is left; tell the share of the way."""
    loss = puzzle.loss
    first = 0.5 * float(loss.values.square().sum())
    last = STOP * first

    def progress(_: float, info: dict[str, Any]) -> None:
        # By the loss: there is no end of time. It may lie above that of the start for a while.
        if tell is not None and info["loss"] < first:
            tell(math.log(first / max(info["loss"], last)) / math.log(first / last))

    # Full rank: if the matrix is of low rank in the end, the flow has made it so.
    kind: Any = {"dtype": loss.values.dtype, "device": loss.values.device}
    start = Collapsed.random(loss.shape, None, depth, scale=START, generator=generator, **kind)
    # The few long steps of a higher order would draw curves with corners.
    method, until = "rk3" if depth <= 2 else None, {"loss": last}
    trajectory = gradient_flow(
        loss, start, until=until, rtol=RTOL, method=method, progress=progress, store=store
    )
    outcome, hidden = outcome_of(trajectory), ~puzzle.observed
    picture = puzzle.mean + puzzle.unit * outcome.matrix
    error = (picture - puzzle.picture)[hidden].square().sum()
    variation = (puzzle.picture[hidden] - puzzle.mean).square().sum()
    return Result(depth, trajectory, outcome, picture, decibel(float(error / variation)))


def _print_depths(results: Sequence[Result]) -> None:
    rows = [
        {
            "depth": str(result.depth),
            "observed\nloss": number(result.outcome.loss),
            "held-out\nerror (dB)": _rounded(result.held_out, 2),
            "effective\nrank": f"{result.outcome.effective_rank:.1f}",
            "entropy": f"{result.outcome.entropy:.1f}" if result.depth > 1 else "0",
            "moments'\ndrift": result.outcome.drift,
            "seconds": result.outcome.seconds,
        }
        for result in results
    ]
    print_table(
        f"A photograph from {1 - HIDDEN:.0%} of its pixels",
        list(rows[0]),
        [list(row.values()) for row in rows],
        "Held-out error: squared error on the hidden pixels over that of the mean\n"
        "grey; lower is better, 0 dB knows no more than the mean. Every depth stops\n"
        f"at its first step below {STOP:.0%} of the observed loss of the mean. Effective rank:\n"
        "exp of the entropy of s / sum s. Entropy: log volume of balanced factorisations.\n"
        "Drift: largest violation of balance on the way.",
    )


def _gallery(puzzle: Puzzle, results: Sequence[Result]) -> Figure:
    """Draw the pictures, the singular values against time, and the entropy against the loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.5), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(2.5, 3.0))
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0, "interpolation": "nearest"}
    seen = torch.where(puzzle.observed, puzzle.picture, math.nan)
    pictures = {"original": puzzle.picture, f"observed ({1 - HIDDEN:.0%})": seen}
    for result in results:
        title = f"depth {result.depth}: {_rounded(result.held_out, 1)} dB".replace("-", "−")
        pictures[title] = result.picture
    axes = top.subplots(1, len(pictures))
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        plot.matrix(picture, ax, **grey).set_title(title, fontsize=10)
    count = len(results)
    *panels, last = bottom.subplots(1, count + 1, width_ratios=(*(1.0,) * count, 1.3))
    for ax, result in zip(panels, results, strict=True):
        plot.singular_values(result.trajectory, ax).set_title(f"depth {result.depth}", fontsize=10)
        if ax is not panels[0]:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
    top_value = max(ax.dataLim.y1 for ax in panels)
    for ax in panels:
        ax.set_ylim(0.0, 1.05 * top_value)
    for result, colour in zip(results[1:], ("C0", "C1", "C3"), strict=False):
        style: dict[str, Any] = {"color": colour, "label": f"depth {result.depth}"}
        plot.entropy(result.trajectory, last, relative=True, **style)
    last.set_title("entropy against loss", fontsize=10)
    last.legend(frameon=False)
    return figure


def _rounded(x: float, digits: int) -> str:
    """Return a number as text, without -0."""
    return f"{round(x, digits) + 0.0:.{digits}f}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one core: for small matrices more threads wait more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
