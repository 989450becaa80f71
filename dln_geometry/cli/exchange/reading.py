"""Matrices from files of every kind, as options of the command line say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from dln_geometry.cli.exchange.weights import WEIGHTS, read_weights
from dln_geometry.cli.files import deciding, memory_budget, text_format
from dln_geometry.tables import Budget, Table, read_matrix


def read_input(
    path: Path,
    *,
    key: str | None = None,
    header: bool | None = None,
    index: bool | None = None,
    delimiter: str | None = None,
    decimal: str = ".",
    max_memory: float | None = None,
) -> Table:
    """Read a whole matrix, if it and its singular values fit into memory; print the notes."""
    form, budget = text_format(header, index, delimiter, decimal), memory_budget(max_memory)
    if path.is_dir():
        raise ValueError(f"{path} must be a file, got a folder")
    with deciding():
        if key is not None or path.suffix.lower() in WEIGHTS:
            table = Table(array_of(path, key, budget))
            if not np.isfinite(table.values).all():
                raise ValueError(f"{path} must hold finite numbers, got NaN or infinite entries")
        else:
            table = read_matrix(path, form=form, max_memory=budget)
        budget.need(6.0 * table.values.nbytes, f"the singular values of {path.name}")
    for note in table.notes:
        sys.stderr.write(f"note: {note}\n")
    return table


def array_of(path: Path, key: str | None, budget: Budget) -> np.ndarray:
    """Return the matrix of a file of tensors: the one named, or the only one."""
    held = read_weights(path, budget)
    matrices = {name: x for name, x in held.items() if x.ndim == 2 and x.numel()}
    if key is None and len(matrices) == 1:
        key = next(iter(matrices))
    if key is None or key not in matrices:
        names = ", ".join(matrices) or "no matrix"
        raise ValueError(
            f"--key must name one of the matrices of {path}, {names}, got "
            f"{'none' if key is None else key}"
        )
    return matrices[key].to(torch.float64).numpy()
