"""Long runs: whether memory, open files and the invariants of a motion stay where they are."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dln_geometry as dln
from benchmarks.timing import table

DT = 0.002


def resident() -> float:
    """Return the memory of the process now, MB; not its peak, which hides what is given back."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def frame_skew(point: Any) -> Tensor:
    """Return how far singular vectors are from orthonormal, or layers from balanced."""
    if isinstance(point, dln.EndToEnd | dln.Collapsed):
        p = point if isinstance(point, dln.EndToEnd) else point.point()
        eye = torch.eye(p.rank, dtype=p.dtype)
        pairs = (p.u.mH @ p.u - eye, p.vh @ p.vh.mH - eye)
    else:
        size = sum(w.abs().square().sum() for w in point)
        pairs = tuple(moment / size for moment in dln.moments(point))
    return torch.stack([pair.abs().amax((-2, -1)) for pair in pairs]).amax(0)


def cases() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the starts and options of the runs by name."""
    x = torch.eye(3, 2, dtype=torch.float64)
    point = dln.EndToEnd.of(x, 3)
    return {
        "product steps": (point, {}),
        "product steps, float32": (point.to(torch.float32), {}),
        "product steps, complex": (point.to(torch.complex128), {}),
        "splitting steps": (point, {"method": "splitting"}),
        "layers upstairs": (dln.balanced_factors(point), {"upstairs": True}),
        "stored": (point, {"store": True, "keep_points": True}),
    }


def run(start: Any, options: dict[str, Any], steps: int) -> tuple[Any, list[tuple[float, int]]]:
    """Run Langevin dynamics; return the path, and memory and open files at saved times."""
    like = start if isinstance(start, dln.EndToEnd) else start.matrix
    target = torch.eye(3, 2, dtype=like.dtype)
    used: list[tuple[float, int]] = []

    def told(*_: Any) -> None:
        used.append((resident(), open_files()))

    with tempfile.TemporaryDirectory() as folder:
        if options.get("store"):
            options = {**options, "store": Path(folder) / "run.zarr", "every": {"steps": 1000}}
        path = dln.langevin(
            dln.losses.Quadratic(target), start, beta=20.0, t_end=DT * steps, dt=DT, generator=0,
            observe={"skew": frame_skew}, progress=told,
            save_at=torch.linspace(0.0, DT * steps, 1001, dtype=torch.float64), **options,
        )  # fmt: skip
    return path, used


def soak(quick: bool) -> None:
    """Make a million steps of every kind; memory counts from a tenth of the run on."""
    steps, rows = 10**4 if quick else 10**6, []
    for name, (start, options) in cases().items():
        begun = time.perf_counter()
        path, used = run(start, options, steps)
        early, late = used[len(used) // 10], used[-1]
        rows.append(
            [
                name, f"{early[0]:.1f}", f"{late[0]:.1f}", f"{early[1]}, {late[1]}",
                f"{float(path.observed['skew'].max()):.1e}",
                f"{float(path.singular_values.min()):.2g} to "
                f"{float(path.singular_values.max()):.2g}",
                f"{1e6 * (time.perf_counter() - begun) / steps:.0f}",
            ]
        )  # fmt: skip
        table(
            f"Soak: {steps} steps",
            ["steps of", "MB at a tenth", "MB at the end", "open files", "worst defect", "s", "us"],
            rows[-1:],
        )
