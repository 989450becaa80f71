"""A command for every combination of some of its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dln_geometry.cli.options import AsJson, Force, Store
from dln_geometry.cli.program import command


@command(
    "runs:run_sweep",
    """
    printf '2.5,0.1\\n0.3,1.5\\n' > Y.csv
    printf 'command = "flow"\\narguments = ["Y.csv"]\\n[axes]\\ndepth = [2, 3]\\n' > sweep.toml
    dln sweep sweep.toml --out sweep.nc --store sweep.zarr
    """,
)
def sweep_command(
    config: Annotated[
        Path,
        Argument(
            help="A TOML file: command, arguments (a list), [options] and [axes]; an axis is an "
            "option with a list of values."
        ),
    ],
    out: Annotated[
        Path | None, Option("--out", help="File of the result: .nc (xarray) or .zarr.")
    ] = None,
    store: Store = None,
    workers: Annotated[int, Option(help="Number of processes.")] = 1,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Run a command for every combination of values of its options; gather its numbers."""
