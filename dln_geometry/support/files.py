"""Files that are written whole or not at all, and locks: one writer at a time."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

RUN_MARK = b"dln-geometry run "
"""First bytes of the store of a run; `written_whole` protects such files from other results."""

ABANDONED = 600.0
"""Seconds without renewal after which a file of an unknown process counts as left behind."""

# Files that this process holds now. Its number alone does not tell: the process that left them may
# have had the same one, as in containers, where numbers start again at 1.
_held: set[str] = set()


@contextmanager
def written_whole(path: Path, *, is_run: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` once everything is written; folders are made.

    A reader never sees half a file; a crash of the process or the machine keeps the old one; a
    failure leaves nothing else. What killed writers left of this file is removed. An OSError (a
    full disk) names the file. Unless `is_run`, a file that holds the store of a run is kept, and
    a ValueError raised.
    """
    # A link stays one: the file that it names is replaced.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_run and _holds_run(path):
        raise ValueError(f"path must not be the store of a run, got {path}: give another name")
    # In the same folder, for the replacement to be atomic, and with the permissions of any new
    # file: the tempfile module would make it readable by its owner alone.
    with replaced(path, _new_part(path)) as handle:
        yield handle


def _new_part(path: Path) -> Path:
    """Return a new name beside a file, once what killed writers left there is removed."""
    stem = f".{os.fsencode(path.name)[:120].decode(errors='ignore')}"
    for old in path.parent.glob(f"{_escaped(stem)}.*.part"):
        owner = re.fullmatch(r"\.(.+)~(\d+)~[0-9a-f]{8}\.part", old.name[len(stem) :])
        if owner and _is_abandoned(old, owner[1], int(owner[2])):
            old.unlink(missing_ok=True)
    mark = f"{_host()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    return path.with_name(f"{stem}.{mark}.part")


@contextmanager
def replaced(
    path: Path, part: Path, *, lasting: bool = True, named: bool = True
) -> Iterator[BinaryIO]:
    """Open the file `part`, which replaces `path` once everything is written.

    `lasting` waits until the disk has the content, `named` until it has the name too. An OSError
    (a full disk) names the file.
    """
    _held.add(str(part))
    try:
        with _naming(path):
            with open(part, "wb") as handle:
                yield handle
                handle.flush()
                if lasting:
                    os.fsync(handle.fileno())
            os.replace(part, path)
            if lasting and named:
                _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)
        _held.discard(str(part))


class Lock:
    """A file beside another one that tells other processes, on this host or others, to keep off.

    A lock is broken if its process is dead, or, where that cannot be known, if it has not been
    renewed for ten minutes.
    """

    def __init__(self, path: Path) -> None:
        self.target, self.path = path, path.with_name(f"{path.name}.lock")
        self.mark = f"{_host()} {os.getpid()} {_birth(os.getpid())} {uuid.uuid4().hex}"

    def __enter__(self) -> Lock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and _is_abandoned(self.path, *self._owner()):
            self.path.unlink(missing_ok=True)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._content() == self.mark:
            self.path.unlink(missing_ok=True)
        _held.discard(str(self.path))

    def renew(self) -> None:
        """Tell that the process still writes; ValueError if another one has taken the lock."""
        content = self._content()
        if content is None:
            self._take()
        elif content != self.mark:
            self._refuse()
        else:
            os.utime(self.path)

    def _take(self) -> None:
        part = _new_part(self.path)
        with _naming(self.path):
            try:
                part.write_text(self.mark)
                try:
                    # Signed from the first moment: a writer may be killed at any other.
                    os.link(part, self.path)
                except FileExistsError:
                    self._refuse()
                except OSError:
                    # A file system without links.
                    with contextlib.suppress(FileExistsError), open(self.path, "x") as handle:
                        handle.write(self.mark)
                    if self._content() != self.mark:
                        self._refuse()
                _held.add(str(self.path))
            finally:
                part.unlink(missing_ok=True)

    def _refuse(self) -> None:
        host, pid, _ = self._owner()
        raise ValueError(
            f"store must be written by one run at a time, got {self.target}, which process {pid} "
            f"on {host} uses; if no run does, remove {self.path}"
        )

    def _content(self) -> str | None:
        try:
            return self.path.read_text(errors="replace")
        except FileNotFoundError:
            return None

    def _owner(self) -> tuple[str, int, str]:
        """Return host, number and birth of the process that holds the lock, as far as known."""
        parts = (self._content() or "").split()
        known = len(parts) == 4 and parts[1].isdecimal()
        return (parts[0], int(parts[1]), parts[2]) if known else ("an unknown host", 0, "")


def _is_abandoned(file: Path, host: str, pid: int, birth: str = "") -> bool:
    """Tell whether the process that made a file is gone."""
    if host == _host() and pid == os.getpid():
        return str(file) not in _held
    if host == _host() and os.name == "posix" and pid > 0:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        # The number may have passed to another process since.
        return bool(birth.strip("?")) and _birth(pid) not in (birth, "?")
    try:
        return time.time() - file.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False


def _birth(pid: int) -> str:
    """Return when a process was started, as Linux counts it; "?" where that is not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:64] or "host"


def _holds_run(path: Path) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(len(RUN_MARK)) == RUN_MARK
    except OSError:
        return False


def _escaped(name: str) -> str:
    """Return a name as a pattern of `Path.glob` that it alone matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError that has no name, as those of writes have none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a replacement outlast a crash of the machine, where folders can be synchronised."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
