"""Files of numpy and Matrix Market: what they claim is checked before memory is taken for it."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy

from dln_geometry.tables.memory import Budget

# What numpy and scipy raise on files of another kind, cut short or changed. OSError is not among
# them: a file that is missing keeps its own message.
_DAMAGED = (
    ValueError, EOFError, ArithmeticError, RuntimeError, LookupError, AttributeError, TypeError,
    MemoryError, zipfile.BadZipFile, zlib.error, SyntaxError, TokenError,
)  # fmt: skip


# What lines of numbers consist of, infinite ones and comments aside; exponents without digits.
_NUMERIC = b"0123456789+-.eEdD \t\r\nnaNAifIFtyTY"
_CUT_SHORT = re.compile(rb"[0-9.][eE][+-]?\s")


@contextmanager
def reading(path: Path, what: str, *, told: bool = False) -> Iterator[None]:
    """Refuse a damaged file; `told` adds the reason that the reader gives."""
    try:
        yield
    except _TooLarge as error:
        raise ValueError(str(error)) from None
    except _DAMAGED as error:
        # The reason of numpy would advise to read the file unsafely.
        reason = f": {error}" if told else ", got a damaged file or one that holds no numbers"
        raise ValueError(f"{path} must be {what}{reason}") from None


def read_array_file(path: Path, budget: Budget) -> np.ndarray:
    """Read a ``.npy`` file."""
    with reading(path, "an array of numpy"), open(path, "rb") as handle:
        return _array(handle, path.stat().st_size, path.name, budget)


class Archive:
    """A ``.npz`` file: names of its arrays, each read when it is asked for."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self.budget = path, budget
        with reading(path, "an archive of numpy"), zipfile.ZipFile(path) as archive:
            found = [x.filename for x in archive.infolist()]
        self.names = [name.removesuffix(".npy") for name in found if name.endswith(".npy")]

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return some of the arrays; those that are not asked for are not unpacked."""
        held, total = {}, 0.0
        with reading(self.path, "an archive of numpy"), zipfile.ZipFile(self.path) as archive:
            for name in names:
                member = archive.getinfo(f"{name}.npy")
                total += member.file_size
                _need(self.budget, 2.0 * total, f"{self.path.name}[{name}]")
                with archive.open(member) as handle:
                    held[name] = _array(handle, member.file_size, name, self.budget)
                    handle.read(1)  # to the end: only there the check sum is compared
        return held

    def only(self, expected: str) -> np.ndarray:
        """Return the only array."""
        if len(self.names) != 1:
            got = ", ".join(sorted(self.names)) or "none"
            raise ValueError(f"{self.path} must hold {expected}, got {got}")
        return self.read(self.names)[self.names[0]]


def read_market(path: Path, budget: Budget) -> Any:
    """Read a Matrix Market file: an array, or a sparse matrix.

    Files whose first lines claim more than they hold or memory allows are refused.
    """
    from scipy.io import mminfo, mmread

    with reading(path, "a Matrix Market file", told=True):
        m, n, count, kind, *_ = mminfo(path)
        dense = kind == "array"
        _need(budget, 24.0 * m * n if dense else 48.0 * count, f"{path.name}, by its first lines,")
        size = path.stat().st_size
        # An entry takes two bytes at least, of which gzip makes a thousandth at best.
        if (m * n if dense else count) > size * (1 if path.suffix.lower() == ".mtx" else 1000):
            raise ValueError(f"its first lines promise {count} entries, the file is too short")
        if _is_closed(path):
            return mmread(path)
        with _opened(path) as file:
            return mmread(io.BytesIO(file.read() + b"\n"))


def _opened(path: Path) -> Any:
    packed = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower())
    return open(path, "rb") if packed is None else packed(path, "rb")


def _is_closed(path: Path) -> bool:
    """Tell whether the last line of a Matrix Market file ends; refuse what holds no numbers.

    The reader of scipy leaves memory, and crashes, where something stands behind a number and no
    line ends after it; it reads "5E-" as 5.
    """
    last, tail = b"\n", b""
    with _opened(path) as file:
        for line in file:
            last = line
            if not line.startswith(b"%") and line.strip():
                break  # the sizes
        while chunk := file.read(2**24):
            if chunk.translate(None, _NUMERIC) or _CUT_SHORT.search(tail + chunk):
                raise ValueError("an entry is no number")
            # Up to the last space, where no number is cut.
            last, tail = chunk, chunk[max(chunk.rfind(b" "), chunk.rfind(b"\n")) + 1 :]
    if _CUT_SHORT.search(tail + b"\n"):
        raise ValueError("the last entry is no number")
    return last.endswith(b"\n")


class _TooLarge(Exception):
    """More memory than allowed."""


def _need(budget: Budget, size: float, what: str) -> None:
    try:
        budget.need(size, what)
    except ValueError as error:
        raise _TooLarge(str(error)) from None


def _array(handle: Any, size: int, name: str, budget: Budget) -> np.ndarray:
    """Read an array; what its header claims must be there, and fit into memory."""
    version = npy.read_magic(handle)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(handle)
    else:
        shape, fortran, dtype = npy.read_array_header_2_0(handle)
    if dtype.hasobject:
        raise ValueError("objects")
    count = prod(shape) * dtype.itemsize
    if not 0 <= count <= size:
        raise ValueError("the header claims more than the file holds")
    _need(budget, 2.0 * count, name)
    data = bytearray(count)
    view = memoryview(data)
    while view.nbytes:
        got = handle.readinto(view[: 2**24])
        if not got:
            raise EOFError("the file ends early")
        view = view[got:]
    array = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
