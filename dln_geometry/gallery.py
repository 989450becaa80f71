"""What the scripts of the gallery (`examples/`) share: options, style and files of figures.

A script begins with ``run = gallery.begin(__doc__)``, asks ``run.quick`` for the size of its
experiment, draws into ``run.figure(1, 3)`` and ends with ``run.save(figure)``, which writes the
figure under the script's name.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dln_geometry import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "begin"]

# The style of the script that runs; the next one leaves it before it begins.
_in_force = ExitStack()
# While matplotlib is still there.
atexit.register(_in_force.close)


@dataclass(frozen=True)
class Run:
    """One run of a script: its name, its size, and the folder of its figures."""

    name: str
    quick: bool
    folder: Path

    def figure(
        self, rows: int = 1, cols: int = 1, *, aspect: float = 1.0, **options: Any
    ) -> tuple[Figure, Any]:
        """Return a figure as wide as a page and its panels, with letters if there are several.

        Parameters as in `dln_geometry.plot.figure`; pyplot knows the figure, and so do galleries.
        """
        figure, axes = plot.figure(rows, cols, aspect=aspect, pyplot=True, **options)
        if rows * cols > 1:
            plot.panel_letters(axes)
        return figure, axes

    def save(self, figure: Figure, part: str = "") -> list[Path]:
        """Write a figure as PDF and PNG, print where, and return the paths.

        Parameters
        ----------
        figure : matplotlib.figure.Figure
        part : str
            Appended to the script's name, for a script with several figures.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.name}_{part}" if part else self.name
        paths = plot.save(figure, self.folder / stem)
        print("figure:", *paths)
        return paths


def begin(doc: str) -> Run:
    """Read the options of a script, ``--quick``, ``--out`` and ``--help``, and set the style.

    ``--help`` prints the docstring and ends the script. In a notebook there are no options.

    Parameters
    ----------
    doc : str
        The script's docstring.

    Examples
    --------
    >>> import sys
    >>> from dln_geometry import gallery
    >>> sys.argv = ["saxe_curves.py", "--quick"]
    >>> run = gallery.begin("How singular values grow.")
    >>> run.name, run.quick
    ('saxe_curves', True)
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=form)
    parser.add_argument("--quick", action="store_true", help="a small version, within 20 seconds")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the figures")
    notebook = "ipykernel" in Path(sys.argv[0]).name
    options = parser.parse_args([] if notebook else None)
    # geomstats lets every logger speak; that of the fonts tells of each letter in a PDF.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    _in_force.close()
    _in_force.enter_context(plot.style("page"))
    name = "figure" if notebook else Path(sys.argv[0]).stem
    return Run(name, options.quick, options.out.resolve())
