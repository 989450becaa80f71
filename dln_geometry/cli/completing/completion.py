"""``dln complete``: its options checked, its file read; an estimator, or the flow alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dln_geometry.cli.completing.entry_flow import SUFFIXES, FlowPlan, check_flow, complete_by_flow
from dln_geometry.cli.completing.estimate import CompletionPlan, complete_by_estimator, results_of
from dln_geometry.cli.completing.given import Beside, is_saved_model
from dln_geometry.cli.completing.split import (
    are_results,
    check_limits,
    name_of_results,
    result_files,
    sides_of,
)
from dln_geometry.cli.completing.told import LEVEL
from dln_geometry.cli.completing.values import (
    AUTO,
    as_decay,
    bounds_option,
    check_share,
    depths_option,
    integrator_tolerance,
    number_or_auto,
    value_or,
)
from dln_geometry.cli.exchange import WEIGHTS, array_of, check_outputs, check_store
from dln_geometry.cli.files import deciding, memory_budget, option, text_format
from dln_geometry.cli.machine import as_machine
from dln_geometry.cli.report import read_integers
from dln_geometry.cli.signals import continuable
from dln_geometry.completion import LINKS, PATIENCE
from dln_geometry.support import as_count, as_depth, as_positive
from dln_geometry.tables import TextFormat, as_duplicates, as_table, read_entries

_LEAST_SECONDS = 1e-3
"""A limit of 0 stands for this: the first steps, as the estimator wants a positive number."""


def complete_matrix(
    data: Path | None,
    depth: str,
    rank: str,
    decay: str | None,
    biases: bool | None,
    shrink: str | None,
    row_features: Path | None,
    col_features: Path | None,
    weights: Path | None,
    bounds: str | None,
    loss: str | None,
    holdout: float | None,
    validation: float | None,
    validation_entries: Path | None,
    refit: bool | None,
    patience: int | None,
    starts: int | None,
    seconds: float | None,
    predict: Path | None,
    interval: float | None,
    recommend: int | None,
    save_model: Path | None,
    model: Path | None,
    duplicates: str,
    seed: int,
    device: str,
    dtype: str,
    rtol: float | None,
    layout: str,
    one_based: bool,
    shape: str | None,
    key: str | None,
    header: bool | None,
    index: bool | None,
    delimiter: str | None,
    decimal: str,
    max_memory: float | None,
    out: Path | None,
    as_json: bool,
    force: bool,
    flow: bool,
    scale: float | None,
    t_end: float | None,
    until_loss: float | None,
    until_gradient: float | None,
    center: bool | None,
    store: Path | None,
) -> None:
    """Check the options and read the entries; then complete them, by the estimator or a flow."""
    sides = None if shape is None else read_integers(shape, "--shape")
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"--shape must be two positive integers m,n, got {shape}")
    # The start takes the seed after that of the held-out entries.
    machine = as_machine(device, dtype, seed)
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
    if data is None and (model is None or of_flow):
        raise ValueError("DATA must be a file of known entries, got none")
    name = name_of_results(data or model or Path(), out, SUFFIXES)
    # What the estimator alone takes; a saved one takes no choices.
    choices = {
        "decay": decay,
        "biases": biases,
        "shrink": shrink,
        "bounds": bounds,
        "loss": loss,
        "validation": validation,
        "validation-entries": validation_entries,
        "refit": refit,
        "patience": patience,
        "starts": starts,
    }
    files = {"row-features": row_features, "col-features": col_features, "weights": weights}
    later = {"predict": predict, "interval": interval, "recommend": recommend}
    later |= {"save-model": save_model, "model": model}
    if of_flow:
        _refuse_with(choices | files | later, f"a flow, got it with {of_flow[0]}")
        limits = {"loss": until_loss, "gradient": until_gradient, "seconds": seconds}
        flow_plan = FlowPlan(
            depth=as_depth(value_or(number_or_auto(depth, "depth", float, as_depth), 3.0)),
            rank=number_or_auto(rank, "rank", int, int),
            scale=value_or(scale, 1e-3),
            until={key: value for key, value in limits.items() if value is not None},
            t_end=t_end,
            holdout=value_or(holdout, 0.1),
            center=value_or(center, True),
            machine=machine,
            rtol=integrator_tolerance(value_or(rtol, 1e-6)),
        )
        check_flow(flow_plan)
        plan, results = None, result_files(name, SUFFIXES)
    else:
        if model is not None:
            given = {"depth": depth, "rank": rank}
            fixed = {key: None if value == AUTO else value for key, value in given.items()}
            _refuse_with(choices | fixed | {"rtol": rtol}, "a saved model, which has its own")
            if data is None:
                _refuse_with(files | {"holdout": holdout}, "a model that learns from no DATA")
        flow_plan = None
        options = _options(depth, rank, decay, loss, validation, starts, seconds, patience)
        options |= {"biases": biases is not False, "bounds": bounds_option(bounds)}
        options |= {"refit": refit is not False, "shrink": _shrink(shrink)}
        if interval is not None and not 0 < interval < 1:
            raise ValueError(f"--interval must lie in (0, 1), got {interval}")
        with option("recommend"):
            as_count(value_or(recommend, 1), "recommend")
        options |= {"rtol": integrator_tolerance(value_or(rtol, 1e-3))}
        if dtype != "float64":
            options["dtype"] = machine.dtype
        if device != "cpu":
            options["device"] = machine.device
        beside_form = TextFormat(delimiter=form.delimiter, decimal=form.decimal)
        first = int(one_based)
        reading = {"layout": layout, "one_based": one_based, "shape": sides}
        beside = Beside(
            row_features, col_features, weights, validation_entries, beside_form, reading
        )
        plan = CompletionPlan(
            options,
            value_or(holdout, 0.0),
            seed,
            predict,
            TextFormat(delimiter=form.delimiter),  # pairs have no decimals
            first,
            beside,
            value_or(interval, LEVEL),
            recommend,
            save_model,
            model,
        )
        results = results_of(name, plan)
    read = [data, store, predict, *files.values(), validation_entries]
    if data is not None:
        check_store(store, data)
    check_outputs(results, [*read, model, save_model], are_results, force=force)
    if save_model is not None:
        kinds = {"force": force, "suffixes": (".npz",), "name": "save-model"}
        check_outputs([save_model], read, is_saved_model, **kinds)
    if data is None:
        assert plan is not None
        complete_by_estimator(None, plan, name, budget=budget, as_json=as_json)
        return
    with deciding():
        if key is not None or data.suffix.lower() in WEIGHTS:
            whole = as_table(array_of(data, key, budget), str(data)).entries()
            entries = replace(whole, layout="matrix")
        else:
            entries = read_entries(
                data,
                layout=layout,
                one_based=one_based,
                shape=sides,
                form=form,
                max_memory=budget,
                duplicates=duplicates,
            )
    # Before anything is printed: whoever reads it may interrupt at once.
    hint = "--seconds ends a run and keeps the best so far"
    with continuable(store) if flow_plan is not None else continuable(None, hint):
        known = f"{len(entries.values)} known entries of {sides_of(entries.shape)}"
        # JSON stands alone on the standard output.
        aside = sys.stderr if as_json else sys.stdout
        print(f"layout: {entries.layout}; {known}", file=aside)
        for note in entries.notes:
            print(f"note: {note}", file=aside)
        if flow_plan is not None:
            complete_by_flow(entries, flow_plan, name, budget=budget, store=store, as_json=as_json)
        elif plan is not None:
            complete_by_estimator(entries, plan, name, budget=budget, as_json=as_json)


def _options(
    depth: str,
    rank: str,
    decay: str | None,
    loss: str | None,
    validation: float | None,
    starts: int | None,
    seconds: float | None,
    patience: int | None,
) -> dict[str, Any]:
    """Return the options of the estimator, checked by the names of the command line."""
    check_share("validation", validation)
    with option("starts"):
        as_count(value_or(starts, 1), "starts")
    with option("patience"):
        patience = as_count(value_or(patience, PATIENCE), "patience")
    check_limits({"seconds": seconds})
    if (loss := value_or(loss, "squared")) not in LINKS:
        raise ValueError(f"--loss must be one of {', '.join(LINKS)}, got {loss!r}")
    return {
        "depth": depths_option(depth),
        "rank": value_or(number_or_auto(rank, "rank", int, int), AUTO),
        "decay": value_or(number_or_auto(value_or(decay, AUTO), "decay", float, as_decay), AUTO),
        "loss": loss,
        "validation": value_or(validation, 0.1),
        "starts": value_or(starts, 1),
        "patience": patience,
        "seconds": None if seconds is None else max(seconds, _LEAST_SECONDS),
    }


def _shrink(text: str | None) -> Any:
    """Return what pulls side means towards 0, or auto."""
    check = partial(as_positive, name="shrink")
    return value_or(number_or_auto(value_or(text, AUTO), "shrink", float, check), AUTO)


def _refuse_with(options: Mapping[str, Any], what: str) -> None:
    """Refuse options that do not go with something."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name} must be left out of {what}")
