"""A pretended accelerator: tensors that say they are on another device, and lie on the CPU.

Inside `pretended()` the device `DEVICE` exists. An operation on its tensors and on a CPU tensor
that has dimensions raises `MixedDevices`, as on CUDA, and so does a generator of the wrong device;
every operation for which the host would have to wait is counted, with the line that asked for it,
and so is every factorisation. Times mean nothing here, and sparse layouts are not pretended.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"

# Results whose shape depends on values, and values that Python reads: the host waits for each.
WAITS = [
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "_local_scalar_dense",
    "is_nonzero",
    "item",
    "equal",
    "bincount",
    "_linalg_check_errors",
    "histc",
]
# Factorisations: on CUDA calls of a library; those in READ read a flag of success on the host.
FACTORISATIONS = [
    "_linalg_eigh",
    "_linalg_svd",
    "linalg_eig",
    "linalg_qr",
    "linalg_cholesky_ex",
    "linalg_inv_ex",
    "_linalg_solve_ex",
    "linalg_lu_factor_ex",
    "_linalg_slogdet",
    "_linalg_det",
    "linalg_lstsq",
    "geqrf",
    "cholesky_inverse",
]
READ = "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"
LAZY = torch._C.DispatchKey.Conjugate, torch._C.DispatchKey.Negative
INDICES = ("index", "index_put_", "index_put", "_index_put_impl_")


class MixedDevices(RuntimeError):
    """Tensors of two devices met."""


class Counts:
    """Waits, factorisations and uploads since the last `reset`, by name and line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.waits: collections.Counter[str] = collections.Counter()
        self.factorisations: collections.Counter[str] = collections.Counter()
        self.uploads: collections.Counter[str] = collections.Counter()
        self.operations = 0

    def wait(self, name: str) -> None:
        self.waits[f"{name} at {caller()}"] += 1

    @property
    def total(self) -> int:
        """Number of waits."""
        return self.waits.total()

    def __str__(self) -> str:
        parts = (self.waits, self.factorisations)
        return "\n".join(
            f"{count:6d} {line}" for part in parts for line, count in part.most_common()
        )


def caller() -> str:
    """Return the innermost line of the packages under test on the stack."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for package in ("/dln_geometry/", "/manifolds/"):
            if package in name and "/tests/" not in name and "site-packages" not in name:
                return f"{name.rpartition(package)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "the test"


COUNTS = Counts()


class PretendedTensor(Tensor):
    """A tensor on the pretended device, around the tensor `held` on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendedTensor:
        places = {}
        if held.layout == torch.strided:
            places = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            **places,
            dtype=held.dtype,
            # What C++ sees: on a device of its own, autograd would run in a thread without modes.
            device="meta",
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    device = property(lambda self: torch.device(NAME, 0))  # pyright: ignore
    is_meta = property(lambda self: False)  # pyright: ignore

    def __repr__(self, **_: Any) -> str:
        return f"pretended {self.held!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        # The standard way copies storages, of which wrappers have none.
        with torch.no_grad():
            copy: Any = PretendedTensor(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        elif self.requires_grad and self.is_leaf:
            copy.requires_grad_()
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __call__(self) -> Tensor:
        return self

    def as_subclass(self, cls: Any) -> Any:  # pyright: ignore
        return self  # a wrapper has one class

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class PretendedGenerator(torch.Generator):
    """A generator of the CPU that says it is on the device, and draws the same numbers."""

    device = property(lambda self: torch.device(NAME, 0))  # pyright: ignore


class _Generators(type):
    """The type of what `torch.Generator` is inside of `pretended`: every generator is one."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return PretendedGenerator() if is_there(device) else PLAIN_GENERATOR(device=device)

    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, PLAIN_GENERATOR)


PLAIN_GENERATOR = torch.Generator


class GeneratorOfAny(metaclass=_Generators):
    """What `torch.Generator` is inside of `pretended`."""


def is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type in (NAME, "meta")


def is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, PretendedTensor)


def held(x: Any) -> Any:
    return x.held if isinstance(x, PretendedTensor) else x


def there(x: Any) -> Any:
    """Return a structure with its tensors moved to the device."""
    return tree_map(lambda t: PretendedTensor(t.detach().clone()) if is_plain(t) else t, x)


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what the tensors hold, after its checks."""
    leaves = tree_leaves((args, kwargs))
    pretended = [t for t in leaves if isinstance(t, PretendedTensor)]
    device = kwargs.get("device")
    if not pretended and not is_there(device):
        return func(*args, **kwargs)
    COUNTS.operations += 1
    name = func._schema.name.removeprefix("aten::")
    if any(is_plain(t) and t.is_meta for t in leaves):
        # Made by C++ on the device that it sees: the values are lost.
        raise MixedDevices(f"{name}: give indices as slices or tensors, no list, at {caller()}")
    away = name in ("_to_copy", "copy_")
    outside = [t for t in leaves if is_plain(t) and t.ndim > 0]
    if name in INDICES:
        # Indices, but not values, may lie on the CPU: CUDA uploads them.
        outside = [t for t in tree_leaves((args[:1], args[2:])) if is_plain(t) and t.ndim > 0]
        if any(
            getattr(i, "dtype", None) in (torch.bool, torch.uint8) for i in tree_leaves(args[1])
        ):
            COUNTS.wait("boolean index")
    if pretended and outside and not away:
        shape = tuple(outside[0].shape)
        raise MixedDevices(f"{name}: a CPU tensor of shape {shape} met others at {caller()}")
    if name == "copy_" and is_plain(args[0]):
        COUNTS.wait("copy to the CPU")
        return func(args[0], held(args[1]), **kwargs)
    if name == "_to_copy" and pretended and device is not None and not is_there(device):
        COUNTS.wait("copy to the CPU")
        return func(held(args[0]), *args[1:], **kwargs)
    if away and outside:
        COUNTS.uploads[caller()] += 1
    if name in WAITS or (name == "repeat_interleave" and "Tensor" in func._schema.overload_name):
        COUNTS.wait(name.strip("_"))
    if name in FACTORISATIONS:
        COUNTS.factorisations[f"{name.strip('_')} at {caller()}"] += 1
        if name in READ:
            COUNTS.wait(name.strip("_"))
    inner_args, inner = tree_map(held, (args, kwargs))
    if is_there(device):
        inner["device"] = torch.device("cpu")
        inner.pop("pin_memory", None)
    if name == "_efficientzerotensor":
        func = torch.ops.aten.zeros.default  # a wrapper around one without storage crashes
    turned = [t for t in pretended if t.held.is_conj() or t.held.is_neg()]
    with contextlib.ExitStack() as stack:
        for key in LAZY if turned else ():
            # Off below this call: operations would read conjugates as what they are lazily made of.
            stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
        out = func(*inner_args, **inner)
    if name == "_local_scalar_dense":
        return out
    out = tree_map(lambda t: PretendedTensor(t) if is_plain(t) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What C++ does before it dispatches: makers of tensors from data, draws, and readers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            return self.made(func, args, kwargs)
        if name in ("tolist", "numpy", "__array__") and isinstance(args[0], PretendedTensor):
            if name != "tolist":
                raise TypeError(f"can't convert {args[0].device} device type tensor to numpy")
            COUNTS.wait("tolist")
            return args[0].held.tolist()
        if name == "new_tensor" and isinstance(args[0], PretendedTensor):
            kwargs.setdefault("dtype", args[0].dtype)
            return self.made(torch.tensor, args[1:], {"device": args[0].device, **kwargs})
        if name == "untyped_storage" and isinstance(args[0], PretendedTensor):
            return args[0].held.untyped_storage()
        if name == "data_ptr" and isinstance(args[0], PretendedTensor):
            return args[0].held.data_ptr()
        if (generator := kwargs.get("generator")) is not None:
            target = is_there(kwargs.get("device")) or isinstance(args[0], PretendedTensor)
            if isinstance(generator, PretendedGenerator) != target:
                where = "the device" if target else "the CPU"
                raise MixedDevices(f"{name}: a generator of {generator.device} on {where}")
        return func(*args, **kwargs)

    def made(self, make: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device, data = kwargs.pop("device", None), args[0]
        if isinstance(data, PretendedTensor):
            dtype = kwargs.get("dtype") or data.dtype
            data = data.detach().clone() if make is torch.tensor else data
            return data.to(device=device or data.device, dtype=dtype)
        if not is_there(device):
            return make(*args, **kwargs, **({} if device is None else {"device": device}))
        COUNTS.uploads[caller()] += 1
        return PretendedTensor(make(*args, **kwargs, device="cpu").clone())


@contextlib.contextmanager
def pretended() -> Iterator[Counts]:
    """Let the device exist, and count from zero."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        module = _Backend()
        backend_registration._setup_privateuseone_for_python_backend(NAME, module)
    COUNTS.reset()
    changed: Any = torch.Tensor, torch
    # The wrappers of torch.func ask C++, which takes the device for "meta".
    changed[0].is_meta = property(lambda self: False)
    old, changed[1].Generator = torch.Generator, GeneratorOfAny
    try:
        with _Functions(), _Operations():
            yield COUNTS
    finally:
        changed[1].Generator = old
        del changed[0].is_meta


class _Backend(backend_registration._DummyBackendModule):
    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """Its numbers are those of the CPU."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]
