"""A table completed by `MatrixCompleter`, told and drawn: ``dln complete``."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dln_geometry.cli.completing.given import Beside, loaded_model, pair_labels
from dln_geometry.cli.completing.panels import completion_panels
from dln_geometry.cli.completing.split import (
    CURVE_HEADER,
    HEADER,
    held_out_places,
    result_files,
    sides_of,
)
from dln_geometry.cli.completing.told import print_choices, told_choices
from dln_geometry.cli.exchange import save_array, save_figure
from dln_geometry.cli.files import deciding, option
from dln_geometry.cli.report import print_json
from dln_geometry.completion import MatrixCompleter, default_rank
from dln_geometry.support import as_rank, written_whole
from dln_geometry.tables import Budget, Entries, TextFormat, read_pairs, save_ids

MATRIX, NAMES, FIGURE, CURVE = ".npy", ".json", ".png", "-curve.csv"
PREDICTIONS, RECOMMENDATIONS = "-predictions.csv", "-recommendations.csv"
"""Ends of the names of results: matrix, names of rows and columns, figure, tables."""
STATES, PER_ENTRY, DENSE = 25, 60, 3
"""Numbers kept at once, measured: states of the network, numbers per entry, dense matrices."""


@dataclass(frozen=True)
class CompletionPlan:
    """Options of the estimator by its names, of the test, and of the predictions."""

    options: dict[str, Any]
    holdout: float
    seed: int
    predict: Path | None
    form: TextFormat
    first: int
    beside: Beside
    interval: float
    recommend: int | None
    save_model: Path | None
    model: Path | None


def results_of(out: Path, plan: CompletionPlan) -> list[Path]:
    """Return the files of the results."""
    more = () if plan.predict is None else (PREDICTIONS,)
    more = more if plan.recommend is None else (*more, RECOMMENDATIONS)
    return result_files(out, (MATRIX, NAMES, FIGURE, CURVE, *more))


def complete_by_estimator(
    entries: Entries | None,
    plan: CompletionPlan,
    out: Path,
    *,
    budget: Budget,
    as_json: bool = False,
) -> None:
    """Fit a table or load a fit, print what was chosen and why, and write the results.

    Without entries a saved fit predicts; with some it is trained on with these.
    """
    began, saved = time.perf_counter(), None
    aside = sys.stderr if as_json else sys.stdout
    if plan.model is not None:
        saved = loaded_model(plan.model, plan.options.get("device"))
    if entries is None:
        assert saved is not None
        completer, known, test = saved, saved.entries_, None
        pairs = _read_pairs(plan, known, budget, aside)
    else:
        pairs = _read_pairs(plan, entries if saved is None else saved.entries_, budget, aside)
        completer, known, test = _fitted(entries, plan, saved, budget, quiet=as_json)
    (m, n), all_ = completer.shape_, completer.entries_
    matrix, names, figure, curve, *more = results_of(out, plan)
    # First the file that marks the others as results.
    save_ids(names, all_.row_ids, all_.col_ids)
    full, size = None, 8.0 * DENSE * m * n
    if size <= budget.limit:
        full = completer.complete()
        save_array(matrix, full)
    else:
        matrix.unlink(missing_ok=True)
        print(
            f"note: the completed matrix would take {size / 2**30:.3g} GiB of memory (--max-memory)"
            " and is not written: --predict predicts single entries",
            file=aside,
        )
    _write_table(curve, CURVE_HEADER.split(","), completer.curve_)
    save_figure(completion_panels(completer, full), figure, 150)
    if pairs is not None:
        _write_predictions(more[0], completer, pairs, plan)
    if plan.recommend is not None:
        _write_recommendations(more[-1], completer, plan.recommend, plan.first)
    if plan.save_model is not None:
        more.append(completer.save(plan.save_model))
    written = [path for path in (matrix, names, figure, curve, *more) if path.exists()]
    if as_json:
        found = told_choices(completer, known, test) | {"seconds": time.perf_counter() - began}
        print_json(found | {"written": written})
        return
    print_choices(completer, known, test, plan.options if saved is None else {}, began)
    print(f"written: {', '.join(map(str, written))}")


def _fitted(
    entries: Entries,
    plan: CompletionPlan,
    saved: MatrixCompleter | None,
    budget: Budget,
    *,
    quiet: bool,
) -> tuple[MatrixCompleter, Entries, Entries]:
    """Return an estimator that has learnt from entries, these, and those that test it."""
    (m, n), rank = entries.shape, plan.options.get("rank", "auto")
    if rank != "auto":
        with option("rank"):
            if min(m, n) > 1:  # a single row or column has rank 1, whatever its bound
                as_rank(rank, min(m, n), "the smaller side of the matrix")
    with deciding():
        budget.need(_memory_of_fit(entries, rank), f"the run on {sides_of(entries.shape)}")
    beside = plan.beside.read(entries, budget)
    seen, held = (
        x.numpy() for x in held_out_places(len(entries.values), plan.holdout, plan.seed, 2)
    )
    known, test = (_part(entries, places) for places in (seen, held))
    if "weights" in beside:
        beside["weights"] = beside["weights"][seen]
    with _as_lines(), _by_option():
        if saved is not None:
            saved.set_params(verbose=not quiet, seconds=plan.options.get("seconds"))
            given = known if known.layout == "matrix" else pair_labels(known)
            return saved.partial_fit(given, known.values, **beside), known, test
        completer = MatrixCompleter(**plan.options, random_state=plan.seed, verbose=not quiet)
        return completer.fit(known, **beside), known, test


def _memory_of_fit(entries: Entries, rank: Any) -> float:
    """Estimate the largest memory of a fit in bytes: states and entries."""
    (m, n), count = entries.shape, len(entries.values)
    r = default_rank((m, n), count) if rank == "auto" else int(rank)
    return 8.0 * (STATES * (m + n + r) * r + PER_ENTRY * count)


def _part(entries: Entries, places: np.ndarray) -> Entries:
    rows, cols, values = (x[places] for x in (entries.rows, entries.cols, entries.values))
    return replace(entries, rows=rows, cols=cols, values=values)


@contextmanager
def _as_lines() -> Iterator[None]:
    """Print warnings as lines of the command line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for line in dict.fromkeys(str(warning.message) for warning in caught):
        sys.stderr.write(f"warning: {line}\n")


@contextmanager
def _by_option() -> Iterator[None]:
    """Let errors about an option of the estimator begin with that of the command line."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error)
        begins = {"validation must": "validation", "entries must lie within": "bounds"}
        begins |= {"entries must": "loss"}
        for begin, name in begins.items():
            if text.startswith(begin):
                with option(name):
                    raise ValueError(text) from None
        raise


def _read_pairs(plan: CompletionPlan, entries: Entries, budget: Budget, aside: TextIO) -> Any:
    """Return the rows and columns of the entries to predict, as the estimator knows them."""
    if plan.predict is None:
        return None
    sides = entries.row_ids, entries.col_ids
    with option("predict"), deciding():
        rows, cols, notes = read_pairs(
            plan.predict, *sides, first=plan.first, form=plan.form, max_memory=budget
        )
    for note in notes:
        print(f"note: {note}", file=aside)
    return [
        np.array(x, dtype=np.int64 if ids is None else object)
        for x, ids in zip((rows, cols), sides, strict=True)
    ]


def _write_predictions(
    path: Path, completer: MatrixCompleter, pairs: Sequence[np.ndarray], plan: CompletionPlan
) -> None:
    """Write predictions of entries, with intervals where the fit has some."""
    rows, cols = pairs
    columns, header = [], HEADER.split(",")
    with _as_lines():
        if math.isfinite(completer.coverage_):
            columns = list(completer.predict(rows, cols, interval=plan.interval))
            header += ["low", "high"]
        else:
            columns = [completer.predict(rows, cols)]
    written = [x if x.dtype == object else x + plan.first for x in (rows, cols)]
    _write_table(path, header, zip(*written, *columns, strict=True))


def _write_recommendations(path: Path, completer: MatrixCompleter, count: int, first: int) -> None:
    """Write the columns with the largest predictions for every row."""

    def lines() -> Iterator[tuple[Any, Any, float]]:
        names, by_name = completer.row_ids_, completer.col_ids_ is not None
        for row in range(completer.shape_[0]) if names is None else names:
            for col, value in completer.recommend(row, count):
                shown = int(row) + first if names is None else row
                yield shown, col if by_name else col + first, value

    _write_table(path, HEADER.split(","), lines())


def _write_table(path: Path, header: Sequence[str], lines: Any) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{x:.9g}" if isinstance(x, float) else x for x in cells] for cells in lines)
    with written_whole(path) as handle:
        handle.write(text.getvalue().encode())
