"""What ``dln complete`` tells of a fit: choices with their reasons, and errors."""

from __future__ import annotations

import math
import time
from typing import Any

from dln_geometry.cli.completing.given import pair_labels
from dln_geometry.cli.completing.panels import singular_values_of
from dln_geometry.cli.report import decibel, depth_in_json, number, print_table
from dln_geometry.completion import MatrixCompleter
from dln_geometry.geometry.points import effective_rank
from dln_geometry.tables import Entries

LEVEL = 0.9
"""Share of new entries that the intervals should hold whose coverage the fit measures."""


def told_choices(
    completer: MatrixCompleter, known: Entries, test: Entries | None
) -> dict[str, Any]:
    """Return what was chosen, and the errors, for JSON."""
    found = {
        "shape": list(known.shape),
        "entries": len(known.values),
        "depth": _several_in_json(completer.depth_),
        "rank": completer.rank_,
        "decay": _several_in_json(completer.decay_),
        "biases": bool(completer.biases_),
        "loss": completer.loss,
        "trials": len(completer.cv_results_["params"]),
        "effective_rank": float(effective_rank(singular_values_of(completer))),
        "train_error": completer.train_error_,
        "validation_error": completer.validation_error_,
        "side_means_error": completer.side_means_error_,
        "held_out_entries": 0 if test is None else len(test.values),
        "held_out_error": None,
        "held_out_side_means_error": None,
        "coverage": completer.coverage_,
    }
    if test is not None and len(test.values):
        error, base = completer.errors(pair_labels(test), test.values)
        found |= {"held_out_error": error, "held_out_side_means_error": base}
    return found


def print_choices(
    completer: MatrixCompleter,
    known: Entries,
    test: Entries | None,
    given: dict[str, Any],
    began: float,
) -> None:
    """Print what was chosen and why, and the errors; options that are not `given` were saved."""
    validated = math.isfinite(completer.validation_error_)
    tried = sorted({f"{d:g}" for d in completer.cv_results_["param_depth"]}, key=float)
    what = "rms error" if completer.loss == "squared" else "log loss"
    alone = "side means" if completer.biases_ else "mean"

    def why(name: str, found: str) -> str:
        if name not in given:
            return "saved"
        return "given" if given[name] != "auto" else found if validated else "default"

    count = len(completer.cv_results_["params"])
    least = f"least validation error of {count} trials"
    sides = ("yes" if completer.biases_ else "no", least if validated else "default")
    rows = [
        ("depth", _several(completer.depth_, "g"), why("depth", f"{least}: {', '.join(tried)}")),
        (
            "rank at most",
            f"{completer.rank_}",
            why("rank", f"default for {len(known.values)} entries"),
        ),
        ("decay", _several(completer.decay_, ".3g"), why("decay", least)),
        ("side means", *(sides if given.get("biases", True) else ("no", "given"))),
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
    if test is not None and len(test.values):
        error, base = completer.errors(pair_labels(test), test.values)
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
    shown = caption if validated and not (test is not None and len(test.values)) else None
    print_table("Matrix completion", ("", "value", "why"), rows, shown)


def _several(x: Any, form: str) -> str:
    return ", ".join(format(one, form) for one in (x if isinstance(x, tuple) else (x,)))


def _several_in_json(x: Any) -> Any:
    return [depth_in_json(one) for one in x] if isinstance(x, tuple) else depth_in_json(x)
