"""Options that several commands share, each declared once. Nothing here may import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Matrix = Annotated[
    Path,
    Argument(
        help="A matrix: .npy .npz .csv .tsv .txt .tab .dat .data .mtx .parquet .pt .pth "
        ".safetensors (text and .mtx also as .gz)."
    ),
]
Key = Annotated[str | None, Option(help="Name of the array, where a file holds several.")]
Header = Annotated[
    bool | None,
    Option("--header/--no-header", help="Whether the first line of a text table is a header."),
]
Index = Annotated[
    bool | None,
    Option("--index/--no-index", help="Whether the first column of a text table is an index."),
]
Delimiter = Annotated[
    str | None, Option(help="What separates cells: , ; tab space :: or another mark.")
]
Decimal = Annotated[str, Option(help="Mark before the decimals: . or a comma.")]
MaxMemory = Annotated[
    float | None, Option(help="Limit of memory in GiB [default: that of the machine].")
]

LayerCount = Annotated[int, Option(help="Number of layers.")]
DepthNumber = Annotated[float, Option(help="Depth N >= 1, a real number or inf.")]
Rank = Annotated[int | None, Option(help="Rank [default: the numerical rank].")]
RankBound = Annotated[int | None, Option(help="Rank of X [default: the smaller side].")]
Widths = Annotated[
    str | None,
    Option(help="Widths d_0,...,d_N, or one number for every hidden layer [default: min]."),
]
Beta = Annotated[float, Option(help="Inverse temperature.")]
Kappa = Annotated[float, Option(help="Noise across the orbits over that along them.")]
Entropy = Annotated[
    bool, Option("--entropy/--no-entropy", help="Whether noise along the orbits acts.")
]
Scale = Annotated[float, Option(help="Singular values of the random start.")]
EndOfTime = Annotated[float, Option("--t-end", help="End of time.")]
TimeStep = Annotated[float | None, Option(help="Largest step [default: t-end / 1000].")]
SavedTimes = Annotated[
    int | None, Option("--save", help="Number of saved times [default: every step, at most 101].")
]

Seed = Annotated[int, Option(help="Seed of everything random.")]
Device = Annotated[
    str,
    Option(
        help="Device that computes: cpu, cuda, cuda:1, mps, ...",
        autocompletion=lambda: ["cpu", "cuda", "mps"],
    ),
]
Dtype = Annotated[
    str, Option(help="float64 or float32.", autocompletion=lambda: ["float64", "float32"])
]
AsJson = Annotated[bool, Option("--json", help="Print one object of JSON instead of tables.")]
Force = Annotated[
    bool, Option("--force", help="Overwrite files that are no earlier results of this command.")
]
Figure = Annotated[Path | None, Option(help="Figure to write: .png, .pdf or .svg.")]
RunFile = Annotated[
    Path | None,
    Option(
        "--out",
        help="File of the run: .npz (Trajectory.load), .nc (xarray), .zarr, .pt, .safetensors, or "
        "a table: .csv .tsv .parquet.",
    ),
]
MatrixFile = Annotated[
    Path | None,
    Option("--out", help="File of the result: .npy .npz .csv .tsv .parquet .mtx .pt .safetensors."),
]
LayersFile = Annotated[
    Path, Option("--out", help="File of the layers W_1, ..., W_N: .npz, .pt or .safetensors.")
]
Store = Annotated[
    Path | None,
    Option(help="Folder in the format of zarr, from which a killed run continues."),
]
Quick = Annotated[bool, Option("--quick", help="A small version, in seconds.")]
PhotographFile = Annotated[Path, Option("--out", help="Figure to write: .png, .pdf or .svg.")]
PhotographStore = Annotated[
    Path | None, Option("--store", help="Folder of stores, from which a killed job continues.")
]

# What many commands take, by name: type and default. `program.command` appends them.
SEED = {"seed": (Seed, 0)}
MACHINE = {"device": (Device, "cpu"), "dtype": (Dtype, "float64")}
READING = {
    "key": (Key, None),
    "header": (Header, None),
    "index": (Index, None),
    "delimiter": (Delimiter, None),
    "decimal": (Decimal, "."),
    "max_memory": (MaxMemory, None),
}
LIMITED = {"max_memory": READING["max_memory"]}
PRINTING = {"as_json": (AsJson, False), "force": (Force, False)}
