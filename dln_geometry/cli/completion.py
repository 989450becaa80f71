"""The command ``dln complete`` and its options: an estimator, or the flow alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from dln_geometry.cli.estimate import CompletionPlan, complete_by_estimator, results_of
from dln_geometry.cli.files import (
    Decimal,
    Delimiter,
    Force,
    Header,
    Index,
    MaxMemory,
    check_outputs,
    check_store,
    deciding,
    memory_budget,
    option,
    text_format,
)
from dln_geometry.cli.flow import SUFFIXES, FlowPlan, check_flow, complete_by_flow
from dln_geometry.cli.report import read_integers
from dln_geometry.cli.signals import continuable
from dln_geometry.cli.split import (
    are_results,
    check_limits,
    name_of_results,
    result_files,
    sides_of,
)
from dln_geometry.cli.values import (
    AUTO,
    as_decay,
    bounds_option,
    check_share,
    integrator_tolerance,
    number_or_auto,
    value_or,
)
from dln_geometry.completion import LINKS
from dln_geometry.support import as_count, as_depth, as_seed
from dln_geometry.tables import TextFormat, as_duplicates, read_entries

_LEAST_SECONDS = 1e-3
"""A limit of 0 stands for this: the first steps, as the estimator wants a positive number."""


def complete_command(
    data: Annotated[
        Path,
        typer.Argument(
            help="Known entries: .csv .tsv .txt .tab .dat .data (row,column,value, or a matrix "
            "with empty or NaN cells; also .gz), .npz (rows, cols, values[, shape], or a table, "
            "or a sparse matrix of scipy), .npy (a table), .mtx, .parquet."
        ),
    ],
    depth: Annotated[
        str, Option(help="Depth N >= 1, a real number or inf; auto tries some.")
    ] = AUTO,
    rank: Annotated[str, Option(help="Bound on the rank.")] = AUTO,
    decay: Annotated[
        str | None, Option(help="Weight decay, without units: 0.5 is a good guess [default: auto].")
    ] = None,
    biases: Annotated[
        bool | None, Option("--biases/--no-biases", help="Fit means of rows and columns.")
    ] = None,
    bounds: Annotated[
        str | None, Option(help="Clip predictions: LOW,HIGH (one may be empty) or observed.")
    ] = None,
    loss: Annotated[
        str | None,
        Option(help="squared, logistic (entries in [0, 1]) or poisson [default: squared]."),
    ] = None,
    holdout: Annotated[
        float | None,
        Option(
            help="Share of entries for a test that is only reported; nothing learns from them "
            "[default: 0; 0.1 with --flow]."
        ),
    ] = None,
    validation: Annotated[
        float | None,
        Option(
            help="Share of the other entries that depth, rank and decay are chosen by, and the "
            "end of training; at last all are trained on [default: 0.1]."
        ),
    ] = None,
    starts: Annotated[
        int | None, Option(help="Random starts whose predictions are averaged [default: 1].")
    ] = None,
    seconds: Annotated[
        float | None, Option(help="Stop after this long and keep the best so far.")
    ] = None,
    predict: Annotated[
        Path | None,
        Option(help="Text table of rows and columns; NAME-predictions.csv predicts them."),
    ] = None,
    duplicates: Annotated[
        str, Option(help="An entry that is given repeatedly: raise an error, mean, or last.")
    ] = "raise",
    seed: Annotated[int, Option(help="Seed of the held-out entries and the start.")] = 0,
    rtol: Annotated[
        float | None,
        Option(help="Tolerance of the integrator [default: 0.001; 1e-6 with --flow]."),
    ] = None,
    layout: Annotated[
        str,
        Option(
            help="What a table holds: triples, matrix, or auto: full lines of two "
            "whole numbers or names and a number are triples, a matrix must have holes."
        ),
    ] = "auto",
    one_based: Annotated[
        bool, Option("--one-based", help="Rows and columns of triples are places from 1.")
    ] = False,
    shape: Annotated[
        str | None,
        Option(help="Shape m,n of triples, whose ids are places then [default: the ids]."),
    ] = None,
    header: Header = None,
    index: Index = None,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    max_memory: MaxMemory = None,
    out: Annotated[
        Path | None, Option(help="Name of the results without suffix, or a folder for them.")
    ] = None,
    force: Force = False,
    flow: Annotated[
        bool,
        Option(
            "--flow",
            help="Follow the gradient flow of the known entries to its end, instead: no "
            "validation, decay or side means. The options below ask for it too.",
        ),
    ] = False,
    scale: Annotated[
        float | None,
        Option(
            help="Flow: singular values of the start, relative to the matrix's norm "
            "[default: 0.001]."
        ),
    ] = None,
    t_end: Annotated[float | None, Option(help="Flow: end of time.")] = None,
    until_loss: Annotated[
        float | None,
        Option(help="Flow: stop at this share of the loss of the mean [default: 0.001]."),
    ] = None,
    until_gradient: Annotated[
        float | None,
        Option(help="Flow: stop at this norm of the Riemannian gradient [default: at rest]."),
    ] = None,
    center: Annotated[
        bool | None,
        Option("--center/--no-center", help="Flow: take the mean of the entries away."),
    ] = None,
    store: Annotated[
        Path | None, Option(help="Flow: file of the state, from which a killed run continues.")
    ] = None,
) -> None:
    """Complete a matrix from its known entries by a deep linear network.

    Depth, rank and decay are chosen by held-out entries, then all entries are trained on.
    """
    sides = None if shape is None else read_integers(shape, "--shape")
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"--shape must be two positive integers m,n, got {shape}")
    with option("seed"):
        # The start takes the seed after that of the held-out entries.
        as_seed(as_seed(seed, "seed") + 1, "seed")
    with option("duplicates"):
        as_duplicates(duplicates)
    check_share("holdout", holdout)
    asked = {
        "--flow": flow or None,
        "--scale": scale,
        "--t-end": t_end,
        "--until-loss": until_loss,
        "--until-gradient": until_gradient,
        "--no-center" if center is False else "--center": center,
        "--store": store,
    }
    of_flow = [name for name, value in asked.items() if value is not None]
    form, budget = text_format(header, index, delimiter, decimal), memory_budget(max_memory)
    name = name_of_results(data, out, SUFFIXES)
    if of_flow:
        others = {
            "decay": decay,
            "biases": biases,
            "bounds": bounds,
            "loss": loss,
            "validation": validation,
            "starts": starts,
            "predict": predict,
        }
        for other, value in others.items():
            if value is not None:
                raise ValueError(f"--{other} must be left out of a flow, got it with {of_flow[0]}")
        limits = {"loss": until_loss, "gradient": until_gradient, "seconds": seconds}
        flow_plan = FlowPlan(
            depth=as_depth(value_or(number_or_auto(depth, "depth", float, as_depth), 3.0)),
            rank=number_or_auto(rank, "rank", int, int),
            scale=value_or(scale, 1e-3),
            until={key: value for key, value in limits.items() if value is not None},
            t_end=t_end,
            holdout=value_or(holdout, 0.1),
            center=value_or(center, True),
            seed=seed,
            rtol=integrator_tolerance(value_or(rtol, 1e-6)),
        )
        check_flow(flow_plan)
        plan, results = None, result_files(name, SUFFIXES)
    else:
        flow_plan, options = None, _options(depth, rank, decay, loss, validation, starts, seconds)
        options |= {"biases": biases is not False, "bounds": bounds_option(bounds)}
        options["rtol"] = integrator_tolerance(value_or(rtol, 1e-3))
        pairs_form = TextFormat(delimiter=form.delimiter, decimal=form.decimal)
        first = int(one_based)
        plan = CompletionPlan(options, value_or(holdout, 0.0), seed, predict, pairs_form, first)
        results = results_of(name, plan)
    check_store(store, data)
    check_outputs(results, [data, store, predict], are_results, force=force)
    with deciding():
        entries = read_entries(
            data,
            layout=layout,
            one_based=one_based,
            shape=sides,
            form=form,
            max_memory=budget,
            duplicates=duplicates,
        )
    known = f"{len(entries.values)} known entries of {sides_of(entries.shape)}"
    print(f"layout: {entries.layout}; {known}")
    for note in entries.notes:
        print(f"note: {note}")
    if flow_plan is not None:
        with continuable(store):
            progress = sys.stderr.isatty()
            complete_by_flow(
                entries, flow_plan, name, budget=budget, store=store, progress=progress
            )
    elif plan is not None:
        with continuable(None, "--seconds ends a run and keeps the best so far"):
            complete_by_estimator(entries, plan, name, budget=budget)


def _options(
    depth: str,
    rank: str,
    decay: str | None,
    loss: str | None,
    validation: float | None,
    starts: int | None,
    seconds: float | None,
) -> dict[str, Any]:
    """Return the options of the estimator, checked by the names of the command line."""
    check_share("validation", validation)
    with option("starts"):
        as_count(value_or(starts, 1), "starts")
    check_limits({"seconds": seconds})

    if (loss := value_or(loss, "squared")) not in LINKS:
        raise ValueError(f"--loss must be one of {', '.join(LINKS)}, got {loss!r}")
    return {
        "depth": value_or(number_or_auto(depth, "depth", float, as_depth), AUTO),
        "rank": value_or(number_or_auto(rank, "rank", int, int), AUTO),
        "decay": value_or(number_or_auto(value_or(decay, AUTO), "decay", float, as_decay), AUTO),
        "loss": loss,
        "validation": value_or(validation, 0.1),
        "starts": value_or(starts, 1),
        "seconds": None if seconds is None else max(seconds, _LEAST_SECONDS),
    }
