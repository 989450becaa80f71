"""Tables with holes: test error and CPU time of `MatrixCompleter` and of its peers, side by side.

Made ratings with the marginals of real ones (popularity and activity fall off as power laws) of
four sizes, a noisy table of low rank, and a photograph of which some pixels are known. Five splits
each, fewer of large tables; every method sees the same entries. The peers choose their parameter
by the same held-out tenth: soft-impute, alternating least squares, SVD++ and neighbours, written
out in `table_peers`, and surprise's SVD where it is installed.

The environment variable RATINGS names a file of ratings to add.
"""

from __future__ import annotations

import os
import resource
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from benchmarks.table_peers import (
    Entries,
    Method,
    als,
    chosen,
    neighbours,
    only_means,
    soft_impute,
    surprise_svd,
    svd_plus_plus,
)
from benchmarks.timing import table
from dln_geometry.completion import MatrixCompleter
from dln_geometry.tables import read_entries

LARGE = 300_000
"""Entries up to which the slow peers run."""
SIZES = {10_000: 5, 100_000: 5, 1_000_000: 2, 10_000_000: 1}
"""Sizes of the made tables, and how many splits of each."""
TUNED = [(100, 20, 0.005, 0.02), (200, 40, 0.01, 0.1), (200, 80, 0.005, 0.08)]
"""Factors, epochs, rate and ridge of surprise's SVD: its defaults, and two that are tuned."""


def made_ratings(count: int, seed: int) -> tuple[Entries, tuple[int, int]]:
    """Return about `count` ratings from 1 to 5 of a table of 6 % filled places."""
    rng = np.random.default_rng(seed)
    m = round((count / 0.06 * 0.56) ** 0.5)
    n = round(m / 0.56)
    weights = [np.arange(1, k + 1.0) ** -0.8 for k in (m, n)]
    rows, cols = (rng.choice(len(w), 3 * count, p=w / w.sum()) for w in weights)
    key = np.unique(rows * n + cols)
    key = rng.permutation(key)[:count]
    i, j = key // n, key % n
    rank = 12
    scale = 0.35 * np.arange(1, rank + 1) ** -0.5
    u, v = rng.normal(size=(m, rank)), rng.normal(size=(n, rank))
    mean = 3.5 + 0.45 * rng.normal(size=m)[i] + 0.5 * rng.normal(size=n)[j]
    y = mean + ((u * scale)[i] * v[j]).sum(1) + 0.85 * rng.normal(size=len(i))
    return (i, j, np.clip(np.round(y), 1, 5)), (m, n)


def low_rank(seed: int) -> tuple[Entries, tuple[int, int]]:
    """Return 20 % of a 200 x 150 table of rank 5 with 5 % noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 150))
    x += 0.05 * x.std() * rng.normal(size=x.shape)
    i, j = np.nonzero(rng.random(x.shape) < 0.25)
    return (i, j, x[i, j]), (200, 150)


def photograph(seed: int) -> tuple[Entries, tuple[int, int]]:
    """Return 40 % of the pixels of the photograph that matplotlib ships."""
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as picture:
        x = np.asarray(picture.convert("L").resize((82, 96)), dtype=np.float64) / 255.0
    i, j = np.nonzero(np.random.default_rng(seed).random(x.shape) < 0.45)
    return (i, j, x[i, j]), (x.shape[0], x.shape[1])


def ours(seen: Entries, shape: tuple[int, int], asked: Entries) -> np.ndarray:
    """Return predictions with the defaults alone."""
    i, j, y = seen
    completer = MatrixCompleter(bounds="observed").fit((i, j), y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rows without an entry
        return completer.predict((asked[0], asked[1]))


def methods_for(count: int, places: int) -> dict[str, Method]:
    """Return the methods that a table of this size leaves time for."""
    found: dict[str, Method] = {"MatrixCompleter": ours, "side means": only_means}
    found["ALS"] = chosen(als, [3.0, 6.0, 12.0])
    if count <= LARGE:
        found["SVD++"] = chosen(svd_plus_plus, [0.02, 0.05, 0.1])
        found["neighbours"] = chosen(neighbours, [20, 40])
        if svd := surprise_svd():
            found["surprise SVD"] = chosen(svd, TUNED)
    if places <= 1e6 and count <= 5e4:
        found["soft-impute"] = chosen(soft_impute, [0.1, 0.2, 0.35])
    return found


def compare(name: str, make: Callable[[int], Any], splits: int) -> list[list[str]]:
    """Return rows of the mean test error, what it is above ours, both spreads, and CPU seconds."""
    errors: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for split in range(splits):
        entries, shape = make(split)
        order = np.random.default_rng(100 + split).permutation(len(entries[0]))
        out = len(order) // 10
        test, seen = (tuple(x[k] for x in entries) for k in (order[:out], order[out:]))
        for method, run in methods_for(len(order), shape[0] * shape[1]).items():
            begun = time.process_time()
            found = run(seen, shape, test)
            seconds.setdefault(method, []).append(time.process_time() - begun)
            errors.setdefault(method, []).append(float(np.mean((found - test[2]) ** 2) ** 0.5))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of the process
            told = (
                f"{errors[method][-1]:.4f}, {seconds[method][-1]:.1f} s, peak so far {peak:.1f} GB"
            )
            print(f"{name}, split {split}, {method}: {told}", flush=True)
    rows = []
    for method, e in errors.items():
        ahead = np.subtract(e, errors["MatrixCompleter"])
        cells = (np.mean(e), np.std(e), np.mean(ahead), np.std(ahead))
        rows.append([name, method, *(f"{x:.4f}" for x in cells), f"{np.mean(seconds[method]):.1f}"])
    return rows


def tables(quick: bool = False) -> None:
    splits = 1 if quick else 5
    rows = compare("photograph", photograph, splits)
    if not quick:
        rows += compare("rank 5", low_rank, splits)
    for size, splits in {10_000: 1}.items() if quick else SIZES.items():
        rows += compare(f"made, {size:,}", partial(made_ratings, size), splits)
    # A file of ratings to add: row, column, value.
    if file := os.environ.get("RATINGS"):
        found = read_entries(file)
        entries = (found.rows, found.cols, found.values)
        rows += compare("ratings", lambda _: (entries, found.shape), 1 if quick else 5)
    header = ["table", "method", "test rms", "spread", "above ours", "its spread", "CPU s"]
    table("Test error", header, rows)
