"""Public names that are imported when they are first asked for (PEP 562), listed in a stub file."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def on_demand(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__, __dir__, __all__`` of a package that imports its names when asked.

    Type checkers and this function read one list, the stub ``.pyi`` beside the `file` of the
    package: ``from place import name as name``. Modules inside can be reached too.
    """
    places = _places_of(Path(file).with_suffix(".pyi"))
    module = sys.modules[package]

    def __getattr__(name: str) -> Any:
        inside = f"{package}.{name}"
        if (place := places.get(name)) not in (None, package):
            home = import_module(place)
            value = getattr(home, name) if hasattr(home, name) else import_module(f"{place}.{name}")
        elif not name.startswith("_") and find_spec(inside) is not None:
            value = import_module(inside)
        else:
            text = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(text, name=name, obj=module)
        # The next time the name is found without a call.
        vars(module)[name] = value
        return value

    def __dir__() -> list[str]:
        from pkgutil import iter_modules

        inside = {m.name for m in iter_modules(module.__path__) if not m.name.startswith("_")}
        return sorted({*vars(module), *places, *inside})

    return __getattr__, __dir__, sorted(name for name in places if not name.startswith("_"))


def _places_of(stub: Path) -> dict[str, str]:
    """Return the names that a stub imports, and the modules that they come from."""
    return {
        alias.name: node.module
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
