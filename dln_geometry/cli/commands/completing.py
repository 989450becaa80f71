"""The completion of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dln_geometry.cli.options import MACHINE, PRINTING, READING, SEED, Store
from dln_geometry.cli.program import command


@command(
    "completing:complete_matrix",
    """
    printf '0,0,1\\n0,1,2\\n0,2,3\\n1,0,2\\n1,2,6\\n2,1,6\\n2,2,9\\n' > ratings.csv
    dln complete ratings.csv --depth 2 --rank 1
    """,
    SEED,
    MACHINE,
    READING,
    PRINTING,
)
def complete_command(
    data: Annotated[
        Path | None,
        Argument(
            help="Known entries: .csv .tsv .txt .tab .dat .data (row,column,value, or a matrix "
            "with empty or NaN cells; also .gz), .npz (rows, cols, values[, shape], or a table, "
            "or a sparse matrix of scipy), .npy (a table), .mtx, .parquet, .pt, .safetensors. "
            "With --model these entries are new ones, or none."
        ),
    ] = None,
    depth: Annotated[
        str,
        Option(
            help="Depth N >= 1, a real number or inf; models of several (2,2.5) are averaged; "
            "auto tries some."
        ),
    ] = "auto",
    rank: Annotated[str, Option(help="Bound on the rank.")] = "auto",
    decay: Annotated[
        str | None, Option(help="Weight decay, without units: 0.5 is a good guess [default: auto].")
    ] = None,
    biases: Annotated[
        bool | None, Option("--biases/--no-biases", help="Fit means of rows and columns.")
    ] = None,
    shrink: Annotated[
        str | None,
        Option(help="As many entries as pull the mean of a row or column to 0 [default: auto]."),
    ] = None,
    row_features: Annotated[
        Path | None,
        Option(
            help="Table of known numbers of the rows: a line each, their names first if they have "
            "some. Rows that the entries lack are predicted from them."
        ),
    ] = None,
    col_features: Annotated[Path | None, Option(help="The same of the columns.")] = None,
    weights: Annotated[
        Path | None,
        Option(help="Weights of the entries, laid out as these are: 2 counts as two, 0 as none."),
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
    validation_entries: Annotated[
        Path | None, Option(help="Choose by these entries, laid out as the others, instead.")
    ] = None,
    refit: Annotated[
        bool | None,
        Option("--refit/--no-refit", help="Train on all entries at last, or leave that out."),
    ] = None,
    patience: Annotated[
        int | None,
        Option(help="Steps without a better validation error that end a flow [default: 12]."),
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
    interval: Annotated[
        float | None,
        Option(help="Share of new entries that should lie within low and high [default: 0.9]."),
    ] = None,
    recommend: Annotated[
        int | None,
        Option(
            help="NAME-recommendations.csv has so many columns with the largest predictions for "
            "every row, known entries left out."
        ),
    ] = None,
    save_model: Annotated[
        Path | None, Option(help="Write the fitted estimator to this .npz file.")
    ] = None,
    model: Annotated[
        Path | None,
        Option(
            help="Use the estimator that --save-model wrote: to predict, or with DATA to train on "
            "with further entries."
        ),
    ] = None,
    duplicates: Annotated[
        str, Option(help="An entry that is given repeatedly: raise an error, mean, or last.")
    ] = "raise",
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
    out: Annotated[
        Path | None, Option(help="Name of the results without suffix, or a folder for them.")
    ] = None,
    flow: Annotated[
        bool,
        Option(
            "--flow",
            help="Follow the gradient flow of the known entries to its end, instead: no "
            "validation, decay or side means. --store and what is marked Flow ask for it too.",
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
    store: Store = None,
) -> None:
    """Complete a matrix from its known entries by a deep linear network.

    Depth, rank and decay are chosen by held-out entries, then all entries are trained on.
    """
