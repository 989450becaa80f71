"""Note the operators of one call of a module: what they propose, and those without a rule."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dln_geometry.learning.architecture.probing.families import ALGEBRAS, Projection
from dln_geometry.learning.architecture.probing.operators.rules import (
    CONVOLUTIONS,
    PRODUCTS,
    Rule,
    rule_of,
)
from dln_geometry.learning.architecture.subject import Subject


@dataclass
class Proposals:
    """What the operators of a module propose, and those that have no rule."""

    linear: dict[int, None] = field(default_factory=dict)
    others: dict[str | Projection, dict[int, None]] = field(default_factory=dict)
    widths: tuple[int, ...] = ()
    stops: dict[str, None] = field(default_factory=dict)
    # Start and size of the parts into which axes of a length are split.
    segments: dict[int, dict[tuple[int, int], None]] = field(default_factory=dict)
    # Entries of each index of an axis of a length that is made by merging, or will be split.
    inners: dict[int, dict[int, None]] = field(default_factory=dict)
    # Numbers of maps that parameters may hold in a stack: products that are made at once.
    batches: dict[int, None] = field(default_factory=dict)
    # Lengths of axes, and into how many runs, or combs of indices, they fall.
    runs: dict[tuple[int, int], None] = field(default_factory=dict)
    combs: dict[tuple[int, int], None] = field(default_factory=dict)
    kernels: set[torch.Size] = field(default_factory=set)  # shapes of those of convolutions
    class_axis: int = -1  # where the last linear map puts its channels

    @property
    def algebras(self) -> list[str | Projection]:
        """The algebras that are proposed, without the linear one; larger ones first."""
        order = list(ALGEBRAS)
        known = [a for a in order if a in self.others]
        return [*known, *(a for a in self.others if not isinstance(a, str))]

    def of(self, algebra: str | Projection) -> list[int]:
        """Return the widths that are proposed for an algebra."""
        return list(self.linear if algebra == "linear" else self.others.get(algebra, ()))

    def add(self, algebra: str | Projection, width: int) -> None:
        """Note a proposal."""
        own = self.linear if algebra == "linear" else self.others.setdefault(algebra, {})
        own[width] = None


_VIEWS = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias"}


class _Recorder(TorchDispatchMode):
    """Note the operators of a call: what they propose, and where those without a rule stand."""

    def __init__(self) -> None:
        super().__init__()
        self.proposals, self.sizes = Proposals(), dict[int, None]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator."""
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        name = func._schema.name
        rule = rule_of(name)
        if rule in (PRODUCTS, CONVOLUTIONS):
            self.proposals.class_axis = 1 if rule is CONVOLUTIONS else -1
        if rule is not None:
            for algebra, width in _proposed(rule, name, args, kwargs):
                if not (isinstance(algebra, str) and algebra in ALGEBRAS) and not callable(algebra):
                    raise ValueError(
                        f"the rule of {name} must return algebras among {list(ALGEBRAS)} or "
                        f"projections, got {algebra!r}"
                    )
                self.proposals.add(algebra, width)
        elif not (name.startswith(("aten::", "prim::")) and _is_entrywise(func)):
            self.proposals.stops[f"{name} ({_line()})"] = None
        parts = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
        for x in parts:
            self.sizes.update(dict.fromkeys(x.shape))
        self._note_stacks(name, args)
        if name.rpartition("::")[2].startswith(("split", "slice", "narrow", "chunk", "unsafe_sp")):
            self._note_parts(args[0], parts)
        if name in _VIEWS and parts:
            self._note_merged(args[0].shape, parts[0].shape)
            self._note_merged(parts[0].shape, args[0].shape)
        if name == "aten::cat" and len(parts) == 1:
            self._note_joined(args[0], parts[0], *args[1:], **kwargs)
        return value

    def _note_stacks(self, name: str, args: Any) -> None:
        """Note how many maps one tensor may hold, and how they lie in it."""
        own, x = self.proposals, args[0] if args and isinstance(args[0], Tensor) else None
        if x is None:
            return
        if name in ("aten::bmm", "aten::baddbmm"):
            own.batches[args[-1].shape[0]] = None
        elif name == "aten::convolution":
            own.kernels.add(args[1].shape)
            if args[-1] > 1:
                own.runs[args[1].shape[0], args[-1]] = None
        elif name == "aten::slice" and len(args) > 4 and args[4] > 1:
            own.combs[x.shape[args[1]], args[4]] = None
        elif name in ("aten::select", "aten::unbind"):
            dim = args[1] % x.ndim if len(args) > 1 else 0
            own.batches[x.shape[dim]] = None
            if dim == x.ndim - 1 > 0:
                own.combs[x.shape[-2] * x.shape[-1], x.shape[-1]] = None

    def _note_joined(self, parts: Sequence[Tensor], whole: Tensor, dim: int = 0) -> None:
        """Note where the parts of a joined axis begin."""
        sizes = [x.shape[dim] for x in parts if x.ndim == whole.ndim]
        own = self.proposals.segments.setdefault(whole.shape[dim], {}) if whole.ndim else {}
        for start, size in zip(accumulate([0, *sizes]), sizes, strict=False):
            # The parts may have been joined from others before.
            inner = list(self.proposals.segments.get(size, ())) if size != whole.shape[dim] else []
            own.update(dict.fromkeys([(start, size), *((start + s, n) for s, n in inner)]))

    def _note_merged(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Note how many entries the indices of merged axes have."""
        k = 0
        for n in after:
            own: list[int] = []
            while k < len(before) and prod(own) < n:
                own.append(before[k])
                k += 1
            if prod(own) != n:
                return
            for j in range(1, len(own)):
                if 1 < prod(own[j:]) < n:
                    self.proposals.inners.setdefault(n, {})[prod(own[j:])] = None

    def _note_parts(self, whole: Tensor, parts: Sequence[Tensor]) -> None:
        """Note where the parts of a split axis begin."""
        for x in parts:
            cut = [k for k in range(x.ndim) if x.ndim == whole.ndim and x.shape[k] < whole.shape[k]]
            if len(cut) == 1 and x.numel() and x.stride() == whole.stride():
                n, size, stride = whole.shape[cut[0]], x.shape[cut[0]], x.stride(cut[0])
                start = (x.storage_offset() - whole.storage_offset()) // max(stride, 1)
                self.proposals.segments.setdefault(n, {})[start, size] = None


def _proposed(rule: Rule, name: str, args: Any, kwargs: Any) -> list[tuple[str | Projection, int]]:
    """Return what a rule proposes for one call."""
    try:
        return [(algebra, int(width)) for algebra, width in rule(*args, **kwargs)]
    except Exception as error:
        raise ValueError(
            f"the rule of {name} must return pairs of an algebra and a width, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _is_entrywise(func: Any) -> bool:
    """Tell whether an operator acts on each entry alike, or only looks at a tensor otherwise."""
    return torch.Tag.pointwise in func.tags or func.is_view


def _line() -> str:
    """Return the line of the user's code that is being run."""
    for frame in reversed(traceback.extract_stack()):
        inside = ("/torch/" in frame.filename) or "dln_geometry/learning/" in frame.filename
        if not inside and not frame.filename.startswith("<"):
            return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return "torch"


def recorded(subject: Subject) -> Proposals:
    """Return what the operators of one call of a module propose."""
    recorder = _Recorder()
    own = subject.own()
    # With gradients: without, some layers call one fused operator that hides the others.
    with recorder:
        subject.evaluated(own.watched(), grad=True)
    shapes = [p.shape for p in own.params.values() if p.is_floating_point()]
    axes = {n for shape in shapes for n in shape}
    # Widths of channels divide an axis of some parameter, or are two of its axes.
    both = axes | {m * n for shape in shapes if len(shape) > 2 for m, n in pairwise(shape)}
    fitting = [d for d in recorder.sizes if d > 1 and any(n % d == 0 for n in both)]
    found = recorder.proposals
    found.segments = {n: parts for n, parts in found.segments.items() if n in axes}
    fitting += [d for parts in found.segments.values() for _, d in parts if d > 1]
    found.widths = tuple(sorted({*(n for n in axes if n > 1), *fitting}, reverse=True))
    found.linear = {d: None for d in sorted(found.linear, reverse=True) if d in found.widths}
    found.others = {
        a: {d: None for d in sorted(ds, reverse=True) if d in found.widths}
        for a, ds in found.others.items()
    }
    return found
