"""The program ``dln`` as typer knows it, and how a command joins it. Nothing here imports torch."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import typer

from dln_geometry.cli.signals import imports_at_once

app = typer.Typer(
    name="dln",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)

_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD

WORKERS: dict[str, tuple[str, Callable[..., None]]] = {}
"""The worker of every command, as ``module:function`` of this folder, and its declaration."""


def command(
    work: str, example: str, *shared: Mapping[str, tuple[Any, Any]]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command: its function declares the options, `work` (``module:function``) does it.

    Groups of `shared` options, ``{name: (type, default)}``, follow its own. The worker has the same
    arguments and is imported when the command runs: it may need torch. The help ends with the
    example, which works as pasted.
    """

    def added(declared: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(declared, eval_str=True)
        parameters = list(own.parameters.values()) + [
            inspect.Parameter(option, _NAMED, default=default, annotation=kind)
            for group in shared
            for option, (kind, default) in group.items()
        ]
        # typer reads both.
        declared.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        setattr(declared, "__signature__", own.replace(parameters=parameters))  # noqa: B010
        name = declared.__name__.removesuffix("_command").replace("_", "-")
        WORKERS[name] = work, declared
        app.command(name, help=help_with(declared, example))(deferred(declared, work))
        return declared

    return added


def deferred(declared: Callable[..., None], work: str) -> Callable[..., None]:
    """Return a function with the arguments of `declared` that imports and calls its worker."""
    place, _, function = work.partition(":")

    @functools.wraps(declared)
    def run(**given: Any) -> None:
        with imports_at_once():
            module = import_module(f"dln_geometry.cli.{place}")
        with warnings.catch_warnings():
            warnings.showwarning = _as_line
            getattr(module, function)(**given)

    return run


def help_with(declared: Callable[..., None], example: str) -> str:
    """Return the help of a command: its docstring, and lines to paste that keep their breaks."""
    lines = [f"  {line}" for line in inspect.cleandoc(example).splitlines()]
    return "\n".join([inspect.cleandoc(declared.__doc__ or ""), "", "\b", "Example:", *lines])


def _as_line(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line, without the place in the code that raised it."""
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")
