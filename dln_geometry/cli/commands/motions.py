"""Flows and random motions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dln_geometry.cli.options import (
    MACHINE,
    PRINTING,
    READING,
    SEED,
    Beta,
    DepthNumber,
    EndOfTime,
    Entropy,
    Figure,
    Kappa,
    Matrix,
    RankBound,
    RunFile,
    SavedTimes,
    Scale,
    Store,
    TimeStep,
    Widths,
)
from dln_geometry.cli.program import command


@command(
    "runs:follow_flow",
    """
    printf '2.5,0.1\\n0.3,1.5\\n-0.2,0.4\\n' > Y.csv
    dln flow Y.csv --depth 3 --out run.nc --figure flow.png
    """,
    SEED,
    MACHINE,
    READING,
    PRINTING,
)
def flow_command(
    matrix: Matrix,
    depth: DepthNumber = 3.0,
    rank: RankBound = None,
    scale: Annotated[
        float, Option(help="Singular values of the random start, relative to those of Y.")
    ] = 1e-2,
    start: Annotated[
        Path | None, Option(help="Start at this matrix instead of a random one.")
    ] = None,
    decay: Annotated[float, Option(help="Weight decay of the layers.")] = 0.0,
    t_end: Annotated[
        float | None, Option("--t-end", help="End of time [default: at rest].")
    ] = None,
    until_loss: Annotated[
        float | None, Option(help="Stop at this share of the loss of 0 [default: 1e-6].")
    ] = None,
    until_gradient: Annotated[
        float | None,
        Option(help="Stop at this norm of the Riemannian gradient [default: at rest]."),
    ] = None,
    seconds: Annotated[float | None, Option(help="Stop after this long.")] = None,
    save: Annotated[
        int | None, Option(help="Number of saved times, with --t-end [default: every step].")
    ] = None,
    rtol: Annotated[float, Option(help="Tolerance of the integrator.")] = 1e-8,
    out: RunFile = None,
    figure: Figure = None,
    store: Store = None,
) -> None:
    """Follow the gradient flow of 1/2 |X - Y|^2 at a depth from a small balanced start."""


@command(
    "runs:follow_langevin",
    """
    printf '1.5,0.1\\n0.3,0.8\\n' > Y.csv
    dln langevin Y.csv --depth 2 --beta 10 --t-end 2 --dt 0.02 --chains 20 --figure chains.png
    """,
    SEED,
    MACHINE,
    READING,
    PRINTING,
)
def langevin_command(
    matrix: Annotated[
        Path | None,
        Argument(help="The matrix Y of the loss 1/2 |X - Y|^2 [default: no loss, see --shape]."),
    ] = None,
    shape: Annotated[str | None, Option(help="Shape m,n of X where there is no Y.")] = None,
    depth: DepthNumber = 2.0,
    rank: RankBound = None,
    beta: Beta = 1.0,
    kappa: Kappa = 1.0,
    entropy: Entropy = True,
    widths: Widths = None,
    scale: Scale = 1.0,
    t_end: EndOfTime = 1.0,
    dt: TimeStep = None,
    chains: Annotated[int, Option(help="Number of independent chains.")] = 1,
    method: Annotated[str, Option(help="product or splitting.")] = "product",
    save: SavedTimes = None,
    out: RunFile = None,
    figure: Figure = None,
    store: Store = None,
) -> None:
    """Simulate Riemannian Langevin dynamics of end-to-end matrices."""


@command(
    "runs:follow_particles",
    """
    dln dyson --particles 20 --index 2 --t-end 1 --dt 0.01 --figure dyson.png --out dyson.csv
    dln dyson --shape 6,4 --depth 3 --beta 2 --start 1,1,1,1 --figure depth.png
    """,
    SEED,
    MACHINE,
    PRINTING,
)
def dyson_command(
    particles: Annotated[
        int | None, Option(help="Number of particles [default: that of --start or --shape, or 10].")
    ] = None,
    index: Annotated[
        float | None, Option(help="Dyson index in (0, inf] [default: 2; 1 with --shape].")
    ] = None,
    shape: Annotated[
        str | None, Option(help="Singular values of an m x n matrix, given as m,n.")
    ] = None,
    depth: Annotated[
        float | None,
        Option(help="Singular values of the end-to-end matrix at this depth (or inf)."),
    ] = None,
    start: Annotated[
        str | None, Option(help="Positions with commas between [default: 0; 1 with --depth].")
    ] = None,
    beta: Beta = 1.0,
    kappa: Kappa = 1.0,
    entropy: Entropy = True,
    confinement: Annotated[float, Option(help="Rate of a drift to 0; none with --depth.")] = 0.0,
    scheme: Annotated[
        str, Option(help="isospectral, exact, tridiagonal or implicit; eigenvalues alone.")
    ] = "isospectral",
    t_end: EndOfTime = 1.0,
    dt: TimeStep = None,
    paths: Annotated[int, Option(help="Number of independent paths.")] = 1,
    save: SavedTimes = None,
    out: RunFile = None,
    figure: Figure = None,
    store: Store = None,
) -> None:
    """Simulate Dyson Brownian motion: eigenvalues, or singular values with --shape or --depth."""
