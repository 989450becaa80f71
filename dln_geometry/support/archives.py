"""Archives of arrays: ``.npz`` files with a checksum, read back whole or refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support.files import written_whole
from dln_geometry.version import __version__

_Path = str | os.PathLike[str]
Built = TypeVar("Built")

UNSUMMED = 1
"""The newest format without a checksum, that of version 0.1.0."""


def write_archive(
    path: _Path, version: int, arrays: Mapping[str, Tensor | None], attributes: Mapping[str, Any]
) -> Path:
    """Write tensors (not None) and JSON attributes to one ``.npz`` file; return its path.

    ValueError for the suffix of another format; ``lr0.1`` is a name without a suffix.
    """
    target = _with_suffix(_as_path(path))
    suffix = target.with_suffix("").suffix
    if suffix[1:2].isalpha() and target != _as_path(path):
        raise ValueError(f"path must end in .npz or have no suffix, got {path}")
    given = {k: x for k, x in arrays.items() if x is not None}
    stored: dict[str, Any] = {k: x.detach().cpu().numpy() for k, x in given.items()}
    meta = {"format": version, "version": __version__, **attributes}
    meta["sha256"] = _checksum(stored, meta)
    stored["meta"] = np.array(json.dumps(meta))
    # In memory first: a disk that is full then fails in one place, and not inside a library.
    content = io.BytesIO()
    np.savez_compressed(content, **stored)
    with written_whole(target) as handle:
        handle.write(content.getbuffer())
    return target


def read_archive(
    path: _Path, kind: str, newest: int, build: Callable[[dict[str, Tensor], dict[str, Any]], Built]
) -> Built:
    """Return ``build(arrays, attributes)`` of a file that `write_archive` wrote.

    The suffix ``.npz`` may be left out. ValueError if the file is damaged, no archive of this
    kind, or of a format newer than `newest`. A SHA-256 of all arrays and attributes is compared
    before any is used; files of version 0.1.0 hold none, and the CRC-32 of every member protects
    them.
    """
    source = _as_path(path)
    if not source.is_file() and _with_suffix(source).is_file():
        source = _with_suffix(source)
    required = f"path must be a saved {kind}, got {source}"
    try:
        with open(source, "rb") as handle, zipfile.ZipFile(handle) as archive:
            # Every byte of a member is read before it is parsed: its CRC is compared at the end.
            members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception:
        # A damaged file may raise anything.
        raise _damaged(required) from None
    try:
        arrays = {k: np.lib.format.read_array(io.BytesIO(x)) for k, x in members.items()}
        attributes = json.loads(str(arrays.pop("meta")))
        version = int(attributes["format"])
    except Exception:
        # A header may claim more memory than there is.
        raise _damaged(required) from None
    if version > newest:
        by = attributes.get("version", "a later version")
        raise ValueError(f"path must be a {kind} of format <= {newest}, got {version}, by {by}")
    expected = attributes.pop("sha256", None)
    if (version > UNSUMMED or expected) and expected != _checksum(arrays, attributes):
        raise _damaged(required)
    attributes.pop("version", None)
    try:
        return build({k: torch.from_numpy(np.array(x)) for k, x in arrays.items()}, attributes)
    except Exception as error:
        raise ValueError(f"{required}: {type(error).__name__}: {error}") from None


def _checksum(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> str:
    """Return the SHA-256 of arrays and attributes."""
    # As they are read back: lists where there were tuples.
    facts = json.loads(json.dumps(attributes))
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        x = arrays[name]
        total.update(f"{name} {x.dtype.str} {x.shape} ".encode())
        total.update(np.ascontiguousarray(x).tobytes())
    return total.hexdigest()


def _damaged(required: str) -> ValueError:
    return ValueError(f"{required}: it is no archive of one, or a damaged one")


def _as_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}")
    return Path(path)


def _with_suffix(path: Path) -> Path:
    return path if path.suffix.lower() == ".npz" else path.with_name(path.name + ".npz")
