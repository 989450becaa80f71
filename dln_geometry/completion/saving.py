"""Fitted completers in files: arrays and plain text, from which no code is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dln_geometry.completion.features import SideFeatures
from dln_geometry.completion.fitted import FittedCompleter
from dln_geometry.completion.fitting import Model, Offsets, Problem
from dln_geometry.completion.growing import Memory
from dln_geometry.completion.prediction import Quantiles
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_depth, as_device, check_form, read_archive, write_archive
from dln_geometry.tables import Entries, Ids

FORMAT = 2  # that of archives with a checksum
KIND = "fitted completer"
_RESULTS = (
    *("depth_", "rank_", "decay_", "biases_", "validation_error_", "side_means_error_"),
    *("train_error_", "cv_results_", "curve_", "n_iter_", "coverage_", "report_"),
)
_PARTS = {"collapsed": ("L", "R"), "svd": ("u", "s", "vh"), "none": ()}
_SIDES = ("row", "col")


class SavedCompleter(FittedCompleter):
    """A completer that can be written to a file and read back."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fitted completer to one ``.npz`` file, and return its path.

        It holds the parameters, the entries and ids of the fit, and its models: what `load` returns
        predicts, completes and takes further entries as this completer does.
        """
        self._check_fitted()
        memory, problem = self._memory_, self._problem_
        entries = memory.entries
        arrays: dict[str, Tensor | None] = {
            **{name: _tensor(getattr(entries, name)) for name in ("rows", "cols", "values")},
            "weights": _tensor(memory.weights),
            "held": _tensor(memory.held),
            "quantiles": None if self._quantiles_ is None else _tensor(self._quantiles_.sample),
        }
        kinds, models = [], [*self.models_, *([memory.validated] if memory.validated else [])]
        for k, model in enumerate(models):
            kinds.append(_put_model(arrays, f"model_{k}", model))
        others = []
        for side, known in zip(_SIDES, self._features_, strict=True):
            others.append(None if known is None else Ids(known.others).written())
            if known is not None:
                parts = {"values": known.values, "mean": known.mean, "scale": known.scale}
                parts["others"] = known.mean.new_zeros(0, len(known.mean))
                if known.others:
                    parts["others"] = torch.stack(list(known.others.values()))
                arrays |= {f"{side}_{name}": x for name, x in parts.items()}
        facts = {
            "kind": KIND,
            "parameters": {name: _as_json(x) for name, x in self.get_params().items()},
            "results": {name: _as_json(getattr(self, name)) for name in _RESULTS},
            "shape": list(entries.shape),
            "layout": entries.layout,
            "row_ids": entries.row_ids and entries.row_ids.written(),
            "col_ids": entries.col_ids and entries.col_ids.written(),
            "models": kinds,
            "validated": memory.validated is not None,
            "others": others,
            "dtype": str(problem.values.dtype).removeprefix("torch."),
            "shrink": problem.shrink,
            "bounds": list(problem.bounds),
            "sides": memory.sides,
        }
        return write_archive(path, FORMAT, arrays, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: Any = None) -> Self:
        """Return a completer that `save` wrote, on the CPU or another device.

        ValueError if the file is damaged or holds something else. No code of the file is run.
        """
        place = None if device is None else as_device(device)

        def build(arrays: dict[str, Tensor], facts: dict[str, Any]) -> Self:
            if facts.get("kind") != KIND:
                raise ValueError(f"it holds no {KIND}")
            moved = {name: x if place is None else x.to(place) for name, x in arrays.items()}
            return cls()._restored(moved, facts, place)

        return read_archive(path, KIND, FORMAT, build)

    def _restored(self, arrays: dict[str, Tensor], facts: dict[str, Any], device: Any) -> Self:
        """Take the state that a file holds."""
        check_form(facts["parameters"], {str: object}, "parameters")
        self.set_params(**{name: _from_json(x) for name, x in facts["parameters"].items()})
        self.set_params(device=device)
        dtype = getattr(torch, facts["dtype"])
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be float32 or float64, got {dtype}")
        for name in _RESULTS:
            setattr(self, name, _from_json(facts["results"][name]))
        ids = [
            None if facts[f"{side}_ids"] is None else Ids.read(facts[f"{side}_ids"], what)
            for side, what in zip(_SIDES, ("row", "column"), strict=True)
        ]
        m, n = (int(size) for size in facts["shape"])
        rows, cols, values = (arrays[name] for name in ("rows", "cols", "values"))
        if not len(rows) == len(cols) == len(values):
            raise ValueError("entries must have rows, columns and values")
        for places, size, names in ((rows, m, ids[0]), (cols, n, ids[1])):
            if bool(((places < 0) | (places >= size)).any()):
                raise ValueError(f"places must lie between 0 and {size - 1}")
            if names is not None and len(names) != size:
                raise ValueError(f"ids must be as many as {size}, got {len(names)}")
        x, y, v = (array.cpu().numpy() for array in (rows, cols, values))
        entries = Entries(x, y, v, (m, n), str(facts["layout"]), ids[0], ids[1])
        weights = arrays.get("weights")
        known = [
            _saved_side(arrays, side, names)
            for side, names in zip(_SIDES, facts["others"], strict=True)
        ]
        low, high = facts["bounds"]
        self._features_ = (known[0], known[1])
        self._problem_ = Problem(
            rows,
            cols,
            values.to(dtype),
            (m, n),
            None if weights is None else weights.to(dtype),
            self.loss,
            bool(facts["results"]["biases_"]),
            facts["shrink"],
            (
                None if known[0] is None else known[0].values,
                None if known[1] is None else known[1].values,
            ),
            (low, high),
        )
        models = [
            _model(arrays, f"model_{k}", fact, (m, n)) for k, fact in enumerate(facts["models"])
        ]
        validated = models.pop() if facts["validated"] else None
        if not models:
            raise ValueError("a model must be there, got none")
        self.models_, self.entries_, self.shape_ = tuple(models), entries, (m, n)
        self.row_ids_, self.col_ids_ = entries.row_ids, entries.col_ids
        sample = arrays.get("quantiles")
        self._quantiles_ = None if sample is None else Quantiles(sample.cpu().numpy())
        held = arrays.get("held")
        self._memory_ = Memory(
            entries,
            None if weights is None else weights.cpu().numpy(),
            None if held is None else held.cpu().numpy(),
            validated,
            models[0],
            bool(facts["sides"]),
        )
        self._set_columns()
        return self


def _tensor(x: np.ndarray | None) -> Tensor | None:
    return None if x is None else torch.from_numpy(np.ascontiguousarray(x))


def _put_model(arrays: dict[str, Tensor | None], name: str, model: Model) -> dict[str, Any]:
    """Add the arrays of a model, and return what else there is to know of it."""
    arrays |= {f"{name}_{part}": x for part, x in vars(model.offsets).items()}
    point = model.point
    kind = "none" if point is None else "svd" if isinstance(point, EndToEnd) else "collapsed"
    arrays |= {f"{name}_{part}": getattr(point, part) for part in _PARTS[kind]}
    return {"point": kind, "depth": None if point is None else float(point.depth)}


def _model(
    arrays: dict[str, Tensor], name: str, fact: dict[str, Any], shape: tuple[int, int]
) -> Model:
    """Return a model from the arrays of a file."""
    parts = {part: arrays.get(f"{name}_{part}") for part in Offsets.__dataclass_fields__}
    found = [arrays[f"{name}_{part}"] for part in _PARTS[fact["point"]]]
    sizes = [None if x is None else tuple(x.shape) for x in list(parts.values())[:3]]
    if sizes != [(), (shape[0],), (shape[1],)]:
        raise ValueError(f"offsets must fit a table {shape}, got shapes {sizes}")
    offsets = Offsets(**parts)  # pyright: ignore[reportArgumentType]
    if not found:
        return Model(offsets, None)
    depth = as_depth(fact["depth"])
    if fact["point"] == "svd":
        u, s, vh = found
        point: Collapsed | EndToEnd = EndToEnd(u, s, vh, depth, check=False)
    else:
        left, right = found
        point = Collapsed(left, right, depth, check=False)
    if point.shape != shape:
        raise ValueError(f"the matrix must have shape {shape}, got {tuple(point.shape)}")
    return Model(offsets, point)


def _saved_side(
    arrays: dict[str, Tensor], side: str, names: list[Any] | None
) -> SideFeatures | None:
    if names is None:
        return None
    values, mean, scale, others = (
        arrays[f"{side}_{part}"] for part in ("values", "mean", "scale", "others")
    )
    return SideFeatures(
        f"{side}_features", values, mean, scale, dict(zip(Ids.read(names), others, strict=True))
    )


def _as_json(x: Any) -> Any:
    """Return a parameter or result as JSON has it."""
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, torch.dtype):
        return {"dtype": str(x).removeprefix("torch.")}
    if isinstance(x, tuple):
        return {"tuple": [_as_json(part) for part in x]}
    if isinstance(x, list):
        return [_as_json(part) for part in x]
    if isinstance(x, dict):
        return {"dict": {str(key): _as_json(part) for key, part in x.items()}}
    # Devices and random states are those of the session.
    return x if x is None or isinstance(x, str | bool | int | float) else None


def _from_json(x: Any) -> Any:
    if isinstance(x, list):
        return [_from_json(part) for part in x]
    if not isinstance(x, dict):
        return x
    ((kind, part),) = x.items()
    if kind == "dtype":
        return getattr(torch, part)
    if kind == "tuple":
        return tuple(_from_json(one) for one in part)
    return {key: _from_json(one) for key, one in part.items()}
