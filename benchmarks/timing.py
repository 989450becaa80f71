"""Timing side by side, and the tables that a run collects and writes."""

from __future__ import annotations

import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Table(NamedTuple):
    """A table of a run; `ratios` are times over ours, by the name of the peer's row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    ratios: Mapping[str, float]


TABLES: list[Table] = []


def a_clock() -> Callable[[], float]:
    """Return the clock: with one thread that of the process, which leaves out what others took."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time if alone else time.perf_counter


def side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    budget: float = 20.0,
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Return the median seconds of each candidate over interleaved rounds.

    Rounds end early when `budget` seconds are spent; there are at least three.
    """
    clock = clock or a_clock()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begun > budget:
            break
        for name, run in candidates.items():
            start = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(clock() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def peer(name: str) -> Any:
    """Return a module that may be missing, or None and a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed, its rows are left out: pip install 'dln-geometry[bench]'")
        return None


def machine() -> str:
    """Return what the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"{device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    ratios: Mapping[str, float] | None = None,
) -> None:
    """Print a table, and keep it for the files of the run."""
    found = Table(title, header, rows, ratios or {})
    TABLES.append(found)
    print("\n" + in_markdown(found), flush=True)


def in_markdown(found: Table) -> str:
    lines = [found.header, ["---"] * len(found.header), *found.rows]
    return f"### {found.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write(folder: Path) -> None:
    """Write the tables of the run so far: results.json, results.md and results.png."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "tables": [t._asdict() for t in TABLES]}
    (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    text = "\n".join([f"{machine()}\n", *map(in_markdown, TABLES)])
    (folder / "results.md").write_text(text)
    plot(folder / "results.png")


def plot(file: Path) -> None:
    """Draw how many times longer than ours every peer takes, one table below the other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [t for t in TABLES if t.ratios]
    if not shown:
        return
    sizes = [len(t.ratios) + 1 for t in shown]
    figure, axes = plt.subplots(
        len(shown), figsize=(8, 0.32 * sum(sizes) + 0.4 * len(shown)), sharex=True, squeeze=False,
        height_ratios=sizes, layout="constrained",
    )  # fmt: skip
    for axis, found in zip(axes[:, 0], shown, strict=True):
        names, ratios = list(found.ratios), list(found.ratios.values())
        axis.barh(names, ratios, color=["#0072B2" if x >= 1 else "#D55E00" for x in ratios])
        axis.set(xscale="log")
        axis.set_title(found.title, loc="left", fontsize=9)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
    axes[-1, 0].set_xlabel("time of the peer over ours, in one run")
    figure.savefig(file, dpi=150)
    plt.close(figure)
