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

from dln_geometry.cli.completing.panels import completion_panels, singular_values_of
from dln_geometry.cli.completing.split import (
    CURVE_HEADER,
    HEADER,
    held_out_places,
    result_files,
    sides_of,
)
from dln_geometry.cli.files import deciding, option, save_array, save_figure
from dln_geometry.cli.report import (
    decibel,
    depth_in_json,
    number,
    print_json,
    print_table,
)
from dln_geometry.completion import MatrixCompleter, default_rank
from dln_geometry.geometry.points import effective_rank
from dln_geometry.support import as_rank, written_whole
from dln_geometry.tables import Budget, Entries, TextFormat, read_pairs, save_ids

MATRIX, NAMES, FIGURE, CURVE, PREDICTIONS = (
    ".npy",
    ".json",
    ".png",
    "-curve.csv",
    "-predictions.csv",
)
"""Ends of the names of results: matrix, names of rows and columns, figure, tables."""
LEVEL = 0.9
"""Share of new entries that the intervals of predictions should hold."""
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


def results_of(out: Path, plan: CompletionPlan) -> list[Path]:
    """Return the files of the results."""
    more = () if plan.predict is None else (PREDICTIONS,)
    return result_files(out, (MATRIX, NAMES, FIGURE, CURVE, *more))


def complete_by_estimator(
    entries: Entries, plan: CompletionPlan, out: Path, *, budget: Budget, as_json: bool = False
) -> None:
    """Fit a table, print what was tried and chosen and why, and write the results."""
    began, (m, n), rank = time.perf_counter(), entries.shape, plan.options["rank"]
    if rank != "auto":
        with option("rank"):
            as_rank(rank, min(m, n), "the smaller side of the matrix")
    with deciding():
        budget.need(_memory_of_fit(entries, rank), f"the run on {sides_of(entries.shape)}")
    aside = sys.stderr if as_json else sys.stdout
    pairs = _read_pairs(plan, entries, budget, aside)
    seen, held = (
        x.numpy() for x in held_out_places(len(entries.values), plan.holdout, plan.seed, 2)
    )
    known, test = (_part(entries, places) for places in (seen, held))
    completer = MatrixCompleter(**plan.options, random_state=plan.seed, verbose=not as_json)
    with _as_lines(), _by_option():
        completer.fit(known)
    matrix, names, figure, curve, *more = results_of(out, plan)
    # First the file that marks the others as results.
    save_ids(names, entries.row_ids, entries.col_ids)
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
        _write_predictions(more[0], completer, pairs, plan.first)
    written = [path for path in (matrix, names, figure, curve, *more) if path.exists()]
    if as_json:
        found = _told_choices(completer, known, test) | {"seconds": time.perf_counter() - began}
        print_json(found | {"written": written})
        return
    _print_choices(completer, known, test, plan, began)
    print(f"written: {', '.join(map(str, written))}")


def _memory_of_fit(entries: Entries, rank: Any) -> float:
    """Estimate the largest memory of a fit in bytes: states and entries."""
    (m, n), count = entries.shape, len(entries.values)
    r = default_rank((m, n), count) if rank == "auto" else int(rank)
    return 8.0 * (STATES * (m + n + r) * r + PER_ENTRY * count)


def _part(entries: Entries, places: np.ndarray) -> Entries:
    rows, cols, values = (x[places] for x in (entries.rows, entries.cols, entries.values))
    return replace(entries, rows=rows, cols=cols, values=values)


def _pair_labels(entries: Entries) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of entries as the estimator knows them."""
    sides = zip((entries.rows, entries.cols), (entries.row_ids, entries.col_ids), strict=True)
    rows, cols = (x if ids is None else np.array(ids.names, dtype=object)[x] for x, ids in sides)
    return rows, cols


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
    with deciding(), option("predict"):
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
    path: Path, completer: MatrixCompleter, pairs: Sequence[np.ndarray], first: int
) -> None:
    """Write predictions of entries, with intervals where the fit has some."""
    rows, cols = pairs
    columns, header = [], HEADER.split(",")
    with _as_lines():
        if math.isfinite(completer.coverage_):
            columns = list(completer.predict(rows, cols, interval=LEVEL))
            header += ["low", "high"]
        else:
            columns = [completer.predict(rows, cols)]
    written = [x if x.dtype == object else x + first for x in (rows, cols)]
    _write_table(path, header, zip(*written, *columns, strict=True))


def _write_table(path: Path, header: Sequence[str], lines: Any) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{x:.9g}" if isinstance(x, float) else x for x in cells] for cells in lines)
    with written_whole(path) as handle:
        handle.write(text.getvalue().encode())


def _told_choices(completer: MatrixCompleter, known: Entries, test: Entries) -> dict[str, Any]:
    """Return what was chosen, and the errors, for JSON."""
    found = {
        "shape": list(known.shape),
        "entries": len(known.values),
        "depth": depth_in_json(completer.depth_),
        "rank": completer.rank_,
        "decay": completer.decay_,
        "biases": bool(completer.biases_),
        "loss": completer.loss,
        "trials": len(completer.cv_results_["params"]),
        "effective_rank": float(effective_rank(singular_values_of(completer))),
        "train_error": completer.train_error_,
        "validation_error": completer.validation_error_,
        "side_means_error": completer.side_means_error_,
        "held_out_entries": len(test.values),
        "held_out_error": None,
        "held_out_side_means_error": None,
        "coverage": completer.coverage_,
    }
    if len(test.values):
        error, base = completer.errors(_pair_labels(test), test.values)
        found |= {"held_out_error": error, "held_out_side_means_error": base}
    return found


def _print_choices(
    completer: MatrixCompleter, known: Entries, test: Entries, plan: CompletionPlan, began: float
) -> None:
    """Print what was chosen and why, and the errors."""
    given, validated = plan.options, math.isfinite(completer.validation_error_)
    tried = sorted({f"{d:g}" for d in completer.cv_results_["param_depth"]}, key=float)
    what = "rms error" if completer.loss == "squared" else "log loss"
    alone = "side means" if completer.biases_ else "mean"

    def why(name: str, found: str) -> str:
        return "given" if given[name] != "auto" else found if validated else "default"

    count = len(completer.cv_results_["params"])
    least = f"least validation error of {count} trials"
    sides = ("yes" if completer.biases_ else "no", least if validated else "default")
    rows = [
        ("depth", f"{completer.depth_:g}", why("depth", f"{least}: {', '.join(tried)}")),
        (
            "rank at most",
            f"{completer.rank_}",
            why("rank", f"default for {len(known.values)} entries"),
        ),
        ("decay", number(completer.decay_), why("decay", least)),
        ("side means", *(sides if given["biases"] else ("no", "given"))),
        (
            "effective rank",
            f"{float(effective_rank(singular_values_of(completer))):.2f}",
            "without side means",
        ),
        (f"training {what}", number(completer.train_error_), ""),
    ]
    if validated:
        means = f"{number(completer.side_means_error_)} by the {alone} alone"
        rows.append((f"validation {what}", number(completer.validation_error_), means))
    if len(test.values):
        error, base = completer.errors(_pair_labels(test), test.values)
        rows.append((f"held-out {what}", number(error), f"{number(base)} by the {alone} alone"))
        if completer.loss == "squared" and base > 0:
            text = f"{decibel((error / base) ** 2):.2f}"
            rows.append(("held-out error (dB)", text, f"0 dB is the {alone} alone"))
    if math.isfinite(completer.coverage_):
        inside = f"{100 * completer.coverage_:.1f} %"
        rows.append((f"in {100 * LEVEL:g} % intervals", inside, "measured on validation entries"))
    rows.append(("seconds", f"{time.perf_counter() - began:.1f}", ""))
    caption = (
        "Validation errors are those of held-out entries that the choices were made by,\n"
        "and so a little too small: --holdout 0.1 tests on entries that teach nothing."
    )
    shown = caption if validated and not len(test.values) else None
    print_table("Matrix completion", ("", "value", "why"), rows, shown)
