"""What a loss is, and what the flows ask of it."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_matrix

__all__ = ["Loss", "as_dense", "contract", "evaluate", "prepared"]


@runtime_checkable
class Loss(Protocol):
    """A loss ``E(X)`` of the end-to-end matrix.

    Two methods make a loss. Flows call them with matrices of shape (..., m, n), entropies and
    users also with points; `as_dense` makes a matrix of either. A loss may have more, where
    less needs to be formed than the matrix:

    - ``contract(left, right)`` returns ``(E, G R, G^T L)`` at ``X = L R^T``;
    - ``evaluate(x)`` returns ``(E, G)`` at a matrix;
    - ``to(dtype=None, device=None)`` returns the loss on data of that dtype and device;
    - ``shape`` is ``(m, n)``, and lets a flow refuse a start that does not fit.

    Examples
    --------
    >>> import torch
    >>> from dln_geometry.dynamics import losses
    >>> class Quartic:
    ...     def __init__(self, target):
    ...         self.target = torch.as_tensor(target)
    ...     def value(self, x):
    ...         return (losses.as_dense(x) - self.target).pow(4).sum((-2, -1)) / 4
    ...     def gradient(self, x):
    ...         return (losses.as_dense(x) - self.target).pow(3)
    >>> loss = Quartic([[1.0, 0.0], [0.0, 1.0]])
    >>> isinstance(loss, losses.Loss), loss.value(torch.zeros(2, 2))
    (True, tensor(0.5000))
    """

    def value(self, x: Any) -> Tensor:
        """Return ``E(X)``, shape (...)."""
        ...

    def gradient(self, x: Any) -> Tensor:
        """Return the Euclidean gradient ``G = E'(X)``, shape (..., m, n), dense or sparse."""
        ...


def as_dense(x: Any) -> Tensor:
    """Return the end-to-end matrix of a point in any view, or of a matrix itself.

    Parameters
    ----------
    x : Collapsed, EndToEnd or array_like, shape (..., m, n)

    Raises
    ------
    TypeError
        If `x` is not a real array.
    ValueError
        If `x` is a vector or empty.

    Examples
    --------
    >>> as_dense([[1.0, 2.0]])
    tensor([[1., 2.]])
    """
    if isinstance(x, Collapsed | EndToEnd):
        return x.matrix
    if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and x.numel() > 0:
        # Finiteness would cost a pass over the matrix; a NaN shows in the value.
        return x
    return as_matrix(x, "x")


def contract(loss: Loss, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value of a loss and its gradient contracted with two thin matrices.

    ``(E(X), G R, G^T L)`` at ``X = L R^T`` with ``G = E'(X)``: all that a flow of layers needs
    of a loss. Nothing is checked.

    Parameters
    ----------
    loss : Loss
        Its own ``contract`` is used where it has one.
    left : Tensor, shape (..., m, r)
    right : Tensor, shape (..., n, r)

    Returns
    -------
    value : Tensor, shape (...)
    gr : Tensor, shape (..., m, r)
    gl : Tensor, shape (..., n, r)
    """
    own = getattr(loss, "contract", None)
    if own is not None:
        return own(left, right)
    dense = left @ right.mT
    gradient = loss.gradient(dense)
    return loss.value(dense), *products(gradient, left, right)


def evaluate(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(E(X), G)`` at a matrix, the gradient dense. Nothing is checked.

    Parameters
    ----------
    loss : Loss
        Its own ``evaluate`` is used where it has one.
    x : Tensor, shape (..., m, n)

    Returns
    -------
    value : Tensor, shape (...)
    gradient : Tensor, shape (..., m, n)
    """
    own = getattr(loss, "evaluate", None)
    if own is not None:
        return own(x)
    gradient = loss.gradient(x)
    return loss.value(x), gradient if gradient.layout == torch.strided else gradient.to_dense()


def prepared(
    loss: Any,
    shape: tuple[int, int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Return a loss that is ready for points of this shape, dtype and device.

    Data are converted once, here, where the loss knows how (``to``); the door of every flow.

    Raises
    ------
    TypeError
        If `loss` has no methods ``value`` and ``gradient``.
    ValueError
        If the loss is one of matrices of another shape.
    """
    if isinstance(loss, type) or not isinstance(loss, Loss):
        raise TypeError(
            "loss must have the methods value(x) and gradient(x), got "
            f"{loss.__name__ if isinstance(loss, type) else type(loss).__name__}; "
            "a function of the matrix becomes a loss by losses.from_callable"
        )
    own = getattr(loss, "shape", None)
    if own is not None and tuple(own) != tuple(shape):
        raise ValueError(
            f"loss must be one of {shape[0]} x {shape[1]} matrices like the point, got one of "
            f"{' x '.join(str(d) for d in own)}"
        )
    move = getattr(loss, "to", None)
    return loss if move is None else move(dtype=dtype, device=device)


def products(gradient: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(G R, G^T L)`` for a dense or sparse gradient."""
    if gradient.layout == torch.strided:
        # (L^T G)^T: a product whose large factor is not transposed is the faster one.
        return gradient @ right, (left.mT @ gradient).mT
    batch = gradient.shape[:-2]
    m, n = gradient.shape[-2:]
    if batch:
        gradient = _block_diagonal(gradient)
        left, right = (t.expand(*batch, -1, -1) for t in (left, right))
    elif gradient.layout != torch.sparse_coo:
        gradient = gradient.to_sparse_coo()
    r = left.shape[-1]
    gr = gradient @ right.reshape(-1, r)
    gl = gradient.mT @ left.reshape(-1, r)
    return gr.reshape(*batch, m, r), gl.reshape(*batch, n, r)


def _block_diagonal(g: Tensor) -> Tensor:
    """Return the matrices of a sparse batch (..., m, n) as the blocks of one sparse matrix."""
    g = (g if g.layout == torch.sparse_coo else g.to_sparse_coo()).coalesce()
    batch, (m, n) = g.shape[:-2], g.shape[-2:]
    index = g.indices()
    block = torch.zeros_like(index[0])
    for size, i in zip(batch, index[:-2], strict=True):
        block = block * size + i
    count = math.prod(batch)
    places = torch.stack((block * m + index[-2], block * n + index[-1]))
    return torch.sparse_coo_tensor(
        places, g.values(), (count * m, count * n), is_coalesced=True, check_invariants=False
    )
