"""Charges of the symmetries of a model along its training: ``dln charges``."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dln_geometry.cli.exchange import RUNS, check_results, read_weights, save_figure, write_run
from dln_geometry.cli.files import deciding, memory_budget
from dln_geometry.cli.machine import as_machine
from dln_geometry.cli.report import number, print_json, print_table

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_LABEL = 44
"""Letters of the name of a group in a table."""


def print_charges(
    files: Sequence[Path],
    model: str | None,
    example_input: str | None,
    loss: str | None,
    relu: bool,
    out: Path | None,
    figure: Path | None,
    device: str,
    dtype: str,
    max_memory: float | None,
    as_json: bool,
    force: bool,
) -> None:
    """Read a record or checkpoints, and tell the charges over time."""
    check_results(out, RUNS, figure, tuple(files), force=force)
    for path in files:
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
    if model is None and (example_input is not None or loss is not None):
        raise ValueError("--example-input and --loss must come with --model, got them alone")
    if model is not None and relu:
        raise ValueError("--relu must be left out with --model, which tells what is between layers")
    if len(files) == 1 and _is_record(files[0]):
        if model is not None:
            raise ValueError("--model must be left out with a record, which names its groups")
        data, groups, caption = _of_record(files[0])
    else:
        machine, budget = as_machine(device, dtype), memory_budget(max_memory)
        with deciding():
            held = [read_weights(path, budget) for path in files]
        data, groups = _of_checkpoints(files, held, model, (example_input, loss, relu), machine)
        caption = (
            "Change: the largest move of a single charge since the first file, over\n"
            "the largest sum of squares (translations: norm) there. Gradient flow\n"
            "leaves only rounding."
        )
    if out is not None:
        write_run(out, data)
    if figure is not None:
        save_figure(_drawn_charges(data), figure, 200)
    written = [path for path in (out, figure) if path is not None]
    if as_json:
        print_json({"steps": data["time"].values, "groups": groups, "written": written})
        return
    columns = ["symmetry", "charge at first", "at last", "residual" if _has(data) else "change"]
    rows = [
        (_short(g["label"]), number(g["charge"][0]), number(g["charge"][-1]), _worst_of_group(g))
        for g in groups
    ]
    print_table("Charges", columns, rows, caption)
    if written:
        print(f"written: {', '.join(map(str, written))}")


def _has(data: xarray.Dataset) -> bool:
    return "residual" in data


def _worst_of_group(group: dict[str, Any]) -> str:
    if "residual" not in group:
        return f"{max(group['change']):.2g}"
    mark = " broken" if group["broken"] else ""
    return f"{max(group['residual'], default=math.nan):.2g}{mark}"


def _is_record(path: Path) -> bool:
    """Tell whether a file is a record that a monitor saved."""
    try:
        names = set(zipfile.ZipFile(path).namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return {"meta.npy", "charge.npy", "residual.npy"} <= names


def _of_record(path: Path) -> tuple[xarray.Dataset, list[dict[str, Any]], str]:
    """Return the series of a record, and its numbers by group."""
    from dln_geometry.learning import ChargeRecord

    record = ChargeRecord.load(path)
    if not len(record):
        raise ValueError(f"{path} must hold records of charges, got none")
    groups = []
    for k, label in enumerate(record.labels):
        allowed = None if record.tolerance is None else record.tolerance[:, k]
        series = {name: getattr(record, name)[:, k] for name in ("charge", "predicted", "residual")}
        told = {name: x.tolist() for name, x in series.items()}
        broken = None if allowed is None else not bool((series["residual"] <= allowed).all())
        limit = None if allowed is None else allowed.tolist()
        groups.append({"label": label, **told, "tolerance": limit, "broken": broken})
    caption = (
        "Residual: the largest deviation from the law of the optimiser's steps that a\n"
        "symmetric loss obeys; broken: above what rounding leaves."
    )
    return record.to_xarray(), groups, caption


def _of_checkpoints(
    files: Sequence[Path],
    held: Sequence[dict[str, Any]],
    model: str | None,
    options: tuple[str | None, str | None, bool],
    machine: Any,
) -> tuple[xarray.Dataset, list[dict[str, Any]]]:
    """Return the charges of checkpoints over their numbers 0, 1, ..., and by group."""
    import xarray

    from dln_geometry.cli.models.groups import (
        groups_of_layers,
        groups_of_model,
        label_of,
        load_model,
        weights_of,
    )

    example, loss, relu = options
    if model is None:
        groups = groups_of_layers(held[0], relu=relu)
    else:
        groups = groups_of_model(load_model(model), example, loss)
    total, change = [], []
    first: list[Any] = []
    for path, weights in zip(files, held, strict=True):
        sums, moves = [], []
        for k, group in enumerate(groups):
            own = weights_of(weights, group.names, path)
            params = {name: machine.tensor(x) for name, x in own.items()}
            for name, x in params.items():
                if not bool(x.isfinite().all()):
                    raise ValueError(
                        f"{path}: {name} must hold finite numbers, got NaN or infinite"
                    )
            charges = group.symmetry(params).conserved(params)
            if len(first) <= k:
                first.append((charges, _measure(group, params)))
            start, size = first[k]
            if start.shape != charges.shape:
                raise ValueError(f"{path} must have the shapes of {files[0]}, got others")
            sums.append(float(_total(group.kind, charges)))
            moves.append(float((charges - start).abs().max()) / size if size > 0 else 0.0)
        total.append(sums)
        change.append(moves)
    labels = [label_of(group) for group in groups]
    data = xarray.Dataset(
        {"charge": (("time", "group"), total), "change": (("time", "group"), change)},
        coords={"time": list(range(len(files))), "group": labels},
    )
    told = [
        {"label": label, "charge": [s[k] for s in total], "change": [s[k] for s in change]}
        for k, label in enumerate(labels)
    ]
    return data, told


def _total(kind: str, charges: torch.Tensor) -> torch.Tensor:
    """Return one number for a group, as `learning.ChargeRecord` has it."""
    if kind == "gauge":
        return charges.diagonal(dim1=-2, dim2=-1).sum()
    return torch.linalg.norm(charges) if kind == "translation" else charges.sum()


def _measure(group: Any, params: dict[str, torch.Tensor]) -> float:
    """Return what charges are measured by: the largest sum of squares, or the largest norm."""
    squares = max(float(x.square().sum()) for x in params.values())
    return math.sqrt(squares) if group.kind == "translation" else squares


def _short(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 3]}..."


def _drawn_charges(data: xarray.Dataset) -> Figure:
    """Draw the charges over time, and the predictions of a record."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    ax = figure.add_subplot()
    record = "predicted" in data
    for k, label in enumerate(data["group"].values):
        ax.plot(
            data["time"], data["charge"][:, k], f"C{k % 10}o-", markersize=3, label=_short(label)
        )
        if record:
            ax.plot(data["time"], data["predicted"][:, k], "k:", linewidth=0.9)
    ax.set(xlabel="steps" if record else "number of the file", ylabel="charge")
    ax.set_title("dotted: predicted" if record else "")
    ax.legend(frameon=False, fontsize=7)
    return figure
