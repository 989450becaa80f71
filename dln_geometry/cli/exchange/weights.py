"""Tensors from files by their names: torch (weights only), safetensors, numpy."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.tables import Budget

WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors")
"""Suffixes of files of weights; archives of numpy are read too."""


def read_weights(path: Path, budget: Budget) -> dict[str, Tensor]:
    """Return the real tensors of a file by their names, on the CPU; no code in it is run.

    Names of nested dicts are joined by dots. Files of torch and numpy keep their order; those of
    safetensors have none, and are sorted with numbers in names by their size.
    """
    suffix, size = path.suffix.lower(), path.stat().st_size
    if path.is_dir() or suffix not in (*WEIGHTS, ".npz", ".npy"):
        raise ValueError(f"{path} must end in one of {', '.join(WEIGHTS)}, .npz, .npy")
    if not size:
        raise ValueError(f"{path} must hold tensors, got an empty file")
    budget.need(2.0 * _unpacked_size(path, size), path.name)
    try:
        held = _named_tensors(_content(path, suffix))
        found = {name or path.stem: x for name, x in held}
    except (MemoryError, OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{path} must hold tensors alone, got {_reason(error)}") from None
    if suffix == ".safetensors":
        found = {name: found[name] for name in sorted(found, key=_natural)}
    if not found:
        raise ValueError(f"{path} must hold real tensors, got none")
    return found


def _content(path: Path, suffix: str) -> Any:
    if suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ValueError(
                'safetensors, which is not installed: pip install "dln-geometry[safetensors]"'
            ) from None
        return load_file(path)
    if suffix in (".npz", ".npy"):
        held = np.load(path, allow_pickle=False)
        return held if isinstance(held, np.ndarray) else {name: held[name] for name in held.files}
    return torch.load(path, map_location="cpu", weights_only=True)


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the real tensors in nested dicts and lists."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        if value.layout != torch.strided and not value.is_quantized:
            value = value.to_dense()
        if not (value.is_complex() or value.is_quantized or value.dtype == torch.bool):
            yield name, value.detach()
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in pairs:
            yield from _named_tensors(inner, f"{name}.{key}" if name else str(key))


def _unpacked_size(path: Path, size: int) -> int:
    if not zipfile.is_zipfile(path):
        return size
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except Exception:  # a damaged table of contents, which the reader refuses in words
        return size


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort layer10 behind layer2."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _reason(error: Exception) -> str:
    """Return the first line of an error; files of whole modules have a hint of their own."""
    text = str(error).strip().partition("\n")[0]
    if "nsupported global" in str(error) or "nsupported class" in str(error):
        return "an object of Python: save model.state_dict() instead of the model"
    if isinstance(error, ValueError) and text.startswith("safetensors,"):
        return text
    return f"a damaged file or one of another kind ({type(error).__name__})"
