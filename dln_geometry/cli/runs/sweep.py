"""A command for every combination of some of its options: ``dln sweep``."""

from __future__ import annotations

import contextlib
import io
import json
import math
import numbers
import tomllib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dln_geometry.cli.exchange import check_results, write_run
from dln_geometry.cli.program import WORKERS
from dln_geometry.cli.report import print_json, shown_progress
from dln_geometry.cli.signals import continuable
from dln_geometry.dynamics.sweeping import sweep

_KEYS = {"command": str, "options": dict, "axes": dict, "arguments": list}
_NEVER = {"sweep", "experiments"}
"""Commands that print no object of JSON, or would call themselves."""


class CommandRun:
    """Call a command with values of some options; return the numbers that it prints as JSON."""

    def __init__(self, command: str, arguments: list[str], options: dict[str, Any]) -> None:
        self.command, self.arguments, self.options = command, arguments, options
        told = json.dumps([command, arguments, options], sort_keys=True)
        # A store knows a run by its name: other options are another run.
        self.__qualname__ = f"dln {told}"
        self.__name__ = command

    def __call__(self, **axes: Any) -> dict[str, Any]:
        from dln_geometry.cli.app import main

        given = [*self.arguments]
        for name, value in {**self.options, **axes}.items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                given.append(f"--{option}" if value else f"--no-{option}")
            else:
                given.append(f"--{option}={_option_text(value)}")
        out, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            code = main([self.command, *given, "--json"])
        if code in (130, 143):
            raise KeyboardInterrupt
        if code:
            lines = [x for x in said.getvalue().splitlines() if x.startswith("error: ")]
            raise ValueError(lines[-1].removeprefix("error: ") if lines else f"exit code {code}")
        return dict(_values_of(json.loads(out.getvalue()), axes))


def run_sweep(
    config: Path,
    out: Path | None,
    store: Path | None,
    workers: int,
    as_json: bool,
    force: bool,
) -> None:
    """Read the file, make the runs, and write and print their numbers."""
    read = read_config(config)
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    check_results(out, (".nc", ".zarr"), None, (config, store), force=force)
    run = CommandRun(read["command"], read["arguments"], read["options"])
    pool: Any = contextlib.nullcontext()
    if workers > 1:
        pool = ProcessPoolExecutor(workers, get_context("spawn"))
    with continuable(store), shown_progress("sweep") as progress, pool as executor:
        found = sweep(run, read["axes"], executor=executor, store=store, progress=progress)
    if out is not None:
        write_run(out, found)
    series = {str(name): x for name, x in found.data_vars.items()}
    if as_json:
        numbers_of = {name: x.values.tolist() for name, x in series.items()}
        dims = {name: list(map(str, x.dims)) for name, x in series.items()}
        axes = {name: list(values) for name, values in read["axes"].items()}
        print_json({"axes": axes, "dimensions": dims, "values": numbers_of, "written": out})
        return
    print(f"{math.prod(map(len, read['axes'].values()))} runs of dln {read['command']}")
    for name, x in series.items():
        if set(map(str, x.dims)) == set(read["axes"]) and x.dtype.kind in "iuf":
            least, largest = f"{float(x.min()):.6g}", f"{float(x.max()):.6g}"
            print(f"{name}: {least}" if least == largest else f"{name}: {least} to {largest}")
    if out is not None:
        print(f"written: {out}")


def read_config(path: Path) -> dict[str, Any]:
    """Return the checked content of the file: command, arguments, options and axes."""
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a TOML file: {error}") from None
    for name, value in read.items():
        if name not in _KEYS:
            raise ValueError(f"{path} must hold {', '.join(_KEYS)}, got {name}")
        if not isinstance(value, _KEYS[name]):
            raise ValueError(f"{path}: {name} must be a {_KEYS[name].__name__}, got {value!r}")
    known = sorted(WORKERS.keys() - _NEVER)
    if (command := read.get("command")) not in known:
        raise ValueError(f"{path}: command must be one of {', '.join(known)}, got {command!r}")
    if not read.get("axes"):
        raise ValueError(f"{path}: axes must hold at least one option with its values")
    for name, value in read.get("options", {}).items():
        if not isinstance(value, str | int | float):
            raise ValueError(f"{path}: options.{name} must be a number, a text or a flag")
    for name, values in read["axes"].items():
        if not isinstance(values, list):
            raise ValueError(f"{path}: axes.{name} must be a list of values, got {values!r}")
        if name in read.get("options", {}):
            raise ValueError(f"{path}: {name} must stand in options or in axes, got it in both")
    axes = {name.replace("-", "_"): values for name, values in read["axes"].items()}
    arguments = [str(x) for x in read.get("arguments", [])]
    return {"options": {}, **read, "axes": axes, "arguments": arguments}


def _option_text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _values_of(content: Any, axes: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Return the numbers and texts of an object of JSON by name, but for those of the axes."""
    found: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{before}{key}"
        if name in axes or name == "written":
            continue
        if isinstance(value, dict):
            found += _values_of(value, axes, f"{name}_")
        elif value is None or value in ("inf", "-inf", "nan"):
            found.append((name, float(value or "nan")))
        elif isinstance(value, str | numbers.Real) or _are_numbers(value):
            found.append((name, value))
    return found


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, numbers.Real) for x in value)
