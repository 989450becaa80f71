"""The Jacobian of the outputs of a module at random points, and the directions of groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.shaking import (
    reordered,
    resampled,
    same_draws,
    shaken,
    shaken_data,
    with_some_rows,
)
from dln_geometry.learning.architecture.subject import Point, Subject
from dln_geometry.support import normal

# More rows than parameters, so that the rank of a sketch is that of the Jacobian.
_MORE_ROWS = 1.1
_LEAST_CALLS, _MOST_CALLS = 12, 300
# Gradients of one pass at most.
_KEPT = 16
# Entries of a matrix that is held at once.
_ENTRIES = 4e7

# Responses are rounding if they are so many times smaller than those of noise in the same entries.
_FLAT = 1e-7
_ROUNDING = 1e-12


class Prober:
    """Evaluates the Jacobian of a module, over many inputs, in all real parameters."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.generator = subject, subject.generator
        own = subject.own()
        self.shapes = {n: p.shape for n, p in own.params.items() if p.is_floating_point()}
        self.offsets, self.total = dict[str, int](), 0
        for name, shape in self.shapes.items():
            self.offsets[name] = self.total
            self.total += shape.numel()
        self.tolerance = max(1e-9, 1e4 * subject.epsilon)
        self._draw = self._drawing()

    def point(self, size: float, gain: float = 1.0) -> dict[str, Tensor]:
        """Return random parameters like those of the module, further away if these work.

        Larger gains (positive vectors) reach the far ends of activations such as ReLU6.
        """
        own = {n: _enlarged(p.detach()) for n, p in self.subject.own().params.items()}
        draw = self.generator
        point = {n: shaken(p, size, draw, signs=size < 1) for n, p in own.items()}
        for name, p in point.items():
            if gain != 1 and p.ndim == 1 and p.is_floating_point() and bool((p > 0).all()):
                point[name] = gain * p
        if size >= 1:
            value = self.subject.outputs(self.inputs().at(point))
            if float(torch.isfinite(value).double().mean()) < 0.5 * self.subject.finite:
                return self.point(0.5)
        return point

    def inputs(self, *, masks: bool = False) -> Point:
        """Return the module's own parameters, with inputs drawn anew; `masks` only if asked for."""
        point = self._inputs(*self._draw)
        if masks:
            mixed = tree_map(lambda x: reordered(x, self.generator), point.call)
            point = Point(point.params, point.buffers, mixed)
        return point

    def _inputs(self, rows: bool, whole: int, spread: float) -> Point:
        own = self.subject.own()
        call = with_some_rows(own.call) if rows else own.call
        call = tree_map(lambda x: shaken_data(x, spread, self.generator), call)
        if whole:
            leaves, form = tree_flatten(call)
            tables = self.subject.tables if whole > 1 else {}
            drawn = [resampled(x, self.generator, tables.get(k, 0)) for k, x in enumerate(leaves)]
            call = tree_unflatten(drawn, form)
        buffers = {n: shaken_data(b, 0.3, self.generator) for n, b in own.buffers.items()}
        return Point(own.params, buffers, call)

    def _drawing(self) -> tuple[bool, int, float]:
        """Return how inputs can be drawn: more rows, other whole numbers, size of the noise.

        Whole numbers are drawn from all rows of the tables that they select from (2), otherwise
        from those of the example (1), or stay (0).
        """
        levels = (2, 1, 0) if self.subject.tables else (1, 0)
        for rows, whole, spread in (
            *((r, w, 2.0) for w in levels[:-1] for r in (True, False)),
            *((r, 0, 2.0) for r in (True, False)),
            *((False, 0, s) for s in (0.3, 0.0)),
        ):
            try:
                value = self.subject.outputs(self._inputs(rows, whole, spread))
            except Exception:
                continue
            if float(torch.isfinite(value).double().mean()) >= 0.5 * self.subject.finite:
                return rows, whole, spread
        return False, 0, 0.0

    def rows(
        self,
        params: Mapping[str, Tensor],
        count: int,
        least: int = _LEAST_CALLS,
        *,
        masks: bool = False,
    ) -> Tensor:
        """Return about `count` combinations of rows of the Jacobian, each of many inputs.

        The module is called at least so many times; masks are drawn anew only if asked for.
        """
        found: list[Tensor] = []
        had, calls, outputs = 0, 0, 1
        while had < count and calls < _MOST_CALLS:
            point = self.inputs(masks=masks).at(params)
            left = max(least - calls, 1)
            wanted = min(-(-(count - had) // left), count - had)
            with same_draws(self.subject.devices):
                torch.manual_seed(calls)
                part, outputs = self._of_call(point, wanted)
            calls += 1
            found.append(part)
            had += part.shape[0]
            if outputs == 0 and calls > least:
                break
        # In random order: any few of them are about all outputs and inputs.
        mixed = torch.cat(found)
        order = torch.randperm(mixed.shape[0], generator=self.generator, device=mixed.device)
        return mixed[order]

    def gradients(
        self, params: Mapping[str, Tensor], names: Sequence[str]
    ) -> Iterator[dict[str, Tensor]]:
        """Yield gradients of random combinations of outputs, on ever new inputs.

        The first ones are of one pass each. It ends if outputs have no gradient.
        """
        for seed in count():
            leaves = {n: params[n].detach().requires_grad_() for n in names}
            point = self.inputs().at({**params, **leaves})
            with same_draws(self.subject.devices):
                torch.manual_seed(seed)
                value, _ = self.subject.evaluated(point, grad=True)
            value = value[torch.isfinite(value)]
            if not value.numel() or not value.requires_grad:
                if seed >= _LEAST_CALLS:
                    return
                continue
            # More gradients of a pass than a third of its outputs say little that is new.
            several = 1 if seed < _LEAST_CALLS else min(_KEPT, 1 + value.numel() // 3)
            for _ in range(several):
                weights = normal(value.shape, self.generator, value.dtype, value.device)
                grads = torch.autograd.grad(
                    value, list(leaves.values()), weights, retain_graph=True,
                    allow_unused=True, materialize_grads=True,
                )  # fmt: skip
                yield {n: g.nan_to_num(0.0, 0.0, 0.0) for n, g in zip(names, grads, strict=True)}

    def _of_call(self, point: Point, count: int) -> tuple[Tensor, int]:
        leaves = {n: point.params[n].detach().requires_grad_() for n in self.shapes}
        value, _ = self.subject.evaluated(point.at({**point.params, **leaves}), grad=True)
        value = value[torch.isfinite(value)]
        n = value.numel()
        if not n or not value.requires_grad:
            return value.new_zeros(0, self.total), 0
        like: Any = {"dtype": value.dtype, "device": value.device}
        if n <= count:
            weights = torch.eye(n, **like)
        else:
            weights = torch.randn(count, n, generator=self.generator, **like)
        tensors = list(leaves.values())
        step = max(1, int(_ENTRIES // (8 * self.total + 64 * n)))
        pieces = []
        for some in weights.split(min(step, 256)):
            options: Any = {"retain_graph": True, "allow_unused": True}
            try:
                grads = torch.autograd.grad(value, tensors, some, is_grads_batched=True, **options)
                pieces.append(_gradient_rows(grads, tensors, len(some)))
            except RuntimeError:
                for one in some:
                    grads = torch.autograd.grad(value, tensors, one, **options)
                    pieces.append(_gradient_rows(grads, tensors, 1))
        return torch.cat(pieces).detach().nan_to_num(0.0, 0.0, 0.0), n

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return tensors of (columns, *shape) as a matrix of shape (total, columns)."""
        columns = next(iter(tensors.values())).shape[0]
        like = next(iter(tensors.values()))
        out = like.new_zeros(self.total, columns)
        for name, x in tensors.items():
            if name in self.offsets:
                start = self.offsets[name]
                out[start : start + self.shapes[name].numel()] = x.reshape(columns, -1).mT
        return out


def _gradient_rows(grads: Sequence[Any], tensors: Sequence[Tensor], count: int) -> Tensor:
    """Return gradients as rows, with zeros for tensors without any."""
    # Those that autograd fills in have no axis for the rows.
    own = [
        x.new_zeros(count, x.numel()) if g is None else g.reshape(count, x.numel())
        for g, x in zip(grads, tensors, strict=True)
    ]
    return torch.cat(own, 1)


def _enlarged(x: Tensor) -> Tensor:
    """Return matrices of the size at which units respond, if they are smaller.

    With the small entries of many initialisations, attentions and gates hardly depend on their
    parameters, and the rank of the Jacobian cannot be seen.
    """
    if (
        x.ndim < 2
        or not x.numel()
        or not x.is_floating_point()
        or not bool(torch.isfinite(x).all())
    ):
        return x
    wanted = x[0].numel() ** -0.5
    size = float(x.square().mean().sqrt())
    if size >= wanted:
        return x
    return x * (wanted / size) if size else x


def fields_of(prober: Prober, group: SymmetricGroup, params: dict[str, Tensor]) -> Tensor:
    """Return the generators of a group at some parameters, one for each entry of its elements."""
    if group.kind == "translation" and not getattr(group, "folds", ()):
        return torch.cat([indicators(prober, part, params[part.name]) for part in group.first], 1)
    symmetry = group.symmetry(params)
    shape = symmetry.shape(params)
    own = {n: params[n] for n in params if n in prober.offsets}
    like = next(iter(own.values()))
    unit = torch.eye(math.prod(shape), dtype=like.dtype, device=like.device)
    directions = unit.reshape(-1, *shape)
    found = [
        prober.flat(torch.func.vmap(lambda s: symmetry.generated(params, s))(some))
        for some in directions.split(256)
    ]
    return torch.cat(found, 1)


def is_flat(rows: Tensor, fields: Tensor) -> bool:
    """Tell whether rows of a Jacobian show no response to directions, shape (total, count)."""
    response = (rows @ fields).norm(dim=0)
    usual = (rows.square().sum(0) @ fields.square()).sqrt()
    sizes = fields.norm(dim=0)
    # Fields far smaller than the others are rounding: projections of what an algebra leaves out.
    least = _ROUNDING * float(rows.norm()) * torch.maximum(sizes, 1e-2 * sizes.amax())
    return bool((response <= _FLAT * usual + least).all())


def indicators(prober: Prober, part: Part, like: Tensor) -> Tensor:
    """Return the translations of a part, shape (total, units * rest)."""
    shape = prober.shapes[part.name]
    places = torch.arange(shape.numel(), device=like.device).reshape(shape)
    moved = part.slices(places).movedim(1, 0).reshape(part.block, -1)
    out = like.new_zeros(prober.total, moved.shape[1])
    columns = torch.arange(moved.shape[1], device=like.device).expand_as(moved)
    out[prober.offsets[part.name] + moved, columns] = 1.0
    return out
