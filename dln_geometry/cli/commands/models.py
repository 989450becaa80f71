"""What takes checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dln_geometry.cli.options import LIMITED, MACHINE, PRINTING, Figure
from dln_geometry.cli.program import command


@command(
    "models:print_moments",
    """
    printf '2.5,0.1\\n0.3,1.5\\n-0.2,0.4\\n' > X.csv
    dln balance X.csv --depth 3 --out W.npz --force
    dln moments W.npz --figure spectra.png
    """,
    MACHINE,
    LIMITED,
    PRINTING,
)
def moments_command(
    model: Annotated[
        Path, Argument(help="Weights: .safetensors, .npz, .pt, .pth or .ckpt (a state_dict).")
    ],
    layers: Annotated[
        str | None,
        Option(help="Names of the layers from the input on, with commas [default: all matrices]."),
    ] = None,
    transpose: Annotated[
        bool, Option("--transpose", help="The file holds W^T, as x @ W has it.")
    ] = False,
    out: Annotated[
        Path | None, Option(help="File of the moments G_p: .npz, .pt or .safetensors.")
    ] = None,
    figure: Figure = None,
) -> None:
    """Print spectra of the layers of a checkpoint, and how far from balanced they are.

    Layers whose shapes follow each other form a chain: it has the moments
    G_p = W_{p+1}^T W_{p+1} - W_p W_p^T, which are 0 where it is balanced, and a product. Both are
    about the function of the network only where nothing nonlinear stands between the layers.
    """


@command(
    "models:print_charges",
    """
    printf '2.5,0.1\\n0.3,1.5\\n-0.2,0.4\\n' > X.csv
    dln balance X.csv --depth 3 --out before.npz --force
    dln balance X.csv --depth 3 --out after.npz --haar --force
    dln charges before.npz after.npz
    """,
    MACHINE,
    LIMITED,
    PRINTING,
)
def charges_command(
    files: Annotated[
        list[Path],
        Argument(help="Checkpoints in order of time, or one record that a ChargeMonitor saved."),
    ],
    model: Annotated[
        str | None,
        Option(
            help="The model: file.py:NAME or package.module:NAME, a module of torch or a function "
            "that makes it; it is run [default: the matrices are linear layers]."
        ),
    ] = None,
    example_input: Annotated[
        str | None,
        Option(help="Shape of an input, as 8,3,32,32: symmetries are then tried out."),
    ] = None,
    loss: Annotated[
        str | None, Option(help="cross_entropy, where it is the loss of the model.")
    ] = None,
    relu: Annotated[
        bool, Option("--relu", help="Without --model: ReLU between the layers.")
    ] = False,
    out: Annotated[
        Path | None, Option(help="File of all charges over time: as the runs of dln flow.")
    ] = None,
    figure: Figure = None,
) -> None:
    """Print the charges of a model's symmetries along its training.

    Gradient flow conserves them. Finite steps, momentum, weight decay and preconditioners move
    them: in a training loop learning.ChargeMonitor predicts by how much, under SGD from gradients,
    under other optimisers from the steps taken; this command reads its records.
    """
