"""Langevin dynamics: ``dln langevin``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dln_geometry.cli.exchange import RUNS, check_results, check_store, read_input
from dln_geometry.cli.files import option
from dln_geometry.cli.machine import as_machine
from dln_geometry.cli.matrices import read_widths
from dln_geometry.cli.report import depth_in_json, read_integers, shown_progress
from dln_geometry.cli.runs.finishing import (
    count_option,
    draw_paths,
    finish,
    grid_of,
    panels,
    positive_option,
)
from dln_geometry.cli.signals import continuable
from dln_geometry.dynamics.losses import Quadratic
from dln_geometry.dynamics.noise import langevin
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed
from dln_geometry.support import as_choice, as_depth, as_rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def follow_langevin(
    matrix: Path | None,
    shape: str | None,
    depth: float,
    rank: int | None,
    beta: float,
    kappa: float,
    entropy: bool,
    widths: str | None,
    scale: float,
    t_end: float,
    dt: float | None,
    chains: int,
    method: str,
    save: int | None,
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
    """Check the options, run the chains, and write and print their results."""
    began, machine = time.perf_counter(), as_machine(device, dtype, seed)
    with option("depth"):
        layers = as_depth(depth)
    positive_option(beta, "beta")
    positive_option(kappa, "kappa", zero=True)
    positive_option(scale, "scale")
    count_option(chains, "chains")
    with option("method"):
        as_choice(method, ("product", "splitting"), "method")
    grid, hidden = grid_of(t_end, dt, save), read_widths(widths)
    sides = size_option(shape)
    if (matrix is None) == (sides is None):
        got = "neither" if matrix is None else "both"
        raise ValueError(f"a file with the matrix Y or --shape must be given, got {got}")
    check_results(out, RUNS, figure, (matrix, store), force=force)
    loss = None
    if matrix is not None:
        check_store(store, matrix)
        y = machine.tensor(read_input(matrix, **reading).values)
        loss, sides = Quadratic(y), (y.shape[0], y.shape[1])
    assert sides is not None
    if rank is not None:
        with option("rank"):
            as_rank(rank, min(sides), "the smaller side of the matrix")
    kind: Any = {"dtype": machine.dtype, "device": machine.device}
    start = Collapsed.random(
        sides, rank, layers, scale=scale, generator=machine.generator(1), **kind
    )
    with continuable(store), shown_progress("langevin") as progress, option("widths"):
        path = langevin(
            loss,
            start,
            beta=beta,
            kappa=kappa,
            entropy=entropy,
            **grid,
            generator=machine.generator(),
            chains=chains,
            widths=hidden,
            method=method,
            progress=progress,
            store=store,
        )
    s = path.singular_values
    assert s is not None
    found = {
        "shape": " x ".join(map(str, sides)) if not as_json else list(sides),
        "depth": depth_in_json(depth),
        "beta": beta,
        "kappa": kappa,
        "chains": chains,
        "time": float(path.t[-1]),
        "steps": path.stats["steps"],
        "status": path.status if isinstance(path.status, str) else sorted(set(path.status)),
        "mean_loss": None if path.loss is None else float(path.loss[-1].double().mean()),
        "mean_singular_values": s[-1].double().mean(0),
        "spread_of_singular_values": s[-1].double().std(0, correction=1) if chains > 1 else None,
    }
    finish(
        "Langevin dynamics",
        found,
        path,
        out=out,
        figure=figure,
        drawn=lambda: _panels_of(path),
        as_json=as_json,
        began=began,
        caption="Means and standard deviations over the chains at the last time.",
    )


def size_option(text: str | None) -> tuple[int, int] | None:
    """Return the value of ``--shape``."""
    if text is None:
        return None
    sides = read_integers(text, "--shape")
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"--shape must be two positive integers m,n, got {text}")
    return sides[0], sides[1]


def _panels_of(path: Trajectory) -> Figure:
    """Draw singular values and loss of the chains against time."""
    assert path.singular_values is not None
    with_loss = path.loss is not None and bool(torch.isfinite(path.loss).all())
    figure, axes = panels(2 if with_loss else 1)
    draw_paths(axes[0], path.t, path.singular_values, "singular values")
    if with_loss and path.loss is not None:
        draw_paths(axes[1], path.t, path.loss[..., None], "loss")
    return figure
