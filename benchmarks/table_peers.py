"""Peers of completion written plainly: side means, ALS, soft-impute, SVD++ and neighbours.

Each takes the known entries, the shape, the entries that are asked for and one parameter, and
returns predictions within the range of the known values. `chosen` takes the parameter with the
least error on a tenth of the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.timing import peer

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
Method = Callable[[Entries, tuple[int, int], Entries], np.ndarray]
CHUNK = 64
"""Entries of one row that share a step of SVD++."""


def chosen(fit: Callable[..., Any], parameters: Sequence[Any]) -> Method:
    """Return a method that takes the parameter with the least error on a tenth of the entries."""

    def method(seen: Entries, shape: tuple[int, int], asked: Entries) -> np.ndarray:
        order = np.random.default_rng(0).permutation(len(seen[0]))
        held, rest = order[: len(order) // 10], order[len(order) // 10 :]
        part, check = (tuple(x[k] for x in seen) for k in (rest, held))
        errors = [np.mean((fit(part, shape, check, p) - check[2]) ** 2) for p in parameters]
        return fit(seen, shape, asked, parameters[int(np.argmin(errors))])

    return method


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
    return _within(mean + b[asked[0]] + c[asked[1]], seen)


def _within(z: np.ndarray, seen: Entries) -> np.ndarray:
    return np.clip(z, seen[2].min(), seen[2].max())


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
    return _within(z, seen)


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
    return _within(z, seen)


def svd_plus_plus(seen: Entries, shape: tuple[int, int], asked: Entries, ridge: float) -> Any:
    """Koren's SVD++ of rank 20 by gradient steps, 25 times through the entries."""
    rank, rate, rng = 20, 0.008, np.random.default_rng(2)
    i, j, y = seen
    table = sparse.csr_matrix((y, (i, j)), shape)
    mean, b, c = side_means(seen, shape)
    p, q, implicit = (0.1 * rng.normal(size=(k, rank)) for k in (*shape, shape[1]))
    for _ in range(25):
        for row in rng.permutation(shape[0]):
            at = slice(table.indptr[row], table.indptr[row + 1])
            items, values = table.indices[at], table.data[at]
            if len(items) == 0:
                continue
            size, total = len(items) ** -0.5, np.zeros(rank)
            taste = size * implicit[items].sum(0)
            for k in range(0, len(items), CHUNK):
                some = items[k : k + CHUNK]
                w, whole = q[some], p[row] + taste
                e = values[k : k + CHUNK] - (mean + b[row] + c[some] + w @ whole)
                b[row] += rate * (e.sum() - len(some) * ridge * b[row])
                c[some] += rate * (e - ridge * c[some])
                q[some] += rate * (np.outer(e, whole) - ridge * w)
                pull = e @ w
                p[row] += rate * (pull - len(some) * ridge * p[row])
                total += pull
            implicit[items] += rate * (size * total - len(items) * ridge * implicit[items])
    table.data[:] = 1.0
    counts = np.maximum(np.diff(table.indptr), 1)[:, None]
    whole = p + (table @ implicit) / counts**0.5
    z = mean + b[asked[0]] + c[asked[1]] + (whole[asked[0]] * q[asked[1]]).sum(1)
    return _within(z, seen)


def neighbours(seen: Entries, shape: tuple[int, int], asked: Entries, count: int) -> np.ndarray:
    """Average the residuals of the most similar columns that the row has.

    Similarities are correlations of the residuals of the side means, shrunk as by 100 entries.
    """
    mean, b, c = side_means(seen, shape)
    i, j, y = seen
    r = sparse.csr_matrix((y - mean - b[i] - c[j], (i, j)), shape)
    mask = r.copy()
    mask.data = np.ones_like(r.data)
    both = (mask.T @ mask).toarray()
    size = (r.multiply(r).T @ mask).toarray()
    near = (r.T @ r).toarray() / np.sqrt(np.maximum(size * size.T, 1e-12))
    near *= np.maximum(both - 1, 0) / (np.maximum(both - 1, 0) + 100)
    z = mean + b[asked[0]] + c[asked[1]]
    for k, (row, col) in enumerate(zip(asked[0], asked[1], strict=True)):
        at = slice(r.indptr[row], r.indptr[row + 1])
        w = np.maximum(near[col, r.indices[at]], 0)
        if len(w) > count:
            w[np.argpartition(-w, count)[count:]] = 0
        if w.sum() > 0:
            z[k] += w @ r.data[at] / w.sum()
    return _within(z, seen)


def surprise_svd() -> Callable[..., np.ndarray] | None:
    """Return surprise's SVD of (factors, epochs, rate, ridge), if it is installed."""
    surprise = peer("surprise")
    if surprise is None:
        return None
    import pandas as pd

    def fit(
        seen: Entries, shape: tuple[int, int], asked: Entries, options: Sequence[float]
    ) -> np.ndarray:
        frame = pd.DataFrame({"u": seen[0], "i": seen[1], "r": seen[2]})
        reader = surprise.Reader(rating_scale=(seen[2].min(), seen[2].max()))
        data = surprise.Dataset.load_from_df(frame, reader).build_full_trainset()
        factors, epochs, rate, ridge = options
        model = surprise.SVD(
            int(factors), n_epochs=int(epochs), lr_all=rate, reg_all=ridge, random_state=0
        ).fit(data)
        pairs = zip(asked[0].tolist(), asked[1].tolist(), strict=True)
        return np.array([model.predict(a, b).est for a, b in pairs])

    return fit
