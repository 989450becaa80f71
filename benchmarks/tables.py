"""Tables with holes: test error and CPU time of `MatrixCompleter` and of its peers, side by side.

Made ratings with the marginals of real ones (popularity and activity fall off as power laws), a
noisy table of low rank, and a photograph of which some pixels are known. Five splits each; every
method sees the same entries. The peers choose their penalty by the same held-out tenth: soft-impute
and alternating least squares with side means, written out below, and surprise's SVD where it is
installed.

The environment variable RATINGS names a file of ratings to add.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image
from scipy import sparse

from benchmarks.timing import table
from dln_geometry.completion import MatrixCompleter
from dln_geometry.tables import read_entries

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
Method = Callable[[Entries, tuple[int, int], Entries], np.ndarray]


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


def side_means(seen: Entries, shape: tuple[int, int], ridge: float = 5.0) -> Any:
    """Return global mean, row and column means, shrunk, by alternating fits."""
    i, j, y = seen
    m, n = shape
    mean, b, c = y.mean(), np.zeros(m), np.zeros(n)
    for _ in range(10):
        c = np.bincount(j, y - mean - b[i], n) / (np.bincount(j, minlength=n) + ridge)
        b = np.bincount(i, y - mean - c[j], m) / (np.bincount(i, minlength=m) + ridge)
    return mean, b, c


def only_means(seen: Entries, shape: tuple[int, int], asked: Entries) -> np.ndarray:
    """Return the side means alone."""
    mean, b, c = side_means(seen, shape)
    return np.clip(mean + b[asked[0]] + c[asked[1]], seen[2].min(), seen[2].max())


def chosen(fit: Callable[..., Any], penalties: list[float]) -> Method:
    """Return a method that takes the penalty with the least error on a tenth of the entries."""

    def method(seen: Entries, shape: tuple[int, int], asked: Entries) -> np.ndarray:
        order = np.random.default_rng(0).permutation(len(seen[0]))
        held, rest = order[: len(order) // 10], order[len(order) // 10 :]
        part, check = (tuple(x[k] for x in seen) for k in (rest, held))
        errors = [np.mean((fit(part, shape, check, p) - check[2]) ** 2) for p in penalties]
        return fit(seen, shape, asked, penalties[int(np.argmin(errors))])

    return method


def als(seen: Entries, shape: tuple[int, int], asked: Entries, ridge: float) -> np.ndarray:
    """Alternate ridge regressions of rank 20 on the residuals of the side means."""
    rank, rng = 20, np.random.default_rng(1)
    mean, b, c = side_means(seen, shape)
    i, j, y = seen
    residual = sparse.csr_matrix((y - mean - b[i] - c[j], (i, j)), shape)
    u, v = (0.1 * rng.normal(size=(k, rank)) for k in shape)
    for _ in range(8):
        for a, left, right in ((residual, u, v), (residual.T.tocsr(), v, u)):
            for k in range(len(left)):
                at = slice(a.indptr[k], a.indptr[k + 1])
                w = right[a.indices[at]]
                gram = w.T @ w + ridge * np.eye(rank)
                left[k] = np.linalg.solve(gram, w.T @ a.data[at])
    z = mean + b[asked[0]] + c[asked[1]] + (u[asked[0]] * v[asked[1]]).sum(1)
    return np.clip(z, y.min(), y.max())


def soft_impute(seen: Entries, shape: tuple[int, int], asked: Entries, share: float) -> np.ndarray:
    """Shrink singular values of the filled table by a share of the largest until it rests."""
    mean, b, c = side_means(seen, shape)
    i, j, y = seen
    x, r = np.zeros(shape), y - mean - b[i] - c[j]
    filled = np.zeros(shape)
    filled[i, j] = r
    penalty = share * np.linalg.norm(filled, 2)
    for _ in range(60):
        filled = x.copy()
        filled[i, j] = r
        u, s, vh = np.linalg.svd(filled, full_matrices=False)
        new = (u * np.maximum(s - penalty, 0)) @ vh
        moved = np.linalg.norm(new - x) / max(np.linalg.norm(x), 1e-12)
        x = new
        if moved < 1e-3:
            break
    z = mean + b[asked[0]] + c[asked[1]] + x[asked[0], asked[1]]
    return np.clip(z, y.min(), y.max())


def surprise_svd() -> Method | None:
    """Return surprise's SVD with its defaults, if it is installed."""
    try:
        import pandas as pd
        import surprise
    except ImportError:
        return None

    def method(seen: Entries, shape: tuple[int, int], asked: Entries) -> np.ndarray:
        frame = pd.DataFrame({"u": seen[0], "i": seen[1], "r": seen[2]})
        reader = surprise.Reader(rating_scale=(seen[2].min(), seen[2].max()))
        data = surprise.Dataset.load_from_df(frame, reader).build_full_trainset()
        model = surprise.SVD(random_state=0).fit(data)
        pairs = zip(asked[0].tolist(), asked[1].tolist(), strict=True)
        return np.array([model.predict(a, b).est for a, b in pairs])

    return method


def compare(name: str, make: Callable[[int], Any], splits: int, dense: bool) -> list[list[str]]:
    """Return rows of mean test error, its spread over the splits, and CPU seconds."""
    methods: dict[str, Method | None] = {
        "MatrixCompleter": ours,
        "side means": only_means,
        "ALS": chosen(als, [3.0, 6.0, 12.0]),
        "soft-impute": chosen(soft_impute, [0.1, 0.2, 0.35]) if dense else None,
        "surprise SVD": surprise_svd(),
    }
    errors: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for split in range(splits):
        entries, shape = make(split)
        order = np.random.default_rng(100 + split).permutation(len(entries[0]))
        out = len(order) // 10
        test, seen = (tuple(x[k] for x in entries) for k in (order[:out], order[out:]))
        for method, run in methods.items():
            if run is None:
                continue
            begun = time.process_time()
            found = run(seen, shape, test)
            seconds.setdefault(method, []).append(time.process_time() - begun)
            errors.setdefault(method, []).append(float(np.mean((found - test[2]) ** 2) ** 0.5))
    return [
        [name, method, f"{np.mean(e):.4f}", f"{np.std(e):.4f}", f"{np.mean(seconds[method]):.1f}"]
        for method, e in errors.items()
    ]


def tables(quick: bool = False) -> None:
    splits = 1 if quick else 5
    rows = compare("photograph", photograph, splits, True)
    if not quick:
        rows += compare("rank 5", low_rank, splits, True)
    for size in (10_000,) if quick else (10_000, 100_000):
        rows += compare(f"made, {size:,}", lambda s, k=size: made_ratings(k, s), splits, size < 5e4)
    # A file of ratings to add: row, column, value.
    if file := os.environ.get("RATINGS"):
        found = read_entries(file)
        entries = (found.rows, found.cols, found.values)
        rows += compare("ratings", lambda _: (entries, found.shape), splits, False)
    table("Test error", ["table", "method", "test rms", "spread", "CPU s"], rows)
