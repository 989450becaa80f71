"""What all runs share: ranges of options, the results of a run, axes of figures."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dln_geometry.cli.exchange import save_figure, write_run
from dln_geometry.cli.files import option
from dln_geometry.cli.report import print_found
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import as_count, as_positive

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

DRAWN = 30
"""Paths that a figure shows at most."""
STEPS = 1000
"""Steps of a random motion where ``--dt`` is not given."""
MOST_STEPS = 10_000_000
"""More are taken for a slip of the pen."""


def positive_option(value: float | None, name: str, *, zero: bool = False) -> float | None:
    """Return the value of an option that must be positive, or None where it is not given."""
    with option(name):
        return None if value is None else as_positive(value, name, zero=zero)


def count_option(value: int | None, name: str, least: int = 1) -> int | None:
    """Return the value of an option that counts, or None where it is not given."""
    with option(name):
        return None if value is None else as_count(value, name, least)


def grid_of(t_end: float, dt: float | None, save: int | None) -> dict[str, Any]:
    """Return the times of a random motion: its end, its step, and when it is saved."""
    end, step = positive_option(t_end, "t-end"), positive_option(dt, "dt")
    assert end is not None
    step = end / STEPS if step is None else step
    if end / step > MOST_STEPS:
        raise ValueError(f"--dt must make at most {MOST_STEPS} steps, got {step:g} to {end:g}")
    if count_option(save, "save", 2) is None:
        return {"t_end": end, "dt": step}
    assert save is not None
    times = torch.linspace(0.0, end, save, dtype=torch.float64)
    # Intervals that a rounding makes longer than the step must not take two.
    return {"t_end": end, "dt": step * (1 + 1e-9), "save_at": times}


def finish(
    title: str,
    found: dict[str, Any],
    run: Trajectory | xarray.Dataset,
    *,
    out: Path | None,
    figure: Path | None,
    drawn: Any,
    as_json: bool,
    began: float,
    caption: str = "",
) -> None:
    """Write the run and its figure (`drawn` makes it), and print what was found."""
    if out is not None:
        write_run(out, run)
    if figure is not None:
        save_figure(drawn(), figure, 200)
    found["seconds"] = time.perf_counter() - began
    found["written"] = [path for path in (out, figure) if path is not None]
    print_found(title, found, json=as_json, caption=caption)


def panels(count: int) -> tuple[Figure, Any]:
    """Return a figure with panels side by side."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(4.5 * count, 3.4), layout="constrained")
    return made, made.subplots(1, count, squeeze=False)[0]


def draw_paths(ax: Any, t: Tensor, values: Tensor, ylabel: str) -> None:
    """Draw series against time: one colour a sample, the first of them."""
    sampled = values.reshape(len(t), -1, values.shape[-1])[:, :DRAWN].cpu()
    count = sampled.shape[1]
    for k in range(count):
        ax.plot(t.cpu(), sampled[:, k], color=f"C{k % 10}", linewidth=0.9 if count < 6 else 0.5)
    more = math.prod(values.shape[1:-1]) - count
    ax.set(xlabel="time", ylabel=ylabel, title=f"{count} of {count + more} paths" if more else "")
    ax.set_xlim(float(t[0]), float(t[-1]))
