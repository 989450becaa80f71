"""Dyson Brownian motion: ``dln dyson``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dln_geometry.cli.exchange import RUNS, check_results
from dln_geometry.cli.files import option
from dln_geometry.cli.machine import as_machine
from dln_geometry.cli.report import depth_in_json, shown_progress
from dln_geometry.cli.runs.chains import size_option
from dln_geometry.cli.runs.finishing import (
    count_option,
    draw_paths,
    finish,
    grid_of,
    panels,
    positive_option,
)
from dln_geometry.cli.signals import continuable
from dln_geometry.dynamics.dyson import dln_dyson, dyson, singular_dyson
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import as_depth, as_real

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCHEMES = ("isospectral", "exact", "tridiagonal", "implicit")
_COUNT = 10
"""Particles where nothing tells how many."""
_BARS = 20
"""Positions at the end from which on a figure has a histogram of them."""


def follow_particles(
    particles: int | None,
    index: float | None,
    shape: str | None,
    depth: float | None,
    start: str | None,
    beta: float,
    kappa: float,
    entropy: bool,
    confinement: float,
    scheme: str,
    t_end: float,
    dt: float | None,
    paths: int,
    save: int | None,
    out: Path | None,
    figure: Path | None,
    store: Path | None,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
    force: bool,
) -> None:
    """Check the options, run the motion, and write and print its results."""
    began, machine = time.perf_counter(), as_machine(device, dtype, seed)
    grid, sides = grid_of(t_end, dt, save), size_option(shape)
    count_option(paths, "paths")
    with option("index"):
        b = (2.0 if sides is None else 1.0) if index is None else index
        as_real(b, "index")
        if not b > 0:
            raise ValueError(f"index must be positive (inf is allowed), got {b}")
    positive_option(confinement, "confinement", zero=True)
    if scheme not in _SCHEMES:
        raise ValueError(f"--scheme must be one of {', '.join(_SCHEMES)}, got {scheme}")
    others = {"--index": index, "--confinement": confinement or None}
    if depth is None and scheme == _SCHEMES[0]:
        others = {}
    elif depth is None:
        others = {"--scheme": scheme} if sides is not None else {}
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name} must be left out here, got {value}")
    first = machine.tensor(_positions(start, count_option(particles, "particles"), sides, depth))
    check_results(out, RUNS, figure, (store,), force=force)
    options: Any = {**grid, "generator": machine.generator(), "store": store}
    x = first.expand(paths, -1)
    with continuable(store), shown_progress("dyson") as progress:
        options["progress"] = progress
        if depth is not None:
            with option("depth"):
                as_depth(depth)
            positive_option(beta, "beta")
            positive_option(kappa, "kappa", zero=True)
            options |= {"beta": beta, "kappa": kappa, "entropy": entropy, "shape": sides}
            with option("start"):
                path = dln_dyson(x, depth, **options)
        elif sides is not None:
            with option("start"):
                path = singular_dyson(x, sides, dyson_index=b, confinement=confinement, **options)
        else:
            with option("scheme"):
                path = dyson(x, dyson_index=b, confinement=confinement, scheme=scheme, **options)
    values = path.states if depth is None else path.singular_values
    assert values is not None
    last = values[-1].double()
    what = "eigenvalues" if sides is None and depth is None else "singular values"
    kind = {"index": "inf" if math.isinf(b) else b}
    if depth is not None:
        kind = {"depth": depth_in_json(depth)}
    found = {
        "motion_of": what,
        "particles": len(first),
        "paths": paths,
        **kind,
        "time": float(path.t[-1]),
        "steps": path.stats.get("steps"),
        "mean_positions": last.mean(0),
        "spread_of_positions": last.std(0, correction=1) if paths > 1 else None,
        "mean_square": float(last.square().mean()),
    }
    finish(
        f"Dyson Brownian motion of {what}",
        found,
        path,
        out=out,
        figure=figure,
        drawn=lambda: _figure_of(path, values, what),
        as_json=as_json,
        began=began,
    )


def _positions(
    text: str | None, count: int | None, sides: tuple[int, int] | None, depth: float | None
) -> list[float]:
    """Return where the particles start."""
    if text is None:
        most = None if sides is None else min(sides)
        size = count or most or _COUNT
        if most is not None and (size > most if depth is not None else size != most):
            raise ValueError(f"--particles must be {most} with that --shape, got {size}")
        return [0.0 if depth is None else 1.0] * size
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--start must be numbers with commas between, got {text}") from None
    if not all(map(math.isfinite, found)):
        raise ValueError(f"--start must be finite numbers, got {text}")
    if count not in (None, len(found)):
        raise ValueError(f"--particles must be {len(found)}, as many as --start has, got {count}")
    return found


def _figure_of(path: Trajectory, values: Tensor, what: str) -> Figure:
    """Draw the paths, and where there are many positions at the end, their histogram."""
    last = values[-1].cpu().flatten()
    figure, axes = panels(2 if len(last) >= _BARS else 1)
    draw_paths(axes[0], path.t, values, what)
    if len(last) >= _BARS:
        axes[1].hist(last.double().numpy(), bins="sqrt", density=True, color="0.6")
        axes[1].set(xlabel=what, ylabel="density", title=f"time {float(path.t[-1]):g}")
    return figure
