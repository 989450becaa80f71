"""One style for all figures: sizes, fonts, a fixed colour for every depth, letters, files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dln_geometry.plot.axes import axes_of, new_figure
from dln_geometry.support import as_count, as_depth, as_positive, shown, written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTHS = {"column": 3.4, "page": 7.0}
"""Widths of figures in inches: one column, and the whole page, of a journal."""

COLORS = ("#004488", "#DDAA33", "#BB5566", "#000000")
"""Colours in order; their lightness differs, so that they stay apart in grey (Tol, 2021)."""


@contextmanager
def style(width: str | float = "column", *, aspect: float = 0.72) -> Iterator[None]:
    """Draw figures for print while the context lasts: sizes, fonts, lines, colours, PDF fonts.

    Figures have the width at which they are printed, so that their letters of 7 to 8 points are
    printed as such. Make, draw and `save` the figure inside: matplotlib makes ticks when it draws.

    Parameters
    ----------
    width : {"column", "page"} or float
        Width of new figures: 3.4 or 7 inches, or a number of inches.
    aspect : float
        Height of new figures by their width.

    Examples
    --------
    >>> with dln.plot.style("page"):
    ...     fig, axes = dln.plot.figure(1, 2)
    ...     _ = dln.plot.spectrum([[2.0, 1.0], [0.0, 1.0]], axes[0], color=dln.plot.depth_color(3))
    ...     _ = dln.plot.panel_letters(axes)
    >>> tuple(float(side) for side in fig.get_size_inches())
    (7.0, 2.625)
    """
    inches, ratio = _inches(width), as_positive(aspect, "aspect")
    from cycler import cycler
    from matplotlib import rc_context

    rc: Any = {
        "figure.figsize": (inches, ratio * inches),
        "figure.constrained_layout.use": True,
        "figure.dpi": 150,
        "savefig.dpi": 300,
        "savefig.bbox": None,
        # DejaVu comes with matplotlib: figures look the same everywhere.
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "mathtext.fontset": "dejavusans",
        "font.size": 8.0,
        "axes.labelsize": 8.0,
        "axes.titlesize": 8.0,
        "xtick.labelsize": 7.0,
        "ytick.labelsize": 7.0,
        "legend.fontsize": 7.0,
        "figure.titlesize": 8.0,
        "figure.labelsize": 8.0,
        "legend.frameon": False,
        "legend.handlelength": 1.8,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.formatter.use_mathtext": True,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.5,
        "image.cmap": "viridis",
        # Letters stay letters: editors of journals refuse type 3 fonts.
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
    }
    with rc_context(rc):
        yield


def figure(
    rows: int = 1,
    cols: int = 1,
    *,
    width: str | float | None = None,
    aspect: float = 0.75,
    pyplot: bool = False,
    **options: Any,
) -> tuple[Figure, Any]:
    """Return a new figure and its axes, as many rows and columns of panels as asked.

    Parameters
    ----------
    rows, cols : int
        Number of panels; one panel comes as `Axes`, several as an array of them.
    width : {"column", "page"} or float, optional
        Width as in `style`; by default that of the style in force.
    aspect : float
        Height of a panel by its width.
    pyplot : bool
        Let pyplot know the figure, which then shows it in notebooks and galleries.
    **options
        Options of ``Figure.subplots``.

    Examples
    --------
    >>> fig, axes = dln.plot.figure(2, 3, width="page", sharex=True)
    >>> axes.shape
    (2, 3)
    """
    rows, cols = as_count(rows, "rows"), as_count(cols, "cols")
    inches = None if width is None else _inches(width)
    ratio = as_positive(aspect, "aspect")
    if not isinstance(pyplot, bool):
        raise TypeError(f"pyplot must be True or False, got {shown(pyplot)}")
    made = new_figure()
    inches = made.get_figwidth() if inches is None else inches
    size = (inches, ratio * inches * rows / cols)
    if pyplot:
        from matplotlib import pyplot as shown_figures

        made = shown_figures.figure(figsize=size, layout="constrained")
    else:
        made.set_size_inches(size)
    return made, made.subplots(rows, cols, **options)


def depth_color(depth: float) -> tuple[float, float, float, float]:
    """Return the colour of a depth, the same on every figure: the deeper, the darker.

    The colour depends on ``1/sqrt(N)`` and runs through viridis, whose lightness is monotone, so
    that depths can be told apart by colour-blind eyes and in grey. Infinity is the darkest.

    Examples
    --------
    >>> lightness = [sum(dln.plot.depth_color(n)[:3]) for n in (1, 2, 3, 10, float("inf"))]
    >>> lightness == sorted(lightness, reverse=True)
    True
    """
    share = 1.0 / math.sqrt(as_depth(depth))
    from matplotlib import colormaps

    r, g, b, a = colormaps["viridis"](0.88 * share)
    return float(r), float(g), float(b), float(a)


def depth_label(depth: float, word: str = "depth") -> str:
    """Return the label of a depth; infinity is the sign ∞. With ``word=""`` it is the number alone.

    Examples
    --------
    >>> [dln.plot.depth_label(depth) for depth in (3, 2.5, float("inf"))]
    ['depth 3', 'depth 2.5', 'depth ∞']
    """
    value = as_depth(depth)
    if not isinstance(word, str):
        raise TypeError(f"word must be a str, got {shown(word)}")
    return f"{word} {'∞' if value.infinite else f'{float(value):g}'}".strip()


def panel_letters(axes: Any, letters: Sequence[str] | str | None = None) -> list[Axes]:
    """Write a, b, c, ... in bold above the left corners of panels; return the panels.

    Parameters
    ----------
    axes : Axes, or array or sequence of Axes
        The panels, in the order of reading.
    letters : sequence of str, optional
        Other letters, as many as panels.

    Examples
    --------
    >>> fig, axes = dln.plot.figure(1, 2)
    >>> [ax.get_title(loc="left") for ax in dln.plot.panel_letters(axes)]
    ['a', 'b']
    """
    panels = [axes_of(ax if ax is not None else "None", "axes") for ax in _all_panels(axes)]
    given = "abcdefghijklmnopqrstuvwxyz" if letters is None else letters
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise TypeError(f"letters must be a sequence of str, got {shown(letters)}")
    if len(given) < len(panels) or (letters is not None and len(given) != len(panels)):
        raise ValueError(f"letters must be as many as panels, {len(panels)}, got {shown(letters)}")
    for ax, letter in zip(panels, given, strict=False):
        ax.set_title(letter, loc="left", fontweight="bold")
    return panels


def save(
    figure: Any, path: str | os.PathLike[str], formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Write a figure in several formats, each file whole or not at all; return their paths.

    Parameters
    ----------
    figure : Figure or Axes
        What is written; of axes, their whole figure.
    path : path
        Name of the files. With a suffix that matplotlib knows, only that file is written.
    formats : sequence of str
        Suffixes of the files for a name without one.

    Examples
    --------
    >>> import tempfile
    >>> name = tempfile.mkdtemp() + "/fig1"
    >>> [file.name for file in dln.plot.save(dln.plot.matrix([[1.0, 2.0]]), name)]
    ['fig1.pdf', 'fig1.png']
    """
    whole = getattr(figure, "figure", None) or figure
    if not callable(getattr(whole, "savefig", None)):
        raise TypeError(f"figure must be a Figure or Axes of matplotlib, got {shown(figure)}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path, got {shown(path)}")
    known = whole.canvas.get_supported_filetypes()
    target = Path(path)
    own = target.suffix.lstrip(".").lower()
    kinds = [own] if own in known else list(formats) if isinstance(formats, list | tuple) else None
    if not kinds or not all(isinstance(kind, str) and kind in known for kind in kinds):
        raise (TypeError if kinds is None else ValueError)(
            f"formats must be some of {', '.join(sorted(known))}, got {shown(formats)}"
        )
    written = []
    for kind in kinds:
        file = target if own in known else target.with_name(f"{target.name}.{kind}")
        # Without a date, equal figures are equal files.
        dated = {"pdf": "CreationDate", "svg": "Date", "ps": "CreationDate"}.get(kind)
        with written_whole(file) as handle:
            whole.savefig(handle, format=kind, metadata={dated: None} if dated else None)
        written.append(file)
    return written


def _inches(width: Any) -> float:
    if isinstance(width, str):
        if width not in WIDTHS:
            raise ValueError(f'width must be "column", "page" or inches, got {shown(width)}')
        return WIDTHS[width]
    return as_positive(width, "width")


def _all_panels(axes: Any) -> Iterable[Any]:
    if isinstance(axes, np.ndarray) and axes.size:
        return axes.ravel().tolist()
    return axes if isinstance(axes, list | tuple) and axes else [axes]
