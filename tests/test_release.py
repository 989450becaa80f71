"""What the wheel and the source archive hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import dln_geometry as dln

ROOT = Path(__file__).parents[1]
NAME = f"dln_geometry-{dln.__version__}"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    wheel, archive = folder / f"{NAME}-py3-none-any.whl", folder / f"{NAME}.tar.gz"
    assert sorted(folder.iterdir()) == sorted((wheel, archive))
    return wheel, archive


def files_of(folder):
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_both_packages_and_the_gallery_alone(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
        about = message_from_string(wheel.read(f"{NAME}.dist-info/METADATA").decode())
    gallery = files_of("examples")
    assert {Path(name).suffix for name in gallery} == {".py", ".rst"}
    shipped = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
    assert shipped == files_of("dln_geometry") | files_of("manifolds") | {
        f"dln_geometry/{name}" for name in gallery
    }
    assert {"dln_geometry/py.typed", "dln_geometry/__init__.pyi", "manifolds/py.typed"} <= shipped
    assert {Path(name).suffix for name in shipped} == {".py", ".pyi", ".typed", ".c", ".rst"}
    assert about["Version"] == dln.__version__
    assert about["License-Expression"] == "BSD-3-Clause"
    needed = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert not {"geomstats", "pymanopt", "pytest", "pandas"} & {n.split(">")[0] for n in needed}


def test_the_source_archive_holds_what_builds_it_again(archives):
    with tarfile.open(archives[1]) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    for folder in ("dln_geometry", "manifolds", "examples", "tests", "benchmarks"):
        assert files_of(folder) <= names
    built = ("docs/_build/", "docs/api/", "docs/gallery/", "dist/", ".venv/", ".git/", "shared/")
    assert not {name for name in names if name.startswith(built) or "__pycache__" in name}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "constraints.txt"} <= names
    assert not {name for name in names if name.endswith((".npz", ".nc", ".pdf", ".pt"))}


def test_the_descriptions_of_both_can_be_rendered(archives):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
