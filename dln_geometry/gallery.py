"""What the scripts of the gallery (`examples/`) share: options, the style, files of figures.

A script begins with ``run = gallery.begin(__doc__)``, asks ``run.quick`` for the size of its
experiment and hands its figure to ``run.save(figure)``, which writes it under the script's name.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "begin"]


@dataclass(frozen=True)
class Run:
    """One run of a script: its name, its size, and the folder of its figures."""

    name: str
    quick: bool
    folder: Path

    def save(self, figure: Figure, part: str = "") -> list[Path]:
        """Write a figure as PDF and PNG, print where, and return the paths.

        Parameters
        ----------
        figure : matplotlib.figure.Figure
        part : str
            Appended to the script's name, for a script with several figures.
        """
        stem = f"{self.name}_{part}" if part else self.name
        paths = [self.folder / f"{stem}.{kind}" for kind in ("pdf", "png")]
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            # Without its date a PDF is the same file whenever the script is run again.
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(path, dpi=200, metadata=metadata)
        print(f"figure: {paths[0]} and {paths[1].name}")
        return paths


def begin(doc: str) -> Run:
    """Read the options of a script, ``--quick``, ``--out`` and ``--help``.

    ``--help`` prints the docstring and ends the script. In a notebook there are no options.

    Parameters
    ----------
    doc : str
        The script's docstring.

    Examples
    --------
    >>> from dln_geometry import gallery
    >>> import sys
    >>> sys.argv = ["saxe_curves.py", "--quick"]
    >>> run = gallery.begin("How singular values grow.")
    >>> run.name, run.quick
    ('saxe_curves', True)
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=form)
    parser.add_argument("--quick", action="store_true", help="a small version, within 20 seconds")
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder of the figures", metavar="FOLDER"
    )
    notebook = "ipykernel" in Path(sys.argv[0]).name
    options = parser.parse_args([] if notebook else None)
    name = "figure" if notebook else Path(sys.argv[0]).stem
    return Run(name, options.quick, options.out.resolve())
