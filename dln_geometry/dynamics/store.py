"""The store of a run: one file from which a killed run continues."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import written_whole


class Store:
    """One file that holds the state of a run and what the run was.

    Each checkpoint replaces the file atomically. `identity` holds tensors, numbers and strings that
    must be the same for a run to be continued.
    """

    def __init__(self, path: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self.identity = {name: _digest(value) for name, value in identity.items()}

    def save(self, state: dict[str, Any]) -> None:
        """Write a state: a dict of tensors, numbers, strings and nested dicts or lists."""
        with written_whole(self.path) as handle:
            torch.save({"identity": self.identity, "state": state}, handle)

    def load(self) -> dict[str, Any] | None:
        """Return the state last saved, or None; refuse a file that belongs to another run."""
        if not self.path.exists():
            return None
        if self.path.is_dir():
            raise ValueError(f"store must be a file, got the folder {self.path}")
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)
            identity, state = held["identity"], held["state"]
        except Exception:
            raise ValueError(f"store must be a file written by a run, got {self.path}") from None
        names = sorted(self.identity.keys() | identity.keys())
        changed = [name for name in names if self.identity.get(name) != identity.get(name)]
        if changed:
            raise ValueError(
                f"store must belong to the same run, got {self.path} of one with other "
                f"{', '.join(changed)}: give another file, or remove it"
            )
        return state


def _digest(value: Any) -> str:
    """Return a text that differs between different values and is the same in every process."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        content = hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()[:24]
        return f"{data.dtype}{tuple(data.shape)}{content}"
    if isinstance(value, dict):
        return repr(sorted((name, _digest(part)) for name, part in value.items()))
    if isinstance(value, list | tuple):
        return repr([_digest(part) for part in value])
    return repr(value)
