from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from collections import Counter
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import dln_geometry as dln
import manifolds

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Importing these runs a program.
PROGRAMS = {"dln_geometry.__main__"}


def modules_of(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(m.name for m in found if m.name not in PROGRAMS)]


def own_public(module: ModuleType, name: str) -> list[tuple[str, object]]:
    return [
        (public, value)
        for public, value in vars(module).items()
        if not public.startswith("_")
        and (inspect.isroutine(value) or inspect.isclass(value))
        and value.__module__ == name
    ]


MODULES = [*modules_of(dln), *modules_of(manifolds)]


def text_files() -> list[Path]:
    folders = ["dln_geometry", "manifolds", "tests", "examples", "benchmarks", ".ci"]
    files = [*ROOT.iterdir(), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    binary = {".png", ".npz", ".npy", ".nc", ".pyc"}
    return [
        path
        for path in files
        if path.is_file()
        # In a worktree of git: where the repository is.
        and path.name != ".git"
        and path.suffix not in binary
        and not any(part.endswith("_cache") for part in path.parts)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name):
    assert importlib.import_module(name).__doc__


def test_every_name_in_all_exists_once_and_is_documented():
    names = dln.__all__
    assert names
    assert len(names) == len(set(names))
    for name in names:
        value = getattr(dln, name)
        if callable(value) or isinstance(value, ModuleType):
            assert inspect.getdoc(value), f"dln_geometry.{name} must have a docstring"


def test_all_is_the_whole_public_surface():
    """Whatever can be reached without an underscore is promised, but for the layout's folders."""
    folders = {m.name for m in pkgutil.iter_modules(dln.__path__)}
    public = {name for name in dir(dln) if not name.startswith("_")} - folders - {"annotations"}
    assert public == {name for name in dln.__all__ if not name.startswith("_")} - folders


@pytest.mark.parametrize("name", MODULES)
def test_all_of_each_module_names_its_own(name):
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), f"{name}.__all__ must name what exists, got {public}"


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_classes_and_methods_have_docstrings(name):
    """A method may inherit its docstring from what it overrides."""
    for public, value in own_public(importlib.import_module(name), name):
        assert inspect.getdoc(value), f"{name}.{public} must have a docstring"
        for method in vars(value) if inspect.isclass(value) else ():
            member = getattr(value, method)
            is_method = inspect.isroutine(member) or isinstance(member, property | cached_property)
            if is_method and not method.startswith("_"):
                assert inspect.getdoc(member), f"{name}.{public}.{method} must have a docstring"


def test_version_stands_in_one_place():
    assert metadata.version("dln-geometry") == dln.__version__
    assert PROJECT["project"]["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {dln.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {dln.__version__} " in changes
    newest = changes.split("\n## ")[1]
    assert "### Added" not in newest, "changes stand under their subjects"


def test_installation_ships_the_types_and_the_command():
    distribution = metadata.distribution("dln-geometry")
    for package in (dln, manifolds):
        assert (Path(package.__path__[0]) / "py.typed").is_file()
    # An editable installation lists no files of its own.
    shipped = {str(path) for path in distribution.files or ()}
    if "dln_geometry/__init__.py" in shipped:
        assert {"dln_geometry/py.typed", "manifolds/py.typed"} <= shipped
        assert not any(path.startswith(("tests/", "examples/", "benchmarks/")) for path in shipped)
    (command,) = distribution.entry_points.select(group="console_scripts", name="dln")
    assert callable(command.load())


def pins_of(name):
    lines = (ROOT / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(package): Version(version) for package, version in pins}
    assert len(pinned) == len(pins), f"{name} must pin every package once"
    return pinned


def requirements():
    """Return what pyproject.toml asks for, extras included, but not the package itself."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    every = [*PROJECT["project"]["dependencies"], *(r for extra in extras for r in extra)]
    found = [Requirement(r) for r in every]
    return {canonicalize_name(r.name): r for r in found if r.name != "dln-geometry"}


def test_constraints_pin_every_requirement_within_its_range():
    pins = pins_of("constraints.txt")
    for name, requirement in requirements().items():
        assert pins[name] in requirement.specifier, name


def test_oldest_constraints_are_the_lower_bounds():
    """All but torch, whose oldest wheels bring gigabytes of CUDA: the tested version stands in."""
    oldest = pins_of("constraints-oldest.txt")
    bounds = {
        name: Version(bound.version)
        for name, requirement in requirements().items()
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    assert oldest.keys() == requirements().keys()
    assert oldest.pop("torch") == pins_of("constraints.txt")["torch"] >= bounds.pop("torch")
    assert oldest == bounds


def installed_with(name, extras=(), seen=None):
    """Return the installed versions of a package and of all that it requires, directly or not."""
    seen = {} if seen is None else seen
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return seen
    seen[canonicalize_name(name)] = Version(distribution.version)
    for requirement in map(Requirement, distribution.requires or ()):
        marker, wanted = requirement.marker, ("", *extras)
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted):
            known = canonicalize_name(requirement.name) in seen
            if not known or requirement.name == "dln-geometry":
                installed_with(requirement.name, requirement.extras, seen)
    return seen


def test_constraints_pin_everything_that_is_installed():
    installed = installed_with("dln-geometry", ["test", "dev"])
    pins = pins_of("constraints.txt")
    assert {"torch", "click", "pluggy"} <= installed.keys()
    if any(Version(v.public) != pins[k] for k, v in installed.items() if k in requirements()):
        pytest.skip("other versions are installed than those of constraints.txt")
    # As its head says: the packages of CUDA are those that torch chooses.
    cuda = re.compile(r"nvidia-|cuda-|triton$")
    assert not {name for name in installed.keys() - pins.keys() if not cuda.match(name)} - {
        "dln-geometry"
    }


def test_what_is_pinned_runs_on_every_python_that_is_named():
    """A later release of 3.11 alone is not what the README asks for."""
    first = SpecifierSet(PROJECT["project"]["requires-python"])
    (least,) = (Version(f"{spec.version}.0") for spec in first)
    pins = pins_of("constraints.txt")
    too_new = {
        f"{name} {found.version}: Python {wanted}"
        for found in metadata.distributions()
        if (name := canonicalize_name(found.metadata["Name"])) in pins
        and pins[name] == Version(found.version)
        and (wanted := found.metadata.get("Requires-Python"))
        and least not in SpecifierSet(wanted)
    }
    assert not too_new


def test_files_speak_of_the_project_alone():
    """No path of the machine that a file was written on, in any file."""
    machine = re.compile(r"(?<![\w.])/(?:work|home|root|Users|tmp|opt|mnt)/\w")
    hits = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in text_files()
        if path != Path(__file__)
        for line in path.read_text().splitlines()
        if machine.search(line)
    ]
    assert not hits, "\n".join(hits)


PACKAGES = [path for name in ("dln_geometry", "manifolds") for path in (ROOT / name).rglob("*.py")]


def test_rooms_are_small():
    """A newcomer finds a thing: at most 12 files in a folder, some 300 lines in a file."""
    pages = (path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".py"))
    files = [*pages, *(path for path in PACKAGES if path.name != "__init__.py")]
    rooms = Counter(path.parent for path in files)
    assert not {str(room): n for room, n in rooms.items() if n > 12}
    lengths = {str(path): len(path.read_text().splitlines()) for path in PACKAGES}
    assert not {path: n for path, n in lengths.items() if n > 320}


def test_no_name_means_two_things():
    """A function or class at the top of a file has a name of its own, private ones too."""
    places: dict[str, set[str]] = {}
    for path in PACKAGES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("__"):
                places.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    # A figure is called like what it shows.
    figures = {"entropy"}
    assert not {name: found for name, found in places.items() if len(found) > 1}.keys() - figures


def test_faces_say_what_their_rooms_hold():
    for face in (path for path in PACKAGES if path.name == "__init__.py"):
        doc = ast.get_docstring(ast.parse(face.read_text()))
        assert doc, f"{face.relative_to(ROOT)} must have a docstring"
        assert len(doc) > 40, f"{face.relative_to(ROOT)} must say what is inside, got {doc!r}"
