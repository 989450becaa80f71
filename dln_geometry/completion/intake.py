"""What a user gives to a completer: entries with the names of their sides, features, bounds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from dln_geometry.completion.base import read_in_words
from dln_geometry.completion.features import SideFeatures
from dln_geometry.completion.fitting import DEPTHS, LINKS, Problem
from dln_geometry.completion.labels import is_pair, labels_of, places_of
from dln_geometry.support import (
    as_count,
    as_depth,
    as_device,
    as_dtype,
    as_float_tensor,
    as_positive,
    as_rank,
    shown,
    warn,
)
from dln_geometry.tables import (
    Entries,
    Ids,
    as_duplicates,
    as_entries,
    first_duplicate,
    without_duplicates,
)

SMALL = 10_000
"""Up to so many entries double precision is the default."""
LARGEST = 1e60
"""Bound on entries, and on their inverses: fourth powers of sums must not overflow or vanish."""


def entries_of(x: Any, y: Any, duplicates: str) -> Entries:
    """Return the entries of a matrix with holes, or of ``(rows, cols)`` with the values `y`."""
    rule = as_duplicates(duplicates)
    _check_call(x, y)
    if not is_pair(x):
        entries = read_in_words(partial(as_entries, once=False), x)
        _tell_of_doubts(x, entries)
        i, j = entries.rows, entries.cols
        if rule == "raise" and (twice := first_duplicate(i, j, entries.shape[1])) is not None:
            raise ValueError(
                f"X must hold every entry once, got ({i[twice[0]]}, {j[twice[0]]}) repeatedly: "
                "give duplicates='mean' or 'last'"
            )
        return entries if rule == "raise" else without_duplicates(entries, rule)
    rows, cols = x
    values = as_float_tensor(y, "y", dtype=torch.float64).cpu().numpy()
    sides = [labels_of(side, what) for side, what in ((rows, "row"), (cols, "column"))]
    lengths = (len(sides[0]), len(sides[1]), values.shape[0] if values.ndim == 1 else None)
    if len(set(lengths)) != 1 or not len(values):
        raise ValueError(
            "rows, cols and y must be vectors of one length, at least 1, got "
            f"{lengths[0]}, {lengths[1]} and shape {values.shape}"
        )
    (row_ids, i), (col_ids, j) = (
        Ids.of(side, what) for side, what in zip(sides, ("row", "column"), strict=True)
    )
    if rule == "raise" and (twice := first_duplicate(i, j, len(col_ids))) is not None:
        raise ValueError(
            f"entries must be given once each, got {row_ids[int(i[twice[0]])]!r}, "
            f"{col_ids[int(j[twice[0]])]!r} repeatedly: give duplicates='mean' or 'last'"
        )
    shape = len(row_ids), len(col_ids)
    entries = Entries(i, j, values, shape, "pairs", row_ids, col_ids)
    return entries if rule == "raise" else without_duplicates(entries, rule)


def _check_call(x: Any, y: Any) -> None:
    """Refuse entries without their values, and values that go with no matrix."""
    if isinstance(x, tuple) and (len(x) == 3 or (len(x) == 2 and y is None)):
        raise ValueError(
            f"X must be a matrix, or a tuple (rows, cols) with the entries as y, got a tuple of "
            f"{len(x)}{' without y' if y is None else ''}"
        )
    if (
        is_pair(x)
        or isinstance(x, Entries)
        or not hasattr(y, "__len__")
        or not hasattr(x, "__len__")
    ):
        return
    shape: Any = getattr(x, "shape", ())
    count = shape[0] if shape else len(x)
    if getattr(y, "ndim", 1) and len(y) != count:
        raise ValueError(
            f"y must be left out with a matrix, or go with a tuple (rows, cols), got {len(y)} "
            f"numbers for {count} rows"
        )


def _tell_of_doubts(x: Any, entries: Entries) -> None:
    """Warn of names that stand twice, and of a full matrix that looks like a list of entries."""
    for what, side in (("row", "index"), ("column", "columns")):
        labels = getattr(x, side, None)
        counted = getattr(getattr(labels, "dtype", None), "kind", "O") in "iu"
        if not (counted and what == "row") and not getattr(labels, "is_unique", True):
            warn(f"X has a {what} name that stands twice: the {what}s are counted", UserWarning)
    m, n = entries.shape
    if n != 3 or m < 4 or entries.layout != "matrix" or len(entries.values) < 3 * m:
        return
    i, j = entries.values.reshape(m, 3).T[:2]
    whole = all((k >= 0).all() and (k == np.floor(k)).all() for k in (i, j))
    if whole and len(set(zip(i, j, strict=True))) == m:
        warn(
            "X has three full columns, of which the first two may be rows and columns of entries: "
            "if they are, give fit((rows, cols), values)",
            UserWarning,
        )


def bounds_of(bounds: Any, values: np.ndarray) -> tuple[float | None, float | None]:
    """Return the bounds of predictions; ValueError if entries lie outside."""
    if bounds is None:
        return None, None
    if isinstance(bounds, str) and bounds == "observed":
        return float(values.min()), float(values.max())
    try:
        low, high = (None if b is None else float(b) for b in bounds)
    except (TypeError, ValueError):
        raise TypeError(
            f"bounds must be None, 'observed' or a pair of numbers, got {bounds!r}"
        ) from None
    least, most = float(values.min()), float(values.max())
    if not (low is None or high is None or low < high):
        raise ValueError(f"bounds must increase, got {bounds!r}")
    if (low is not None and not least >= low) or (high is not None and not most <= high):
        raise ValueError(
            f"entries must lie within the bounds {bounds!r}, got {least:g} to {most:g}"
        )
    return low, high


def problem_of(
    entries: Entries,
    weights: np.ndarray | None,
    features: tuple[Any, Any],
    *,
    loss: str,
    biases: bool,
    shrink: float | None,
    bounds: Any,
    dtype: Any,
    device: Any,
) -> tuple[Problem, tuple[SideFeatures | None, SideFeatures | None]]:
    """Return the entries as tensors, and the features, with all that was asked for checked."""
    if loss not in LINKS:
        raise ValueError(f"loss must be one of {', '.join(LINKS)}, got {loss!r}")
    _check_values(entries.values, loss)
    count, first = len(entries.values), float(entries.values[0])
    if LINKS[loss] is not None and count > 1 and (entries.values == first).all():
        warn(
            f"all {count} entries are {first:g}, so that a constant is learned: entries that are "
            "not given count as unknown, not as 0",
            UserWarning,
        )
    values = torch.as_tensor(entries.values).to(dtype=_dtype(dtype, entries.values))
    if device is not None:
        values = values.to(as_device(device))
    rows, cols = (
        torch.from_numpy(np.ascontiguousarray(x, dtype=np.int64)).to(values.device)
        for x in (entries.rows, entries.cols)
    )
    sides = zip(
        features,
        entries.shape,
        (entries.row_ids, entries.col_ids),
        ("row_features", "col_features"),
        strict=True,
    )
    row, col = (SideFeatures.of(f, size, ids, name, values) for f, size, ids, name in sides)
    problem = Problem(
        rows,
        cols,
        values,
        entries.shape,
        None if weights is None else torch.from_numpy(weights).to(values),
        loss,
        biases,
        shrink,
        (None if row is None else row.values, None if col is None else col.values),
        bounds_of(bounds, entries.values),
    )
    return problem, (row, col)


def _check_values(values: np.ndarray, loss: str) -> None:
    if loss == "logistic" and not ((values >= 0) & (values <= 1)).all():
        raise ValueError("entries must lie in [0, 1] for the logistic loss")
    if loss == "poisson" and (values < 0).any():
        raise ValueError("entries must be at least 0 for the Poisson loss")
    if not (size := float(np.abs(values).max())) < LARGEST:
        raise ValueError(f"entries must be less than {LARGEST:g} in size, got {size:g}")
    if 0 < size < 1 / LARGEST:
        raise ValueError(f"the largest entry must be at least {1 / LARGEST:g} or 0, got {size:g}")


def _dtype(dtype: Any, values: np.ndarray) -> torch.dtype:
    """Return the dtype of the runs: float32 for large tables, if it holds their differences."""
    size, spread = float(np.abs(values).max()), float(values.std())
    # Squares of sums must neither overflow nor vanish, and 1000 roundings stay below the spread.
    fits = size < 1e6 and (spread == 0 or spread > max(1e-6, 1e-4 * size))
    if dtype is None:
        return torch.float32 if len(values) > SMALL and fits else torch.float64
    if not isinstance(dtype, torch.dtype):
        try:
            dtype = getattr(torch, np.dtype(dtype).name, dtype)
        except TypeError:
            raise TypeError(f"dtype must be a real floating type, got {shown(dtype)}") from None
    if (dtype := as_dtype(dtype)) == torch.float32 and not fits:
        warn(
            f"float32 does not resolve entries of size {size:.3g} that differ by {spread:.3g}: "
            "use float64, or shift and scale them",
            UserWarning,
        )
    return dtype


def held_out(problem: Problem, entries: Entries, validation: Any) -> Problem:
    """Return the user's held-out entries as a problem."""
    if not (isinstance(validation, tuple) and len(validation) == 3):
        raise TypeError("validation_entries must be a tuple (rows, cols, values)")
    rows, cols, values = validation
    i, unknown_i = places_of(labels_of(rows, "row"), entries.row_ids, entries.shape[0], "row")
    j, unknown_j = places_of(labels_of(cols, "column"), entries.col_ids, entries.shape[1], "column")
    y = as_float_tensor(values, "validation_entries", dtype=torch.float64).cpu().numpy()
    if not i.shape == j.shape == y.shape:
        raise ValueError(
            f"validation_entries must have one length, got {len(i)}, {len(j)} and shape {y.shape}"
        )
    if len(i) == 0 or (unknown_i | unknown_j).any():
        raise ValueError("validation_entries must hold entries of known rows and columns")
    _check_values(y, problem.loss)
    key = i * entries.shape[1] + j
    if len(np.unique(key)) < len(key):
        raise ValueError("validation_entries must hold every entry once")
    shared = np.isin(key, entries.rows * entries.shape[1] + entries.cols)
    if shared.any():
        raise ValueError(
            f"validation_entries must not be among the entries of X, got {int(shared.sum())} that "
            "are"
        )
    i, j, y = (torch.from_numpy(x).to(problem.values.device) for x in (i, j, y))
    return replace(problem, rows=i, cols=j, values=y.to(problem.values), weights=None)


def share_of(validation: Any) -> float:
    """Return the share of the entries that is held out."""
    share = as_positive(validation, "validation", zero=True)
    if not share < 1:
        raise ValueError(f"validation must lie in [0, 1), got {validation!r}")
    return share


def choices_of(
    depth: Any, rank: Any, decay: Any, shape: tuple[int, int], last: tuple[Any, Any, Any] | None
) -> tuple[list[float], int | None, Any]:
    """Return what is given, else what the `last` fit chose, or what is to be tried.

    Of several depths there is one decay each.
    """
    least, several = min(shape), isinstance(depth, tuple | list)
    known = isinstance(depth, str) and depth == "auto"
    if several:
        depths = [float(as_depth(one)) for one in depth]
        if not depths or len(set(depths)) < len(depths):
            raise ValueError(f"depth must be a number or different ones, got {depth!r}")
    elif not known:
        depths = [float(as_depth(depth))]
    else:
        one = None if last is None or isinstance(last[0], tuple) else last[0]
        depths = list(DEPTHS) if one is None else [one]
    bound = None if last is None else min(last[1], least)
    if rank != "auto":
        # A single row or column has rank 1, whatever its bound.
        bound = as_count(rank, "rank") if least == 1 else rank
        bound = 1 if least == 1 else as_rank(bound, least, "the smaller side of the table")
    if decay != "auto":
        return depths, bound, as_positive(decay, "decay", zero=True)
    # A fit of other depths tells nothing about the decays of these.
    of_last = None if last is None else last[0] if several else [last[0]]
    same = of_last is not None and list(of_last) == depths
    return depths, bound, last[2] if last is not None and same else None
