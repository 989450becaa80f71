"""The calls of numpy that repeat an operation of torch on the memory of its tensors.

`CALLS` has a function for every operation that is known: from the array of the output and the
arguments it makes the calls. To add one, add a line; it must agree with torch up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Call = tuple[Callable[..., Any], tuple[Any, ...]]
Maker = Callable[..., list[Call]]


class TapeError(Exception):
    """An operation that cannot be repeated, or a number that took another value this time.

    Examples
    --------
    >>> x = torch.tensor([3.0, 1.0, 2.0])
    >>> try:
    ...     with dln.ode.Tape(x):
    ...         x.sort()
    ... except dln.ode.TapeError as error:
    ...     print(error)
    sort
    """


def as_array(x: Any) -> Any:
    """Return the memory of a tensor, or of all in a list, as arrays."""
    if isinstance(x, list | tuple):
        return [as_array(part) for part in x]
    return x.numpy() if isinstance(x, Tensor) else x


def expect(x: np.ndarray, value: Any) -> None:
    """Raise `TapeError` where a number is another one than it was."""
    if x.item() != value:
        raise TapeError("another way")


def put(out: np.ndarray, index: Any, values: Any, add: bool = False) -> None:
    """Write, or add, values at some places."""
    if add:
        np.add.at(out, index, values)
    else:
        out[index] = values


def _take(out: np.ndarray, x: np.ndarray, index: tuple[Any, ...]) -> None:
    out[...] = x[index]


def _into(outputs: Sequence[np.ndarray], f: Callable[..., Any], a: np.ndarray) -> None:
    for out, x in zip(outputs, f(a), strict=True):
        out[...] = x


def _thin_svd(a: np.ndarray) -> Any:
    return np.linalg.svd(a, full_matrices=False)


def _entrywise(f: Callable[..., Any]) -> Maker:
    """Return the maker for a function that takes its output last."""
    return lambda out, *x: [(f, (*x, out))]


def _with_multiple(f: Callable[..., Any]) -> Maker:
    """Return the maker for ``f(x, alpha y)``."""

    def make(out: np.ndarray, x: Any, y: Any, alpha: float = 1.0) -> list[Call]:
        if alpha == 1:
            return [(f, (x, y, out))]
        part = np.empty(np.shape(y), out.dtype)
        return [(np.multiply, (y, alpha, part)), (f, (x, part, out))]

    return make


def _matrix_product(out: np.ndarray, a: Any, b: Any, alpha: float = 1.0) -> list[Call]:
    # `dot` costs less than `matmul`, and wants a contiguous output.
    plain = out.ndim <= 2 and out.flags.c_contiguous
    calls: list[Call] = [(np.dot if plain else np.matmul, (a, b, out))]
    return calls if alpha == 1 else [*calls, (np.multiply, (out, alpha, out))]


def _add_product(
    out: np.ndarray, c: Any, a: Any, b: Any, beta: float = 1.0, alpha: float = 1.0
) -> list[Call]:
    if beta == 0:
        return _matrix_product(out, a, b, alpha)
    part, own = np.empty(out.shape, out.dtype), c
    calls = _matrix_product(part, a, b, alpha)
    if beta != 1:
        own = np.empty(np.shape(c), out.dtype)
        calls.append((np.multiply, (c, beta, own)))
    return [*calls, (np.add, (own, part, out))]


def _add_entries(out: np.ndarray, c: Any, a: Any, b: Any, value: float = 1.0) -> list[Call]:
    part = np.empty(np.broadcast_shapes(np.shape(a), np.shape(b)), out.dtype)
    scaled = [] if value == 1 else [(np.multiply, (part, value, part))]
    return [(np.multiply, (a, b, part)), *scaled, (np.add, (c, part, out))]


def _over(f: np.ufunc) -> Maker:
    """Return the maker for a reduction."""

    def make(
        out: np.ndarray, x: Any, dim: Any = None, keepdim: bool = False, **_: Any
    ) -> list[Call]:
        axes = dim if isinstance(dim, int) else (tuple(dim) if dim else None)
        return [(f.reduce, (x, axes, None, out, keepdim))]

    return make


def _euclidean(
    out: np.ndarray, x: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> list[Call]:
    if order != 2:
        raise TapeError("a norm that is not Euclidean")
    square = np.empty(x.shape, x.dtype)
    total = _over(np.add)(out, square, dim, keepdim)
    return [(np.multiply, (x, x, square)), *total, (np.sqrt, (out, out))]


def _raise_to(out: np.ndarray, x: Any, exponent: Any) -> list[Call]:
    if isinstance(exponent, Sequence | np.ndarray):
        return [(np.power, (x, exponent, out))]
    if exponent == 2:
        return [(np.multiply, (x, x, out))]
    return [(np.power, (x, out.dtype.type(exponent), out))]


def _clip(out: np.ndarray, x: Any, *bounds: Any, **named: Any) -> list[Call]:
    low, high = (*bounds, None, None)[:2]
    return [(np.clip, (x, named.get("min", low), named.get("max", high), out))]


def _choose(out: np.ndarray, test: Any, a: Any, b: Any) -> list[Call]:
    part = np.empty(out.shape, out.dtype)
    first: Call = (np.copyto, (part, b))
    return [first, (np.copyto, (part, a, "same_kind", test)), (np.copyto, (out, part))]


def _in_turn(*functions: Callable[..., Any]) -> Maker:
    def make(out: np.ndarray, x: Any) -> list[Call]:
        return [(f, (out if k else x, out)) for k, f in enumerate(functions)]

    return make


def _decompose(f: Callable[..., Any]) -> Maker:
    def make(out: Any, a: np.ndarray, *rest: Any, **_: Any) -> list[Call]:
        if f is _thin_svd and rest[:1] == (True,) and a.shape[-1] != a.shape[-2]:
            raise TapeError("a full decomposition")
        return [(_into, (out, f, a))]

    return make


CALLS: dict[str, Maker] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), _matrix_product),
    "addmm": _add_product,
    "baddbmm": _add_product,
    "addcmul": _add_entries,
    "add": _with_multiple(np.add),
    "sub": _with_multiple(np.subtract),
    "rsub": lambda out, x, y, alpha=1.0: _with_multiple(np.subtract)(out, y, x, alpha),
    "mul": _entrywise(np.multiply),
    "div": _entrywise(np.divide),
    "pow": _raise_to,
    "square": lambda out, x: _raise_to(out, x, 2),
    "neg": _entrywise(np.negative),
    "abs": _entrywise(np.absolute),
    "sgn": _entrywise(np.sign),
    "rsqrt": _in_turn(np.sqrt, np.reciprocal),
    **{
        name: _entrywise(getattr(np, name))
        for name in ("sqrt", "exp", "expm1", "log", "log1p", "sign", "reciprocal", "tanh", "sinh")
    },
    **{
        name: _entrywise(getattr(np, name))
        for name in ("cosh", "minimum", "maximum", "isfinite", "isnan", "isneginf", "isposinf")
    },
    **{
        name: _entrywise(getattr(np, name))
        for name in ("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or")
    },
    "bitwise_not": _entrywise(np.bitwise_not),
    "eq": _entrywise(np.equal),
    "ne": _entrywise(np.not_equal),
    "lt": _entrywise(np.less),
    "le": _entrywise(np.less_equal),
    "gt": _entrywise(np.greater),
    "ge": _entrywise(np.greater_equal),
    "clamp": _clip,
    "clamp_min": _clip,
    "clamp_max": lambda out, x, high: _clip(out, x, None, high),
    "where": _choose,
    "masked_fill": lambda out, x, test, value: _choose(out, test, value, x),
    "sum": _over(np.add),
    "prod": _over(np.multiply),
    "amax": _over(np.maximum),
    "amin": _over(np.minimum),
    "all": _over(np.logical_and),
    "any": _over(np.logical_or),
    "linalg_vector_norm": _euclidean,
    "cat": lambda out, parts, dim=0: [(np.concatenate, (parts, dim, out))],
    "stack": lambda out, parts, dim=0: [(np.stack, (parts, dim, out))],
    "clone": lambda out, x, **_: [(np.copyto, (out, x))],
    "_to_copy": lambda out, x, **_: [(np.copyto, (out, x, "unsafe"))],
    "index": lambda out, x, index: [
        (_take, (out, x, tuple(slice(None) if i is None else i for i in index)))
    ],
    "flip": lambda out, x, dims: [(np.copyto, (out, np.flip(x, dims)))],
    "_linalg_eigh": _decompose(np.linalg.eigh),
    "_linalg_svd": _decompose(_thin_svd),
}
"""Makers of calls by the name of the operation."""
