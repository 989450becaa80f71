"""Run the benchmarks of this machine and write tables and a plot."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import torch

from benchmarks.timing import machine, write

SUITES = {
    "right-hand-side": ("flows", "right_hand_side"),
    "batch": ("flows", "batch"),
    "small": ("flows", "small"),
    "memory": ("completion", "memory"),
    "sparse": ("completion", "sparse_pass"),
    "completion": ("completion", "to_solution"),
    "stiff": ("completion", "stiff_phase"),
    "tables": ("tables", "tables"),
    "noise": ("noise", "noise"),
    "dyson": ("noise", "dyson_motion"),
    "soak": ("long_runs.soak", "soak"),
    "geodesics": ("geodesics", "geodesics"),
    "network-geodesics": ("manifolds", "network_geodesics"),
    "entropy": ("manifolds", "entropies"),
    "pymanopt": ("manifolds", "pymanopt_manifold"),
    "monitor": ("learning", "monitor"),
    "motion": ("learning", "motion"),
    "mirrors": ("learning", "mirrors"),
    "processes": ("long_runs.sharded", "processes"),
}
"""Name: the module, and its function, which takes ``quick``."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SUITES, metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--quick", action="store_true", help="smallest cases alone")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, 1 by default")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), help="a folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(machine())
    for name in options.only or SUITES:
        module, function = SUITES[name]
        print(f"\n## {name}", flush=True)
        begun = time.perf_counter()
        getattr(importlib.import_module(f"benchmarks.{module}"), function)(quick=options.quick)
        print(f"\n{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        # After every suite: a run that is interrupted keeps what it has.
        write(options.out)
    print(f"\nresults.json, results.md and results.png are in {options.out}/")


if __name__ == "__main__":
    main()
