"""The photograph and the experiments of the gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dln_geometry.cli.experiments import completed_experiments
from dln_geometry.cli.options import (
    MACHINE,
    PRINTING,
    SEED,
    AsJson,
    Dtype,
    PhotographFile,
    PhotographStore,
    Quick,
)
from dln_geometry.cli.program import command


@command(
    "photograph:complete_photograph",
    "dln photograph --quick --out photograph.png",
    SEED,
    {**MACHINE, "dtype": (Dtype, "float32")},
    PRINTING,
)
def photograph_command(
    out: PhotographFile = Path("dln-photograph.png"),
    store: PhotographStore = None,
    quick: Quick = False,
) -> None:
    """Complete a photograph from 40 % of its pixels at depths 1 to 4."""


@command(
    "experiments:run_experiment",
    """
    dln experiments
    dln experiments balanced_initialisations --quick --out figures
    """,
)
def experiments_command(
    name: Annotated[
        str | None,
        Argument(
            help="Name of an experiment, or a part of it [default: list all of them].",
            autocompletion=completed_experiments,
        ),
    ] = None,
    quick: Quick = False,
    out: Annotated[Path | None, Option(help="Folder of the figures [default: this one].")] = None,
    as_json: AsJson = False,
) -> None:
    """List the experiments of the gallery, or run one by its name.

    An experiment repeats a published result, draws it and checks it.
    """
