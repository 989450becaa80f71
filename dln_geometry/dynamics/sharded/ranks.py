"""What the processes of a run tell each other; every message is counted."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from dln_geometry.dynamics.sharded.rows import rows_of, width_of

T = TypeVar("T")

# Their names of torch 2.13, and those from before.
_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class WorkerError(RuntimeError):
    """A process of the run has ended, or does not answer within the timeout of the group.

    The run goes on from its store, with any number of processes.

    Examples
    --------
    >>> issubclass(dln.sharded.WorkerError, RuntimeError)
    True
    """


class Ranks:
    """The processes of a mesh with one axis, in their order.

    Each holds the same share of the rows of every matrix, as DTensor cuts them. All methods but
    `traffic` are called by all processes together, and give all of them the same numbers.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh, self.group = mesh, mesh.get_group()
        self.rank, self.count = dist.get_rank(self.group), mesh.size()
        kind = mesh.device_type
        at = f"cuda:{torch.cuda.current_device()}" if kind == "cuda" else kind
        self.device = torch.device(at)
        self.traffic: Counter[str] = Counter()
        """Bytes that this process gave to each kind of message; ``"calls"`` counts them all."""
        self._kept: dict[Any, Tensor] = {}

    def __getstate__(self) -> None:
        raise TypeError("a mesh of processes cannot be copied or pickled: distribute it again")

    def call(self, name: str, size: int, talk: Callable[[], T]) -> T:
        """Exchange messages; `WorkerError` if another process is gone."""
        self.traffic[name] += size
        self.traffic["calls"] += 1
        try:
            return talk()
        except RuntimeError as error:
            raise WorkerError(
                f"a process of the run has ended or does not answer: process {self.rank} of "
                f"{self.count} waited for it in vain. A run with a store goes on from there, with "
                f"any number of processes. torch says: {str(error).splitlines()[0][:200]}"
            ) from error

    def summed(self, *xs: Tensor) -> list[Tensor]:
        """Return the sums over the processes of numbers of one dtype, by one message."""
        flat = torch.cat([_side_by_side(x).reshape(-1) for x in xs])
        self.call("sum", flat.nbytes, lambda: dist.all_reduce(flat, group=self.group))
        parts = flat.split([_side_by_side(x).numel() for x in xs])
        return [_as_like(part, x) for part, x in zip(parts, xs, strict=True)]

    def gathered(self, x: Tensor, count: int, use: str = "rows") -> Tensor:
        """Return all `count` rows of a matrix (..., n_p, r), until the next call for this use."""
        wide, most = _side_by_side(x.movedim(-2, 0)), width_of(count, self.count)
        if len(wide) < most or not wide.is_contiguous():
            padded = self._buffer(f"padded {use}", (most, *wide.shape[1:]), wide)
            padded[: len(wide)] = wide
            padded[len(wide) :] = 0.0
            wide = padded
        out = self._buffer(f"gathered {use}", (self.count * most, *wide.shape[1:]), wide)
        self.call("gather", wide.nbytes, lambda: _GATHER(out, wide, group=self.group))
        out = out[:count]
        return (torch.view_as_complex(out) if x.is_complex() else out).movedim(0, -2)

    def scattered(self, x: Tensor, count: int) -> Tensor:
        """Return the own rows of the sum over the processes of matrices (..., n, r)."""
        first, last = rows_of(count, self.count, self.rank)
        wide, most = _side_by_side(x.movedim(-2, 0)), width_of(count, self.count)
        if count < self.count * most or not wide.is_contiguous():
            padded = self._buffer("scattered", (self.count * most, *wide.shape[1:]), wide)
            padded[:count] = wide
            padded[count:] = 0.0
            wide = padded
        out = wide.new_empty((most, *wide.shape[1:]))
        self.call("scatter", wide.nbytes, lambda: _SCATTER(out, wide, group=self.group))
        out = out[: last - first]
        return (torch.view_as_complex(out) if x.is_complex() else out).movedim(0, -2)

    def _buffer(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return memory that is used again: fresh pages of this size cost as much as a pass."""
        key = name, *shape, like.dtype, like.device
        if key not in self._kept:
            self._kept = {k: x for k, x in self._kept.items() if k[0] != name}
            self._kept[key] = like.new_empty(tuple(shape))
        return self._kept[key]

    def triangle(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return T of ``x = Q T``, for a matrix (..., m, r) by rows, and ``Q a`` as a function.

        T has at most r rows. One QR of the own rows, one of the triangles of all.
        """
        r = x.shape[-1]
        q, own = torch.linalg.qr(x)
        k = own.shape[-2]
        padded = x.new_zeros(*x.shape[:-2], r, r)
        padded[..., :k, :] = own
        turn, t = torch.linalg.qr(self.gathered(padded, self.count * r, "triangles"))
        part = turn[..., self.rank * r : self.rank * r + k, :]
        return t, lambda a: q @ (part @ a)

    def agreed(self, *numbers: float) -> tuple[float, ...]:
        """Return the numbers of the first process."""
        x = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        x = x if self.rank == 0 else torch.zeros_like(x)
        return tuple(self.summed(x)[0].tolist())

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        return self.agreed_sum(float(flag)) > 0

    def agreed_sum(self, number: float) -> float:
        """Return the sum of a number over the processes."""
        x = torch.tensor([number], dtype=torch.float64, device=self.device)
        return float(self.summed(x)[0])

    def sum_of_integers(self, x: Tensor) -> list[int]:
        """Return the sums of integers (k,) modulo 2^64."""
        x = x.to(self.device)
        self.call("sum", x.nbytes, lambda: dist.all_reduce(x, group=self.group))
        return x.tolist()

    def together(self, work: Callable[[], T]) -> T:
        """Return ``work()``; if it fails in a process, raise the error of the first in all."""
        result, error = None, None
        try:
            result = work()
        except WorkerError:
            raise
        except Exception as raised:
            error = raised
        if not self.any(error is not None):
            return result  # pyright: ignore
        raise next(e for e in self.told(_sent(error)) if e is not None)

    def first(self, work: Callable[[], T]) -> T:
        """Return to all processes what ``work()`` returns in the first, or raise its error."""

        def tried() -> tuple[Any, Exception | None]:
            try:
                return work(), None
            except Exception as error:
                return None, _sent(error)

        box: list[Any] = [tried() if self.rank == 0 else None]
        self.call(
            "objects", 0, lambda: dist.broadcast_object_list(box, group=self.group, group_src=0)
        )
        result, error = box[0]
        if error is not None:
            raise error
        return result

    def told(self, x: Any) -> list[Any]:
        """Return the objects of all processes."""
        box: list[Any] = [None] * self.count
        self.call("objects", 0, lambda: dist.all_gather_object(box, x, group=self.group))
        return box

    def alike(self, required: str, **facts: Any) -> None:
        """Raise ValueError unless all processes have the same plain values."""
        for name, *values in zip(facts, *(told.values() for told in self.told(facts)), strict=True):
            if any(value != values[0] for value in values):
                raise ValueError(f"{name} must be {required}, got {values}")

    def to_first(self, x: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Return to the first process the rows (B, n_p) of all, on the CPU; [] to the others."""
        x = x.contiguous()
        if self.rank > 0:
            if x.numel():
                self.call("state", x.nbytes, lambda: dist.send(x, group=self.group, group_dst=0))
            return []
        found = [x.cpu()]
        for k, n in list(enumerate(counts))[1:]:
            part = x.new_empty(len(x), n)
            if part.numel():
                self.call(
                    "state", 0, lambda p=part, k=k: dist.recv(p, group=self.group, group_src=k)
                )
            found.append(part.cpu())
        return found

    def from_first(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """Return the own part, shaped as `like`, of those that the first process has."""
        if self.rank == 0:
            for k, part in list(enumerate(parts))[1:]:
                sent = part.to(like.device).contiguous()
                if sent.numel():
                    self.call(
                        "state",
                        sent.nbytes,
                        lambda s=sent, k=k: dist.send(s, group=self.group, group_dst=k),
                    )
            return parts[0].to(like.device)
        part = torch.empty_like(like, memory_format=torch.contiguous_format)
        if part.numel():
            self.call("state", 0, lambda: dist.recv(part, group=self.group, group_src=0))
        return part


def _side_by_side(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _as_like(part: Tensor, x: Tensor) -> Tensor:
    return torch.view_as_complex(part.view(*x.shape, 2)) if x.is_complex() else part.view(x.shape)


def _sent(error: Exception | None) -> Exception | None:
    """Return an error that can be sent to other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def mixed(words: Tensor) -> Tensor:
    """Return the hash of every word of 64 bits, as splitmix64 finishes it."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        words = (words ^ ((words >> shift) & (2 ** (64 - shift) - 1))) * factor
    return words


def sketch(ranks: Ranks, columns: Sequence[Tensor], first: int | None) -> str:
    """Return a text that tells rows of numbers apart, whoever holds them.

    `columns` are tensors (R, ...) of the own rows, the first of which has the number `first`; None
    if the order of the rows does not matter. A sum of hashes of rows modulo 2^64, so that it does
    not depend on how the rows are cut.
    """
    totals = torch.zeros(2, dtype=torch.int64)
    rows = len(columns[0])
    each = max(1, 2**20 // max(1, sum(x[:1].numel() for x in columns)))
    for start in range(0, rows, each):
        words = [_in_words(x[start : start + each]) for x in columns]
        line = torch.cat(words, dim=1)
        place = torch.arange(line.shape[1], device=line.device)
        for k in range(2):
            total = mixed(line + mixed(place + (1 + k) * 2**40)).sum(1)
            if first is not None:
                total = total + mixed(torch.arange(len(total), device=total.device) + first + start)
            totals[k] += mixed(total).sum().cpu()
    return " ".join(f"{x % 2**64:016x}" for x in ranks.sum_of_integers(totals))


def _in_words(x: Tensor) -> Tensor:
    """Return the bits of numbers as words of 64 bits, shape (R, k); one word for every NaN."""
    x = _side_by_side(x.detach()).reshape(len(x), -1)
    if not x.is_floating_point():
        return x.to(torch.int64)
    x = torch.where(torch.isnan(x), torch.nan, x)
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    return x.contiguous().view(kinds[x.element_size()]).to(torch.int64)
