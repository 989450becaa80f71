"""Quadratic losses in whitened form, and their second derivative in all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Quadratic, Regression
from dln_geometry.geometry.points import Network
from dln_geometry.support import refuse_complex, shown


class Whitened(NamedTuple):
    """A loss ``share/2 |X P^T - Y|^2 + rest`` of end-to-end matrices X, P square and invertible."""

    target: Tensor  # Y, (m, n)
    inputs: Tensor  # P, (n, n)
    share: float
    rest: float

    def gradient(self, x: Tensor) -> Tensor:
        """Return the Euclidean gradient in X."""
        return self.share * (x @ self.inputs.mT - self.target) @ self.inputs

    def value(self, x: Tensor) -> float:
        """Return the loss."""
        return float(0.5 * self.share * (x @ self.inputs.mT - self.target).square().sum()) + (
            self.rest
        )


def as_quadratic(loss: Any) -> Quadratic | Regression:
    """Return a quadratic loss; its subclasses measure residuals otherwise."""
    if type(loss) not in (Quadratic, Regression):
        raise TypeError(f"loss must be losses.Quadratic or losses.Regression, got {shown(loss)}")
    return loss


def whitened(loss: Any, like: Tensor | None = None) -> Whitened:
    """Return a `Quadratic` or `Regression` in whitened form, in double precision.

    The inputs of a regression must span their space, so that one X is best.
    """
    loss = as_quadratic(loss)
    refuse_complex("the data of the loss", loss.dtype)
    data = loss.target if isinstance(loss, Quadratic) else loss.outputs
    if data.ndim != 2 or (isinstance(loss, Regression) and loss.inputs.ndim != 2):
        raise ValueError(f"loss must have data of one network, got a batch {tuple(data.shape)}")
    m, n = loss.shape
    if isinstance(loss, Quadratic):
        target, rest = data.detach().double(), 0.0
        inputs = torch.eye(n, dtype=torch.float64, device=data.device)
        share = 1.0 if loss.reduction == "sum" else 1.0 / (m * n)
    else:
        q, inputs = torch.linalg.qr(loss.inputs.double())
        s = torch.linalg.svdvals(inputs)
        if len(inputs) < n or float(s[-1]) <= 1e-12 * float(s[0]):
            raise ValueError(f"inputs must span the {n} dimensions of X, got {loss!r}")
        outputs = data.double()
        target = (q.mT @ outputs).mT
        share = 1.0 if loss.reduction == "sum" else 1.0 / outputs.numel()
        rest = 0.5 * share * float((outputs - q @ target.mT).square().sum())
    if like is not None and target.device != like.device:
        target, inputs = target.to(like.device), inputs.to(like.device)
    return Whitened(target, inputs, share, rest)


def single_network(factors: Sequence[Any], loss: Any) -> Network:
    """Return real layers of one network, whose matrices fit the loss."""
    shape, network = as_quadratic(loss).shape, Network(factors)
    refuse_complex("factors", network.dtype)
    if network.batch_shape:
        raise ValueError(
            f"factors must be of one network, got leading dimensions {tuple(network.batch_shape)}"
        )
    if shape != network.shape:
        raise ValueError(
            f"loss must be one of {network.shape} matrices, those of the factors, got {shape}"
        )
    return network


def partial_products(layers: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return ``W_N..W_{p+1}`` and ``W_{p-1}..W_1`` for every layer, identities at the ends."""
    first, last = layers[0], layers[-1]
    kind: Any = {"dtype": first.dtype, "device": first.device}
    below = [torch.eye(first.shape[-1], **kind)]
    for w in layers[:-1]:
        below.append(w @ below[-1])
    above = [torch.eye(last.shape[-2], **kind)]
    for w in reversed(layers[1:]):
        above.append(above[-1] @ w)
    return above[::-1], below


def layer_hessian(loss: Any, factors: Sequence[Any]) -> Tensor:
    r"""Return the Hessian of a quadratic loss in all layers, shape (P, P), P numbers of layers.

    The numbers are those of W_1, row by row, then W_2 and so on. With ``A_p = W_N..W_{p+1}``,
    ``B_p = W_{p-1}..W_1`` and the Euclidean gradient G it is
    ``<A_p v_p B_p, (A_q w_q B_q) P^T P>`` and, between layers p > q,
    ``<G, A_p v_p W_{p-1}..W_{q+1} w_q B_q>``. Computed in double precision.

    Parameters
    ----------
    loss : losses.Quadratic or losses.Regression
        With data of one network.
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``, critical or not.

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[1.0]])
    >>> dln.landscape.layer_hessian(loss, ([[0.0]], [[0.0]])).tolist()  # of (w_2 w_1 - 1)^2 / 2
    [[0.0, -1.0], [-1.0, 0.0]]
    """
    network = single_network(factors, loss)
    layers = [w.detach().double() for w in network]
    plain = whitened(loss, layers[0])
    above, below = partial_products(layers)
    g = plain.gradient(above[0] @ layers[0])
    moved = [
        torch.einsum("ma,bn->abmn", a, b @ plain.inputs.mT).flatten(0, 1).flatten(1)
        for a, b in zip(above, below, strict=True)
    ]
    jacobian = torch.cat(moved)
    hessian = plain.share * jacobian @ jacobian.mT
    starts = [0]
    for w in layers:
        starts.append(starts[-1] + w.numel())
    for q in range(len(layers)):
        between = torch.eye(len(layers[q]), dtype=g.dtype, device=g.device)
        for p in range(q + 1, len(layers)):
            outer = above[p].mT @ g @ below[q].mT
            block = torch.einsum("ad,bc->abcd", outer, between).flatten(2).flatten(0, 1)
            rows, columns = slice(starts[p], starts[p + 1]), slice(starts[q], starts[q + 1])
            hessian[rows, columns] += block
            hessian[columns, rows] += block.mT
            between = layers[p] @ between
    return hessian
