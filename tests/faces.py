"""The contract that a room is entered by its face; `lint-imports` runs it.

A room is a folder of modules, its face is its `__init__`. Modules of other folders import from the
face and not from a file inside. A file that stands directly in a folder of rooms
(`dynamics/store.py`) is a room of one file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

ROOT = Path(__file__).parents[1]


def imports_past_a_face(folders: list[str], packages: tuple[str, ...]) -> Iterator[str]:
    """Name the imports in these folders that enter a room of the packages by a file inside."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.ImportFrom) or not node.module:
                    continue
                if node.module.split(".")[0] not in packages:
                    continue
                # `from room import file` enters as much as `from room.file import name`.
                shown = shown_by(ROOT / node.module.replace(".", "/") / "__init__.py")
                files = {f"{node.module}.{a.name}" for a in node.names if a.name not in shown}
                for module in sorted({node.module, *files}):
                    file = (ROOT / module.replace(".", "/")).with_suffix(".py")
                    if file.exists() and is_room(file.parent) and file.parent != path.parent:
                        yield f"{path.relative_to(ROOT)}:{node.lineno} imports {module}"


def is_room(folder: Path) -> bool:
    """Tell whether a folder holds modules and no rooms of its own."""
    return not any((child / "__init__.py").exists() for child in folder.iterdir())


def shown_by(face: Path) -> set[str]:
    """Return the names in the `__all__` of a face; a function may be called like its file."""
    for node in ast.parse(face.read_text()).body if face.exists() else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


class FacesContract(Contract):
    """Refuse imports that enter a room by a file inside."""

    folders = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        packages = tuple(self.session_options["root_packages"])
        found = list(imports_past_a_face(list(self.folders), packages))  # pyright: ignore
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["found"]:
            output.print_error(line)
