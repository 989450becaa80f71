"""The protocol of losses, functions that call any loss, and the base class of losses on data."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from dln_geometry.dynamics.losses.products import Thin, half_square, products
from dln_geometry.dynamics.losses.spread import ranks_of
from dln_geometry.geometry.kernel import quick_product
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_choice, as_matrix, check_loss

_WIDE = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@runtime_checkable
class Loss(Protocol):
    """A loss ``E(X)`` of the end-to-end matrix.

    Two methods make a loss. Flows call them with matrices of shape (..., m, n), entropies and
    users also with points; `as_dense` makes a matrix of either. More methods are optional:

    - ``contract(left, right)`` returns ``(E, G R, G^T L)`` at ``X = L R^T``, transposes being
      conjugate where matrices are complex;
    - ``evaluate(x)`` returns ``(E, G)`` at a matrix;
    - ``to(dtype=None, device=None)`` returns the loss on data of that dtype and device;
    - ``shape`` is ``(m, n)``, and lets a flow refuse a start that does not fit;
    - ``narrowed(batch, samples)`` returns the loss of some samples of the flattened leading
      dimensions alone: then samples that have stopped leave the batch of a flow;
    - ``fingerprint()`` returns what tells the loss from others of its class (tensors, numbers,
      strings, other losses, or lists and dicts of them): by it a store knows its run. Without it a
      store compares values and gradients at fixed points.

    Examples
    --------
    >>> import torch
    >>> class Quartic:
    ...     def __init__(self, target):
    ...         self.target = torch.as_tensor(target)
    ...     def value(self, x):
    ...         return (dln.losses.as_dense(x) - self.target).pow(4).sum((-2, -1)) / 4
    ...     def gradient(self, x):
    ...         return (dln.losses.as_dense(x) - self.target).pow(3)
    >>> loss = Quartic([[1.0, 0.0], [0.0, 1.0]])
    >>> isinstance(loss, dln.losses.Loss), loss.value(torch.zeros(2, 2))
    (True, tensor(0.5000))
    """

    def value(self, x: Any) -> Tensor:
        """Return ``E(X)``, shape (...)."""
        ...

    def gradient(self, x: Any) -> Tensor:
        """Return the Euclidean gradient ``G = E'(X)``, shape (..., m, n), dense or sparse."""
        ...


def as_dense(x: Any) -> Tensor:
    """Return the end-to-end matrix (..., m, n) of a `Collapsed`, an `EndToEnd`, or a matrix itself.

    Examples
    --------
    >>> dln.losses.as_dense([[1.0, 2.0]])
    tensor([[1., 2.]])
    """
    if isinstance(x, Collapsed | EndToEnd):
        return x.matrix
    if (
        isinstance(x, Tensor)
        and (x.is_floating_point() or x.is_complex())
        and x.ndim >= 2
        and _is_plain(x)
        and x.numel()
    ):
        # Not checked for NaN, which would cost a pass over the matrix: the value shows it.
        return x
    return as_matrix(x, "x", complex=True)


def _is_plain(x: Tensor) -> bool:
    """Tell whether a tensor holds its numbers one by one."""
    return x.layout == torch.strided and not x.is_meta


def contract(loss: Loss, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(E(X), G R, G^T L)`` at ``X = L R^T`` with ``G = E'(X)``, without checks.

    Transposes of complex matrices are conjugate.
    Calls the loss's own ``contract`` if it has one. ``left`` is (..., m, r), ``right`` (..., n, r).

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[1.0]])
    >>> dln.losses.contract(loss, torch.tensor([[2.0]]), torch.tensor([[3.0]]))  # X = 6, G = 5
    (tensor(12.5000), tensor([[15.]]), tensor([[10.]]))
    """
    own = getattr(loss, "contract", None)
    if own is not None:
        return own(left, right)
    x = left @ right.mH
    return loss.value(x), *products(loss.gradient(x), left, right)


def evaluate(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(E(X), G)``, G dense, without checks; by the loss's own ``evaluate`` if any.

    Examples
    --------
    >>> dln.losses.evaluate(dln.losses.Quadratic([[1.0]]), torch.tensor([[3.0]]))
    (tensor(2.), tensor([[2.]]))
    """
    own = getattr(loss, "evaluate", None)
    if own is not None:
        return own(x)
    gradient = loss.gradient(x)
    return loss.value(x), gradient if gradient.layout == torch.strided else gradient.to_dense()


def narrowed_loss(loss: Any, batch: Sequence[int], samples: Tensor) -> Any:
    """Return the loss of some samples (k,) of a flattened batch; None if it cannot select.

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[[1.0]], [[2.0]], [[3.0]]])
    >>> dln.losses.narrowed_loss(loss, (3,), torch.tensor([0, 2])).target.flatten()
    tensor([1., 3.])
    """
    own = getattr(loss, "narrowed", None)
    return None if own is None else own(batch, samples)


def prepared(loss: Any, shape: tuple[int, int], *, dtype: Any = None, device: Any = None) -> Any:
    """Check a loss, and convert its data to the dtype and device of points by its own ``to``.

    Examples
    --------
    >>> loss = dln.losses.prepared(dln.losses.Quadratic([[1.0]]), (1, 1), dtype=torch.float64)
    >>> loss.target.dtype
    torch.float64
    """
    check_loss(loss, shape, "value", "gradient")
    if ranks_of(loss) is not None:
        got = type(loss).__name__
        raise TypeError(
            f"loss must be whole, only gradient_flow runs on several processes, got {got}"
        )
    move = getattr(loss, "to", None)
    return loss if move is None else move(dtype=dtype, device=device)


class DataLoss(ABC):
    """A loss ``E(X) = 1/2 |residual(X)|^2`` with a residual that is affine in X.

    A subclass gives the residual and its adjoint; also the energy of the residual and its slope, if
    that is not half a square. Data are converted to the dtype and device of the point, and the
    converted loss is kept.
    """

    residual_dimensions: ClassVar = 1
    reduction = "sum"
    complex_numbers: ClassVar[bool] = False
    """Whether matrices and data may be complex: then ``dE = Re tr G* dX``."""
    _share: float | None = None
    """What the sum is multiplied by; 1 over the number of terms for a mean."""
    # Caches, which copies leave behind, and what is computed from other data: neither tells losses
    # apart.
    _caches: ClassVar[tuple[str, ...]] = ("_converted",)
    _derived: ClassVar[tuple[str, ...]] = ("device", "_share", "by_row")
    _own: ClassVar[dict[str, int]] = {}
    """Data that may have leading dimensions, and how many others they have."""
    by_row: ClassVar[dict[str, int]] = {}
    """Data that belong to rows of X, and the axis of the rows."""

    def __init__(self, shape: tuple[int, int], data: Tensor) -> None:
        self.shape, self.dtype, self.device = shape, data.dtype, data.device
        self._converted: dict[tuple[torch.dtype, torch.device], Self] = {}

    def _reduce(self, reduction: str, terms: float) -> None:
        """Let the loss be the mean over its terms, if that is asked for."""
        if as_choice(reduction, ("sum", "mean"), "reduction") == "mean":
            # Kept where it is not the default alone, for fingerprints to stay those of the sum.
            self.reduction, self._share = reduction, 1.0 / terms

    def _reduced(self, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy and its slope as the reduction wants them."""
        return (value, slope) if self._share is None else (value * self._share, slope * self._share)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), **{name: {} for name in self._caches if name in vars(self)}}

    def fingerprint(self) -> dict[str, Any]:
        """Return the data of the loss, by name."""
        hidden = {*self._caches, *self._derived}
        return {name: data for name, data in vars(self).items() if name not in hidden}

    def value(self, x: Any) -> Tensor:
        """Return ``E(X)``, shape (...), at a point or matrix of the loss's shape."""
        loss, point = self._enter(x)
        return loss._measured(loss._residual(point))[0]

    def gradient(self, x: Any) -> Tensor:
        """Return the Euclidean gradient ``G = E'(X)``, shape (..., m, n), as `value` takes X."""
        loss, point = self._enter(x)
        return loss._gradient(point)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(E(X), G)`` at a matrix, the gradient dense, without checks."""
        residual = self._residual(x)
        value, slope = self._measured(residual)
        return value, self._adjoint(slope)

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` at ``X = L R^T``, without checks."""
        value, gradient = self.evaluate(quick_product(left, right.mH))
        return value, *products(gradient, left, right)

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """Return the loss on data of this dtype and device (itself if they are)."""
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if dtype.is_complex != self.dtype.is_complex:
            if not dtype.is_complex:
                raise TypeError(f"x must be complex like the data of the loss, got {dtype}")
            if not self.complex_numbers:
                name = type(self).__name__
                raise TypeError(f"x must be real for the loss {name}, got {dtype}")
        key = dtype, device
        if key == (self.dtype, self.device):
            return self
        if key not in self._converted:
            self._converted[key] = self._to(dtype, device)
        return self._converted[key]

    def narrowed(self, batch: Sequence[int], samples: Tensor) -> Self:
        """Return the loss of some samples (k,) of the flattened leading dimensions `batch`."""
        found = {name: getattr(self, name, None) for name in self._own}
        parts = {n: x for n, x in found.items() if x is not None and x.ndim > self._own[n]}
        if not parts:
            return self
        alone = copy.copy(self)
        for name, x in parts.items():
            own = x.shape[x.ndim - self._own[name] :]
            wide = x.expand(*batch, *own).reshape(-1, *own)
            setattr(alone, name, wide[samples.to(x.device)])
        return alone

    def of_rows(self, first: int, last: int) -> Self:
        """Return the loss of some rows of X alone; those of all blocks of rows add up to E."""
        if not self.by_row:
            raise TypeError(f"loss must be a sum over the rows of X, got {type(self).__name__}")
        alone, count = copy.copy(self), last - first
        alone.shape = count, self.shape[1]
        for name, axis in self.by_row.items():
            setattr(alone, name, getattr(self, name).narrow(axis, first, count).clone())
        return alone

    @abstractmethod
    def _to(self, dtype: torch.dtype, device: torch.device) -> Self: ...

    @abstractmethod
    def _residual(self, x: Tensor | Thin) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, residual: Tensor) -> Tensor:
        """Return the dense gradient of a residual."""

    def _measured(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy of a residual, and its derivative in the shape of the residual."""
        return self._reduced(half_square(residual, self.residual_dimensions), residual)

    def _gradient(self, x: Tensor | Thin) -> Tensor:
        return self._adjoint(self._measured(self._residual(x))[1])

    def _enter(self, x: Any) -> tuple[Self, Tensor | Thin]:
        """Return the loss converted to the point's dtype and device, and the checked point."""
        if isinstance(x, Collapsed):
            point, like, shape = Thin(x.L @ x.M, x.R), x.L, x.shape
        elif isinstance(x, EndToEnd):
            point, like, shape = Thin(x.u * x.s.unsqueeze(-2), x.vh.mH), x.u, x.shape
        else:
            # Nested sequences have no dtype of their own.
            own = hasattr(x, "dtype")
            wide = isinstance(x, Tensor) and x.dtype in _WIDE
            if not (wide and _is_plain(x)):
                x = as_matrix(x, "x", dtype=None if own else self.dtype, complex=True)
            point, like, shape = x, x, tuple(x.shape[-2:])
        if shape != self.shape:
            raise ValueError(
                f"x must have shape (..., {self.shape[0]}, {self.shape[1]}), got "
                f"{tuple(like.shape) if isinstance(point, Tensor) else shape}"
            )
        return self.to(dtype=like.dtype, device=like.device), point


def as_text(loss: Any, *facts: str, batch: Sequence[int] = ()) -> str:
    """Return a short repr: shape of the matrices, some facts, leading dimensions of the data.

    Examples
    --------
    >>> dln.losses.as_text(dln.losses.Quadratic(torch.zeros(2, 3)), "in the documentation")
    'Quadratic(2 x 3, in the documentation)'
    """
    held = (f"batch {tuple(batch)}",) if batch else ()
    mean = ("mean",) if getattr(loss, "reduction", "sum") == "mean" else ()
    parts = ", ".join((f"{loss.shape[0]} x {loss.shape[1]}", *facts, *mean, *held))
    return f"{type(loss).__name__}({parts})"
