"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` once everything is written.

    A reader never sees half a file, a crash leaves the old one, and a failure leaves nothing
    else. The file has the permissions that the umask gives to any new file. Missing folders are
    made.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for the replacement to be atomic. The tempfile module would make it
    # readable by its owner alone.
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as handle:
            yield handle
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
