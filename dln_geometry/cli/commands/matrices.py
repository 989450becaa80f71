"""What takes one or two matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from dln_geometry.cli.options import (
    MACHINE,
    PRINTING,
    READING,
    SEED,
    DepthNumber,
    Figure,
    LayerCount,
    LayersFile,
    Matrix,
    MatrixFile,
    Rank,
    RunFile,
    Widths,
)
from dln_geometry.cli.program import command


@command(
    "matrices:write_balanced",
    """
    printf '2.5,0.1\\n0.3,1.5\\n-0.2,0.4\\n' > X.csv
    dln balance X.csv --depth 3 --out W.npz
    """,
    SEED,
    MACHINE,
    READING,
    PRINTING,
)
def balance_command(
    matrix: Matrix,
    depth: LayerCount = 2,
    out: LayersFile = Path("W.npz"),
    widths: Widths = None,
    rank: Rank = None,
    haar: Annotated[
        bool, Option("--haar", help="Draw the hidden gauges instead of the canonical ones.")
    ] = False,
) -> None:
    """Write balanced factors W_1, ..., W_N of a matrix, input side first."""


@command(
    "matrices:print_entropy",
    """
    printf '2.5,0.1\\n0.3,1.5\\n-0.2,0.4\\n' > X.csv
    dln entropy X.csv --depth 3 --figure spectrum.png
    """,
    MACHINE,
    READING,
    PRINTING,
)
def entropy_command(
    matrix: Matrix,
    depth: DepthNumber = 2.0,
    widths: Widths = None,
    rank: Rank = None,
    out: MatrixFile = None,
    figure: Figure = None,
) -> None:
    """Print the entropy of a matrix: the logarithm of the volume of its balanced factorisations.

    --out writes the singular values.
    """


@command(
    "runs:run_geodesic",
    """
    printf '2.5,0.1\\n0.3,1.5\\n' > X.csv
    printf '1.0,0.4\\n-0.2,3.0\\n' > Y.csv
    dln geodesic X.csv Y.csv --depth 3 --figure geodesic.png
    """,
    MACHINE,
    READING,
    PRINTING,
)
def geodesic_command(
    matrix: Matrix,
    other: Matrix,
    depth: DepthNumber = 2.0,
    rank: Rank = None,
    points: Annotated[int, Option(help="Number of points, both ends included.")] = 11,
    rtol: Annotated[float | None, Option(help="Error allowed, relative to the distance.")] = None,
    out: RunFile = None,
    figure: Figure = None,
) -> None:
    """Follow the geodesic of g^N from one matrix to another, and print its length.

    The options about files hold for both matrices.
    """
