"""The experiments of the gallery, listed and run: ``dln experiments``.

A shell that completes a name waits for this module: it imports torch only to print JSON.
"""

from __future__ import annotations

import ast
import os
import runpy
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import dln_geometry


@dataclass(frozen=True)
class Experiment:
    """A script of the gallery; `title` is the first line of its docstring."""

    name: str
    theme: str
    title: str
    path: Path


def gallery_folder() -> Path:
    """Return the folder of the scripts: inside an installed package, beside it in its source."""
    inside = Path(dln_geometry.__file__).parent / "examples"
    beside = Path(dln_geometry.__file__).parents[1] / "examples"
    for folder in (inside, beside):
        if folder.is_dir():
            return folder
    raise ValueError(f"the experiments must be in {inside} or {beside}, got no such folder")


def gallery_experiments() -> list[Experiment]:
    """Return all experiments, by theme and name."""
    return [
        Experiment(path.stem, path.parent.name, _title_of(path), path)
        for path in sorted(gallery_folder().glob("[!_.]*/[!_.]*.py"))
    ]


def completed_experiments(incomplete: str) -> list[tuple[str, str]]:
    """Return the names that begin with what was typed, each with its title, for the shell."""
    return [(e.name, e.title) for e in gallery_experiments() if e.name.startswith(incomplete)]


def run_experiment(name: str | None, quick: bool, out: Path | None, as_json: bool) -> None:
    """List the experiments, or run one in this process."""
    known = gallery_experiments()
    if name is None:
        if quick or out is not None:
            raise ValueError("--quick and --out must come with the name of an experiment, got none")
        _print_list(known, as_json)
        return
    chosen = _chosen(name, known)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    arguments = [*(["--quick"] if quick else []), *(["--out", str(out)] if out else [])]
    sys.stderr.write(f"{chosen.theme}/{chosen.name}: {chosen.title}\n")
    before, path = sys.argv, sys.path[:]
    sys.argv, sys.path[:] = [str(chosen.path), *arguments], [str(chosen.path.parent), *path]
    # With JSON, what the script prints goes where messages go.
    shown = sys.stdout
    try:
        if as_json:
            sys.stdout = sys.stderr
        runpy.run_path(str(chosen.path), run_name="__main__")
    except AssertionError as error:
        said = f": {error}" if str(error) else ""
        raise RuntimeError(f"{chosen.name}: what it claims does not hold{said}") from None
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{chosen.name} must have {error.name}, got none: pip install "dln-geometry[test]"'
        ) from None
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{chosen.name} ended with {end.code}") from None
    finally:
        sys.argv, sys.path[:], sys.stdout = before, path, shown
    if as_json:
        from dln_geometry.cli.report import print_json

        print_json(
            {"name": chosen.name, "theme": chosen.theme, "title": chosen.title, "quick": quick}
        )


def _chosen(name: str, known: list[Experiment]) -> Experiment:
    """Return the experiment of a name, of theme/name, or the only one that the text is part of."""
    exact = [e for e in known if name.removesuffix(".py") in (e.name, f"{e.theme}/{e.name}")]
    found = exact or [e for e in known if name in f"{e.theme}/{e.name}"]
    if len(found) != 1:
        words = {word: e.name for e in known for word in (*e.name.split("_"), e.name)}
        near = dict.fromkeys(words[word] for word in get_close_matches(name, words))
        names = ", ".join(e.name for e in found) or "no such experiment"
        if not found and near:
            names += f" (did you mean {' or '.join(near)}?)"
        raise ValueError(
            f"name must be that of one experiment, got {name!r}: {names}; "
            "dln experiments lists them all"
        )
    return found[0]


def _title_of(path: Path) -> str:
    """Return the first line of the docstring of a script that is not a rule."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    lines = (line.strip() for line in doc.splitlines())
    return next((line for line in lines if line and set(line) - set("=-~")), path.stem)


def _print_list(known: list[Experiment], as_json: bool) -> None:
    if as_json:
        from dln_geometry.cli.report import print_json

        print_json(
            {"experiments": [{"name": e.name, "theme": e.theme, "title": e.title} for e in known]}
        )
        return
    rows = [(e.theme, e.name) for e in known]
    columns = [*zip(*rows, strict=True)] or [(), ()]
    widths = [max((len(text) for text in column), default=0) for column in columns]
    width = max(40, _columns() - sum(widths) - 4)
    for e in known:
        title = e.title if len(e.title) <= width else f"{e.title[: width - 3].rstrip()}..."
        print(f"{e.theme:<{widths[0]}}  {e.name:<{widths[1]}}  {title}".rstrip())
    print(f"\n{len(known)} experiments; dln experiments NAME runs one, with --quick in seconds")


def _columns() -> int:
    """Return the width of the terminal; what is piped is not cut."""
    return os.get_terminal_size().columns if sys.stdout.isatty() else 10_000
