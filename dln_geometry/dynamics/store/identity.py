"""What decides the result of a run, as short texts that are compared when it is continued."""

from __future__ import annotations

import hashlib
import numbers
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Loss, fingerprint
from dln_geometry.geometry.points import Collapsed, EndToEnd, Network


def digests(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return a text for every fact: the same in every process, and for equal facts alone.

    The fact ``start`` sets the scale at which losses without a fingerprint are compared.
    """
    start = facts.get("start")
    if start is not None and not isinstance(start, Collapsed | EndToEnd):
        try:
            start = Network(start, "start")
        except (TypeError, ValueError):
            # Particles.
            start = None
    return {
        name: hashlib.sha256(repr(_told(fact, start)).encode()).hexdigest()[:32]
        for name, fact in facts.items()
    }


def _told(value: Any, start: Any) -> Any:
    """Return a value as texts in nested lists; tensors by their hash, losses by fingerprints."""
    if value is None or isinstance(value, bool | str | bytes):
        return repr(value)
    if isinstance(value, numbers.Integral) and abs(int(value)) > 2**53:
        return repr(int(value))
    if isinstance(value, numbers.Real):
        # An integer and the same float are one option.
        return repr(float(value))
    if isinstance(value, Tensor):
        return _hash(value)
    if isinstance(value, np.ndarray):
        return _told(value.tolist(), start)
    if isinstance(value, torch.Generator):
        return ["generator", value.device.type, _hash(value.get_state())]
    if isinstance(value, torch.dtype | torch.device | os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return sorted([str(name), _told(part, start)] for name, part in value.items())
    if isinstance(value, list | tuple):
        return [_told(part, start) for part in value]
    if isinstance(value, Loss) and not isinstance(value, type):
        return ["loss", _told(fingerprint(value, start), start)]
    if callable(getattr(value, "fingerprint", None)) and not isinstance(value, type):
        return [type(value).__qualname__, _told(value.fingerprint(), start)]
    if isinstance(value, FunctionType) and value.__qualname__ == value.__name__ != "<lambda>":
        return [value.__module__, value.__name__]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        return [type(value).__qualname__, _told(parts, start)]
    if hasattr(value, "__array__"):
        return _told(np.asarray(value), start)
    raise TypeError(f"a run with a store must be told by plain values, got {type(value).__name__}")


def _hash(x: Tensor) -> str:
    """Return dtype, shape, kind of device and SHA-256 of a tensor, one hash for every NaN."""
    x = x.detach()
    where = x.device.type
    if x.layout != torch.strided:
        x = x.to_dense()
    x = x.cpu().resolve_conj().resolve_neg()
    if x.is_floating_point() and bool((unknown := torch.isnan(x)).any()):
        x = torch.where(unknown, torch.nan, x)
    content = hashlib.sha256(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{x.dtype} {tuple(x.shape)} {where} {content.hexdigest()}"
