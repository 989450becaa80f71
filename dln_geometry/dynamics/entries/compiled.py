"""Compile `tiles.c` with the compiler of the machine, once for every rank, and load it.

A compiler needs no headers of torch or Python here, and takes a fifth of a second. numba, the
other candidate, needs 200 MB, cannot fetch ahead, and took twice the time of this pass.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("tiles.c")
VARIABLE = "DLN_GEOMETRY_COMPILER"
"""Environment variable: the compiler to call, or "none"."""

LONGEST_UNROLLED = 64
"""Ranks above it share one library: their loops are long enough without unrolling."""

# Sums may be reordered, as vectors need; NaN and infinity stay what they are.
_FLAGS = (
    *(
        "-O3",
        "-shared",
        "-fPIC",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-sanitize=undefined",
    ),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
)
_NATIVE = (("-march=native",), ("-mcpu=native",), ())
_REALS = {torch.float32: "float", torch.float64: "double"}


def library(dtype: torch.dtype, rank: int) -> ctypes.CDLL | None:
    """Return the pass for matrices of this dtype and rank; None where it cannot be compiled."""
    real = _REALS.get(dtype)
    return None if real is None else _library(real, rank if rank <= LONGEST_UNROLLED else 0)


@functools.cache
def _library(real: str, rank: int) -> ctypes.CDLL | None:
    compiler = find_compiler(os.environ.get(VARIABLE))
    return None if compiler is None else _load(compiler, real, rank)


def _load(compiler: list[str], real: str, rank: int) -> ctypes.CDLL | None:
    try:
        file = _folder() / f"tiles-{_key(tuple(compiler))}-{real}-{rank}.so"
        if not file.exists():
            _compile(compiler, file, (f"-DREAL={real}", f"-DRANK={rank}"))
        loaded = ctypes.CDLL(str(file))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None
    for name in ("contract", "sample", "spread", "sums"):
        getattr(loaded, name).restype = None
    return loaded


def find_compiler(asked: str | None) -> list[str] | None:
    """Return the command of a C compiler, by default of the first that is installed.

    The package ``ziglang`` (extra ``fast``) brings one where the system has none.
    """
    if os.name != "posix" or asked == "none":
        return None
    for name in [asked] if asked else ["cc", "gcc", "clang"]:
        if path := shutil.which(name):
            return [path]
    if asked is None and importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def _compile(compiler: list[str], file: Path, defined: tuple[str, ...]) -> None:
    """Write the library, complete or not at all: others may compile it at the same time."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        for native in _NATIVE:
            command = [*compiler, *_FLAGS, *native, *defined, str(SOURCE), "-o", str(made)]
            if (
                subprocess.run(command, capture_output=True, timeout=120, check=False).returncode
                == 0
            ):
                made.replace(file)
                return
    raise RuntimeError(f"{compiler[0]} must compile {SOURCE.name}, which failed")


@functools.cache
def _folder() -> Path:
    """Return the folder of compiled libraries: the user's cache, or one for this process alone."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(home) if home else Path.home() / ".cache") / "dln_geometry"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):
        folder = tempfile.mkdtemp(prefix="dln_geometry-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)


@functools.cache
def _key(compiler: tuple[str, ...]) -> str:
    """Return a name for the source, the compiler and the processor.

    A home that several machines share must not give one of them the instructions of another.
    """
    parts = [SOURCE.read_bytes(), repr((compiler, _FLAGS)).encode(), platform.machine().encode()]
    parts.append(str(Path(compiler[0]).resolve().stat().st_mtime_ns).encode())
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        told = cpu.read_text(errors="replace").split("\n\n")[0].splitlines()
        kinds = ("flags", "features", "model name")
        parts += [line.encode() for line in told if line.lower().startswith(kinds)]
    else:
        parts.append(platform.processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
