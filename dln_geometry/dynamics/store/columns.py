"""Arrays in the format of zarr, version 3, to which a run adds rows in chunks along time.

A chunk is a file of its own, replaced whole while it fills up and never touched again. The format
is written here and not by the library of that name: a checkpoint then needs no other package, and
the order in which files reach the disk is known.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support import Growing, replaced

CHUNK = 2**18
"""Bytes of a chunk, unless a row has more."""

_CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "gzip", "configuration": {"level": 1}},
]


@dataclass
class Column:
    """Rows of one name in the folder of a store: an array (T, ...) with `dims`.

    Rows (T, B, ...) of which each sample has its own number lie in chunks of some samples.
    ``count``, shape (B,) or (1,), is the number of rows that the array holds.
    """

    folder: Path
    name: str
    dtype: torch.dtype
    row: tuple[int, ...]
    dims: tuple[str, ...]
    mark: str
    """What the name of every chunk begins with, in its header: a chunk of another run is told."""
    total: int = 0
    """Number of rows that the array will have, where each sample has its own number so far."""
    sampled: bool = False
    """Whether the first axis of a row is that of the samples."""
    hidden: bool = False
    """Whether readers do not see that axis, which has length 1."""

    def __post_init__(self) -> None:
        self.samples, self.own = (self.row[0], self.row[1:]) if self.sampled else (1, self.row)
        self.count = np.zeros(self.samples, dtype=np.int64)
        each = max(self.dtype.itemsize * math.prod(self.own), 1)
        self.wide = min(max(CHUNK // each, 1), max(self.samples, 1))
        self.long = max(CHUNK // (each * self.wide), 1)
        self.long = min(self.long, self.total) if self.total else self.long

    @property
    def place(self) -> Path:
        """The folder of the array."""
        return self.folder / self.name

    def write(self, rows: Growing) -> None:
        """Add the rows that are new, a chunk at a time."""
        count = np.broadcast_to(np.asarray(rows.count, dtype=np.int64), self.samples)
        for block, at in enumerate(range(0, self.samples, self.wide)):
            old, new = (c[at : at + self.wide] for c in (self.count, count))
            moved = new > old
            if not moved.any() or 0 in self.own:
                continue
            first, last = int(old[moved].min()), int(new[moved].max())
            for k in range(first // self.long, (last - 1) // self.long + 1):
                self._write_chunk(rows, new, block, k)
        if (count != self.count).any() or not (self.place / "zarr.json").exists():
            self.count = count.copy()
            self._describe()

    def _write_chunk(self, rows: Growing, count: np.ndarray, block: int, k: int) -> None:
        """Write rows from ``k * long`` on of a block of samples, whole or not at all."""
        first, last = k * self.long, min((k + 1) * self.long, int(count.max()))
        x, at = rows.part(first, last), block * self.wide
        x = x if self.sampled else x.unsqueeze(1)
        x = x[:, at : at + self.wide].cpu().resolve_conj().resolve_neg()
        chunk = torch.full(
            (self.long, self.wide, *self.own), self._fill, dtype=self.dtype, device="cpu"
        )
        known = torch.from_numpy(np.arange(first, last)[:, None] < count)
        known = known.view(*known.shape, *(1,) * len(self.own))
        held = chunk[: last - first, : x.shape[1]]
        held.copy_(torch.where(known, x, held))
        raw = chunk.view(-1).view(torch.uint8).numpy().tobytes()
        # Full chunks of floating numbers gain nothing by compression; padding vanishes.
        full = bool(known.all()) and held.numel() == chunk.numel()
        packer = zlib.compressobj(0 if full else 1, zlib.DEFLATED, -15)
        file = self._file(block, k)
        file.parent.mkdir(parents=True, exist_ok=True)
        # The lock keeps other writers off, and the next one of this chunk takes the same name. The
        # disk has the name of the chunk when it has that of the state, which is written after it.
        with replaced(file, file.with_name(f"{file.name}.part"), named=False) as handle:
            handle.write(self._header(block, k))
            handle.write(packer.compress(raw))
            handle.write(packer.flush())
            handle.write(struct.pack("<II", zlib.crc32(raw), len(raw) % 2**32))

    def read(self, count: np.ndarray) -> Tensor:
        """Return the rows, zero where a sample has fewer than others; ValueError if damaged."""
        self.count = count
        most = self.total or int(count.max())
        x = torch.zeros((most, self.samples, *self.own), dtype=self.dtype, device="cpu")
        for block, at in enumerate(range(0, self.samples, self.wide)):
            here = count[at : at + self.wide]
            for k in range(-(-int(here.max()) // self.long) if 0 not in self.own else 0):
                first = k * self.long
                chunk = self._read_chunk(block, k)
                part = x[first : first + self.long, at : at + self.wide]
                known = torch.from_numpy(np.arange(first, first + len(part))[:, None] < here)
                known = known.view(*known.shape, *(1,) * len(self.own))
                part.copy_(torch.where(known, chunk[: len(part), : part.shape[1]], part))
        return x if self.sampled else x.squeeze(1)

    def _read_chunk(self, block: int, k: int) -> Tensor:
        file, header = self._file(block, k), self._header(block, k)
        shape = (self.long, self.wide, *self.own)
        size = math.prod(shape) * self.dtype.itemsize
        try:
            content = file.read_bytes()
            raw = zlib.decompress(content[len(header) : -8], -15, size)
        except (FileNotFoundError, zlib.error):
            raise ValueError(f"the chunk {file} is missing or damaged") from None
        tail = struct.pack("<II", zlib.crc32(raw), len(raw) % 2**32)
        if not content.startswith(header) or content[-8:] != tail or len(raw) != size:
            raise ValueError(f"the chunk {file} is damaged, or that of another run")
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(self.dtype).view(shape)

    def _header(self, block: int, k: int) -> bytes:
        """Return the header of a chunk, as of gzip, with a name that says where it belongs."""
        name = f"{self.mark} {self.name} {k} {block}"
        return b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + name.encode("latin-1", "replace") + b"\0"

    def _file(self, block: int, k: int) -> Path:
        shown = [k, *([block] if self.sampled and not self.hidden else [])]
        return self.place.joinpath("c", *map(str, shown), *("0",) * len(self.own))

    @property
    def _fill(self) -> Any:
        kind = self.dtype
        return float("nan") if kind.is_floating_point or kind.is_complex else 0

    def description(self) -> dict[str, Any]:
        """Return the metadata of the array."""
        batch = self.sampled and not self.hidden
        shape = [self.total or int(self.count.max()), *([self.samples] if batch else [])]
        chunk = [self.long, *([self.wide] if batch else [])]
        fill: Any = "NaN" if self.dtype.is_floating_point else 0
        fill = ["NaN", "NaN"] if self.dtype.is_complex else fill
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [*shape, *self.own],
            "data_type": str(self.dtype).removeprefix("torch."),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [*chunk, *(max(n, 1) for n in self.own)]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": False if self.dtype == torch.bool else fill,
            "codecs": _CODECS,
            "attributes": {},
            "dimension_names": list(self.dims),
        }

    def _describe(self) -> None:
        write_json(self.place / "zarr.json", self.description())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file of metadata, which can be made again from the state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path, path.with_name(f"{path.name}.part"), lasting=False) as handle:
        handle.write(json.dumps(content, indent=1).encode())
