"""Timing side by side: every round runs each candidate once, the figures are medians."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    budget: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each candidate over interleaved rounds.

    Rounds end early when `budget` seconds are spent; there are at least three. On a busy machine
    ``clock=time.process_time`` leaves out the time that other processes took.
    """
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


def machine() -> str:
    """Return what the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"{device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table in markdown."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
