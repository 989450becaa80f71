"""Ids of rows and columns as users give them, and the places that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dln_geometry.tables import Ids, as_name


def is_pair(x: Any) -> bool:
    """Tell whether an argument is a tuple ``(rows, cols)``."""
    return isinstance(x, tuple) and len(x) == 2


def labels_of(x: Any, what: str) -> Any:
    """Return ids as `as_name` keeps them: a list, of an array of integers an array."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.double() if x.is_floating_point() else x).numpy()
    if hasattr(x, "dtype") or hasattr(x, "ndim"):
        labels = np.asarray(x)
        shape: Any = labels.shape
        if labels.dtype.kind in "iu" and labels.ndim == 1:
            return labels
    else:
        single = not hasattr(x, "__iter__") or isinstance(x, str | bytes)
        labels = [] if single else list(x)
        nested = any(isinstance(one, list) or getattr(one, "ndim", 0) for one in labels)
        shape = () if single else np.shape(labels[:1]) if nested else (len(labels),)
    if len(shape) != 1:
        raise ValueError(f"{what} ids must be a vector, got shape {shape}")
    return [as_name(name, f"{what} id") for name in labels]


def places_of(labels: Any, ids: Ids | None, count: int, what: str) -> tuple[Any, Any]:
    """Return places of ids, and which of them are unknown (their place is 0)."""
    if isinstance(labels, np.ndarray) and len(labels):
        names, codes = np.unique(labels, return_inverse=True)
        places, unknown = places_of(names.tolist(), ids, count, what)
        return places[codes], unknown[codes]
    if ids is not None:
        unknown = np.array([label not in ids for label in labels], dtype=bool)
        places = np.zeros(len(labels), dtype=np.int64)
        places[~unknown] = ids.places([label for label in labels if label in ids])
        return places, unknown
    if names := [label for label in labels if isinstance(label, str)]:
        raise TypeError(f"{what} ids must be places, integers from 0, got {names[0]!r}")
    unknown = np.array([not 0 <= label < count for label in labels], dtype=bool)
    places = [0 if no else label for label, no in zip(labels, unknown, strict=True)]
    return np.array(places, dtype=np.int64), unknown
