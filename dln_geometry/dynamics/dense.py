"""The steps of a flow, from which its state at any time is interpolated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.observing import split_rows
from dln_geometry.dynamics.packing import pack_point, unpack_point
from dln_geometry.geometry.points import Network

READERS: dict[str, Any] = {}
"""The engines by name: each knows how to read its rows."""

NODES = 4
"""Steps that an interpolation uses, each with value and slope: order 8."""


@dataclass(frozen=True, eq=False, repr=False)
class Dense:
    """States, velocities and series at every step of B flows.

    Between two steps the state is the polynomial of degree 7 that has the states and velocities of
    the four steps around them (of lower degree in runs of fewer steps): its error is of the eighth
    order in the step. So are the series, by their slopes.
    """

    t: Tensor  # (S, B), in double precision on the CPU; a sample that did not advance repeats it
    y: Tensor  # (S, B, n)
    f: Tensor  # (S, B, n)
    series: dict[str, Tensor]  # (S, B, ...)
    slopes: dict[str, Tensor]
    reader: Any  # an engine without its loss

    def at(self, when: float) -> tuple[dict[str, Tensor], Tensor, Any]:
        """Return series (*batch, ...), singular values and points at a time."""
        first = torch.cat((torch.ones_like(self.t[:1], dtype=torch.bool), self.t.diff(dim=0) > 0))
        counts = first.sum(0)
        # The steps of each sample without repetitions, in front.
        order = torch.argsort((~first).to(torch.int8), dim=0, stable=True)
        y, batch = torch.empty_like(self.y[0]), tuple(self.reader.batch)
        found = {name: torch.empty_like(x[0]) for name, x in self.series.items()}
        for k in counts.clamp(max=NODES).unique().tolist():
            samples = (counts.clamp(max=NODES) == k).nonzero().squeeze(-1)
            places = order[:, samples]
            times = self.t.gather(0, order)[:, samples]
            last = counts[samples] - 1
            moment = torch.minimum(
                times.new_full(last.shape, when), times.gather(0, last[None]).squeeze(0)
            )
            steps = torch.arange(len(times), device=times.device)[:, None]
            passed = ((times <= moment) & (steps <= last)).sum(0) - 1
            start = torch.minimum((passed - (k - 1) // 2).clamp(min=0), last + 1 - k)
            nodes = start + torch.arange(k, device=times.device)[:, None]
            times, rows = times.gather(0, nodes), places.gather(0, nodes)
            where = samples.to(y.device)
            for out, x, slope in (
                (y, self.y, self.f),
                *((found[n], x, self.slopes[n]) for n, x in self.series.items()),
            ):
                at = rows.to(x.device), samples.expand(k, -1).to(x.device)
                out[where] = hermite(times, x[at], slope[at], moment)
        series = {name: x.reshape((*batch, *x.shape[1:])) for name, x in found.items()}
        s = self.reader.singular_values(y)
        return series, s.reshape((*batch, *s.shape[1:])), shaped_point(self.reader, y)

    def fields(self, when: float) -> dict[str, Any]:
        """Return the fields of a `Trajectory` at a time."""
        series, s, point = self.at(when)
        own, observed = split_rows(series)
        return {**own, "singular_values": s, "observed": observed, "final": point, "points": None}

    def select(self, where: Tensor) -> Dense:
        """Return the steps of the samples `where` (...), in its shape."""
        flat, reader = where.flatten(), self.reader
        picked = {"t": self.t[:, flat], "y": self.y[:, flat], "f": self.f[:, flat]}
        parts = {"series": self.series, "slopes": self.slopes}
        picked |= {n: {k: x[:, flat] for k, x in part.items()} for n, part in parts.items()}
        return replace(self, **picked, reader=reader.picked(flat, tuple(where.shape)))

    def pack(self, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        """Add everything to what is written."""
        arrays |= {f"dense.{name}": getattr(self, name) for name in ("t", "y", "f")}
        arrays |= {f"dense.series.{name}": x for name, x in self.series.items()}
        arrays |= {f"dense.slopes.{name}": x for name, x in self.slopes.items()}
        reader = self.reader
        for name in reader.reads:
            part = getattr(reader, name)
            pack_point(f"dense.{name}", tuple(part) if type(part) is list else part, arrays, meta)
        meta["dense"] = {
            "reader": type(reader).__name__,
            "shapes": [list(shape) for shape in reader.shapes],
            "batch": list(reader.batch),
            "depth": repr(float(reader.depth)),
            "widths": reader.widths,
            "complex": reader.is_complex,
        }

    @classmethod
    def unpack(cls, arrays: dict[str, Tensor], meta: dict[str, Any]) -> Dense | None:
        """Rebuild the steps from what was written, if there are any."""
        about = meta.get("dense")
        if about is None:
            return None
        # The engines stand above this room: by name, and only for files that need them.
        import_module("dln_geometry.dynamics.engines")
        kind = READERS[about["reader"]]
        parts = {name: unpack_point(f"dense.{name}", arrays, meta) for name in kind.reads}
        shapes = [tuple(shape) for shape in about["shapes"]]
        widths = None if about["widths"] is None else tuple(about["widths"])
        # Files of version 0.1.0 hold real numbers alone.
        own = float(about["depth"]), widths, parts, about.get("complex", False)
        reader = kind.blank(shapes, tuple(about["batch"]), *own)
        named = {
            part: {
                name.removeprefix(f"dense.{part}."): x
                for name, x in arrays.items()
                if name.startswith(f"dense.{part}.")
            }
            for part in ("series", "slopes")
        }
        t, y, f = (arrays[f"dense.{name}"] for name in ("t", "y", "f"))
        return cls(t, y, f, named["series"], named["slopes"], reader)


def hermite(times: Tensor, values: Tensor, slopes: Tensor, when: Tensor) -> Tensor:
    """Return the polynomial with these values and slopes at k times, taken at `when` (B,).

    ``times`` is (k, B), values and slopes (k, B, ...); Newton's divided differences.
    """
    k = len(times)
    kind = values.dtype
    begin, length = times[0], (times[-1] - times[0]).clamp_min(torch.finfo(torch.float64).tiny)
    wide = (1,) * (values.ndim - 2)

    def as_factor(x: Tensor) -> Tensor:
        return x.to(values.device, kind).reshape(-1, *wide)

    nodes = [as_factor((times[i // 2] - begin) / length) for i in range(2 * k)]
    place = as_factor((when - begin) / length)
    scale = as_factor(length) if k > 1 else 1.0
    column = [values[i // 2] for i in range(2 * k)]
    newton = [column[0]]
    for order in range(1, 2 * k):
        column = [
            slopes[i // 2] * scale
            if order == 1 and i % 2 == 0
            else (column[i + 1] - column[i]) / (nodes[i + order] - nodes[i])
            for i in range(2 * k - order)
        ]
        newton.append(column[0])
    if k == 1:
        return values[0] + slopes[0] * as_factor(when - begin)
    total = newton[-1]
    for i in reversed(range(2 * k - 1)):
        total = newton[i] + (place - nodes[i]) * total
    return total


def shaped_point(engine: Any, y: Tensor) -> Any:
    """Return the point of all rows y (B, n) of an engine, in the shape of its batch."""
    points, batch = engine.point(y), tuple(engine.batch)
    where = torch.arange(math.prod(batch), device="cpu").view(batch)
    if engine.widths is not None:
        plain = engine.depth == 1.0
        points = Network.from_layers([points.matrix]) if plain else points.factors(engine.widths)
    return points if len(batch) == 1 else points.select(where if batch else 0)
