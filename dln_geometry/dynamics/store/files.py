"""Files of a store: the sealed state, and what a folder must be to hold one."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dln_geometry.support import RUN_MARK, written_whole

FORMAT = 3
"""Formats 1 (version 0.1.0) and 2 were single files, written anew at every checkpoint."""

MARK = "dln_geometry_format"
"""The attribute of the folder that tells a store."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers and texts to a file, whole or not at all, with their checksum."""
    packed = io.BytesIO()
    torch.save(dict(content), packed)
    summed = hashlib.sha256(packed.getbuffer()).hexdigest()
    with written_whole(path, is_run=True) as handle:
        handle.write(RUN_MARK + f"{FORMAT} {summed}\n".encode())
        handle.write(packed.getbuffer())


def read_sealed(path: Path, required: str) -> dict[str, Any]:
    """Return what `write_sealed` wrote; ValueError that begins with `required` if damaged."""
    line, _, rest = path.read_bytes().partition(b"\n")
    found, _, summed = line.removeprefix(RUN_MARK).partition(b" ")
    if not line.startswith(RUN_MARK) or not found.isdigit():
        raise ValueError(f"{required}: it is none, or a damaged one")
    if int(found) != FORMAT:
        raise ValueError(f"store must have the format {FORMAT}, got {int(found)}: {path}")
    if summed != hashlib.sha256(rest).hexdigest().encode():
        raise ValueError(f"{required}: it is damaged (its checksum does not fit)")
    try:
        held = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError(f"{required}: it is none, or a damaged one") from None
    if not isinstance(held, dict):
        raise ValueError(f"{required}: it is none, or a damaged one")
    return held


def check_place(path: Path) -> None:
    """Refuse a place at which no store is and none can be made."""
    if path.is_dir():
        if not any(path.iterdir()) or (path / "checkpoint" / "state").exists():
            return
        if (about := attributes_of(path)) is None or MARK not in about:
            raise ValueError(
                f"store must be a new name or a folder written by a run, got the folder {path}"
            )
        return
    if not path.exists():
        return
    if not path.is_file():
        # Reading a pipe would wait for ever.
        raise ValueError(f"store must be a folder, got the device or pipe {path}")
    with open(path, "rb") as handle:
        first = handle.read(len(RUN_MARK))
    if first == RUN_MARK or first.startswith(b"PK"):
        raise ValueError(
            f"store must be a folder written by a run, got the file {path}: an earlier version "
            "wrote it, and its run must be finished with that one"
        )
    raise ValueError(f"store must be a new name or a folder written by a run, got the file {path}")


def attributes_of(path: Path) -> dict[str, Any] | None:
    """Return the attributes of a folder of zarr, None where there are none."""
    try:
        about = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return about if isinstance(about, dict) else None
