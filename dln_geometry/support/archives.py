"""Files that are written whole or not at all, and archives of arrays."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

_Path = str | os.PathLike[str]
Built = TypeVar("Built")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` once everything is written; folders are made.

    A reader never sees half a file, a crash keeps the old one, a failure leaves nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for the replacement to be atomic, and with the permissions of any new
    # file: the tempfile module would make it readable by its owner alone.
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as handle:
            yield handle
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_archive(
    path: _Path, version: int, arrays: Mapping[str, Tensor | None], attributes: Mapping[str, Any]
) -> Path:
    """Write tensors (not None) and JSON attributes to one ``.npz`` file; return its path."""
    target = _with_suffix(Path(path))
    stored = {k: x.detach().cpu().numpy() for k, x in arrays.items() if x is not None}
    stored["meta"] = np.array(json.dumps({"format": version, **attributes}))
    with written_whole(target) as handle:
        np.savez_compressed(handle, allow_pickle=False, **stored)
    return target


def read_archive(
    path: _Path, kind: str, newest: int, build: Callable[[dict[str, Tensor], dict[str, Any]], Built]
) -> Built:
    """Return ``build(arrays, attributes)`` of a file that `write_archive` wrote.

    The suffix ``.npz`` may be left out. ValueError if the file is damaged, no archive of this
    kind, or of a format newer than `newest`.
    """
    source = Path(path)
    if not source.is_file() and _with_suffix(source).is_file():
        source = _with_suffix(source)
    required = f"path must be a saved {kind}, got {source}"
    try:
        # Opened here: numpy leaves a damaged archive open.
        with open(source, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        attributes = json.loads(str(arrays.pop("meta")))
        version = int(attributes["format"])
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception:
        # A damaged file may raise anything; numpy's own message advises an unsafe way to read it.
        raise ValueError(f"{required}: it is no archive of one, or a damaged one") from None
    if version > newest:
        raise ValueError(f"path must be a {kind} of format <= {newest}, got {version}")
    try:
        return build({k: torch.from_numpy(np.array(x)) for k, x in arrays.items()}, attributes)
    except Exception as error:
        raise ValueError(f"{required}: {type(error).__name__}: {error}") from None


def _with_suffix(path: Path) -> Path:
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
