"""A tape: the operations of torch in a function, noted once and repeated by numpy.

At small states an evaluation of a field takes the time of its calls. On arrays that are known a
call of numpy costs a third of one of torch, and one that makes a view costs nothing: the view of
the memory is kept. Products of batches of small matrices are quicker too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dln_geometry.ode.methods.calls import CALLS, Call, TapeError, as_array, expect, put

_FILLED = {"full", *(a + b for a in ("", "new_") for b in ("zeros", "ones"))}
_FILLED |= {"new_full", "zeros_like", "ones_like", "full_like"}
_EMPTY = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
_SHAPES = {"squeeze_", "unsqueeze_", "t_", "transpose_"}


_NOTING: ContextVar[Tape | None] = ContextVar("noting", default=None)


class Tape(TorchDispatchMode):
    """Note the operations within a block that depend on some tensors, or write into memory.

    `calls` repeat them on the memory of that time: after a change of the tensors they leave, in
    all tensors of the block, what the block would. What the block reads from a tensor as a number
    decides the way through it; a repetition that finds another number raises `TapeError`, and so
    does the block at an operation that is not known.

    Examples
    --------
    >>> x, out = torch.ones(2), torch.empty(2)
    >>> with dln.ode.Tape(x) as tape:
    ...     _ = torch.neg(2.0 * x, out=out)
    >>> _ = x.fill_(3.0)
    >>> for f, arguments in tape.calls:
    ...     _ = f(*arguments)
    >>> out
    tensor([-6., -6.])
    """

    def __init__(self, *variables: Tensor) -> None:
        super().__init__()
        self.calls: list[Call] = []
        # Keep every tensor: its memory is not to be given to another.
        self._kept: list[Any] = list(variables)
        self._changing = {_address_of(x) for x in variables}
        self._unwritten: set[int] = set()
        # Of every operation: where its calls end, and the memory that it reads and writes.
        self._operations: list[tuple[int, set[int], set[int]]] = []

    def __enter__(self) -> Tape:
        self._before = _NOTING.set(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _NOTING.reset(self._before)

    @staticmethod
    def noting() -> Tape | None:
        """Return the tape that notes what this thread does, if there is one."""
        return _NOTING.get()

    def add(self, call: Call, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Note a call that torch does not see, and that was made; all tensors are contiguous."""
        read, written = _addresses_of(reads), _addresses_of(writes)
        self._is_changing(read)
        self._kept.append((call, reads, writes))
        self.calls.append(call)
        self._operations.append((len(self.calls), read, written))
        self._unwritten -= written
        self._changing |= written

    def reads(self, x: Tensor) -> bool:
        """Tell whether an operation reads the memory of a tensor."""
        return any(_address_of(x) in reads for _, reads, _ in self._operations)

    def calls_for(self, *wanted: Tensor) -> list[Call]:
        """Return the calls that some tensors need, and those that decide the way."""
        needed, kept = _addresses_of(wanted), []
        for k in reversed(range(len(self._operations))):
            end, reads, writes = self._operations[k]
            if not writes or writes & needed:
                needed |= reads
                kept.append(self.calls[self._operations[k - 1][0] if k else 0 : end])
        return [call for calls in reversed(kept) for call in calls]

    def note(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Make an operation, and note it."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        (name, is_mutable), noted = _known_by(func), len(self.calls)
        inputs, outputs = _tensors_of((*args, *kwargs.values())), _tensors_of(found)
        self._kept.append((args, kwargs, found))
        if name in _SHAPES:
            return found
        reads, writes = _addresses_of(inputs), _addresses_of(outputs)
        if is_mutable:
            self._write(name, args, kwargs, outputs[0])
        elif not outputs:
            if self._is_changing(reads):
                if not isinstance(found, bool | int | float) or len(inputs) != 1:
                    raise TapeError(name)
                self.calls.append((expect, (inputs[0].numpy(), found)))
        elif name in _EMPTY:
            self._unwritten |= writes
        elif name in _FILLED:
            # Filled again at every repetition: later operations may change it.
            self.calls.append((np.copyto, (found.numpy(), found.numpy().copy())))
            self._changing |= writes
        elif not writes & reads and self._is_changing(reads):
            # Views are no work: numpy sees the same memory.
            self._add(name, args, kwargs, outputs)
        if len(self.calls) > noted:
            self._operations.append((len(self.calls), reads, writes))
        return found

    def _is_changing(self, memories: set[int]) -> bool:
        if memories & self._unwritten:
            raise TapeError("memory that nothing known has written")
        return bool(memories & self._changing)

    def _write(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> None:
        """Note an operation that writes into given memory."""
        given = {k: x for k, x in kwargs.items() if k != "out"}
        whole, place = name in ("copy_", "zero_", "fill_"), _address_of(out)
        read = _tensors_of((*(args[1:] if whole else args), *given.values()))
        if self._is_changing(_addresses_of(read)):
            pass
        elif not whole and "out" not in kwargs and place not in self._changing:
            raise TapeError(f"{name} on memory from before")
        self._unwritten.discard(place)
        self._changing.add(place)
        if name == "copy_":
            self.calls.append((np.copyto, (out.numpy(), as_array(args[1]), "same_kind")))
        elif whole:
            self.calls.append((np.copyto, (out.numpy(), args[1] if len(args) > 1 else 0.0)))
        elif name == "index_put_":
            index = tuple(slice(None) if i is None else i.numpy() for i in args[1])
            self.calls.append((put, (out.numpy(), index, as_array(args[2]), *args[3:])))
        else:
            self._add(name.removesuffix("_"), args, given, [out])

    def _add(self, name: str, args: Any, kwargs: dict[str, Any], outputs: list[Tensor]) -> None:
        if name not in CALLS:
            raise TapeError(name)
        arrays = [x.numpy() for x in outputs]
        out = arrays[0] if len(arrays) == 1 else arrays
        try:
            self.calls += CALLS[name](out, *as_array(args), **kwargs)
        except TypeError:
            raise TapeError(f"{name} with options that are not known") from None
        self._changing |= _addresses_of(outputs)


# Were it defined in the class, torch would wrap it, and import its compiler at the first call.
Tape.__torch_dispatch__ = Tape.note


def moved(calls: Sequence[Call], old: np.ndarray, places: Sequence[np.ndarray]) -> list[list[Call]]:
    """Return the calls with an array replaced by each of some others, whose layout is the same."""
    low, high = np.lib.array_utils.byte_bounds(old)

    def offset(x: np.ndarray) -> int:
        return x.__array_interface__["data"][0] - low

    def within(x: Any) -> bool:
        if isinstance(x, list | tuple):
            return any(map(within, x))
        return isinstance(x, np.ndarray) and 0 <= offset(x) < high - low

    def elsewhere(x: Any, new: np.ndarray) -> Any:
        if not within(x):
            return x
        if isinstance(x, list | tuple):
            return type(x)([elsewhere(part, new) for part in x])
        return np.ndarray(x.shape, x.dtype, new.data, offset(x), x.strides)

    touched = [within(arguments) for _, arguments in calls]
    return [
        [
            (f, elsewhere(arguments, new)) if touches else (f, arguments)
            for (f, arguments), touches in zip(calls, touched, strict=True)
        ]
        for new in places
    ]


@cache
def _known_by(func: Any) -> tuple[str, bool]:
    """Return the name of an operation, and whether it writes into given memory."""
    return func._schema.name.removeprefix("aten::"), func._schema.is_mutable


def _address_of(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _addresses_of(tensors: Sequence[Tensor]) -> set[int]:
    return {_address_of(x) for x in tensors}


def _tensors_of(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if not isinstance(found, list | tuple):
        return []
    return [x for part in found for x in _tensors_of(part)]
