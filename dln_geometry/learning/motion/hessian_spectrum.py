"""The spectrum of the Hessian over a data set: its ends, its trace and its density."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_finite,
    as_loss,
    batch_losses,
    flatten,
    unflatten,
)
from dln_geometry.learning.motion.spectrum import (
    DENSE_HESSIAN,
    dense_spectrum,
    flat_product,
    top_eigenpairs,
)
from dln_geometry.support import as_choice, as_count, as_generator, as_positive, shown


@dataclass(frozen=True, eq=False)
class HessianSpectrum:
    """Eigenvalues of a Hessian; made by `hessian_spectrum`.

    Attributes
    ----------
    top, bottom : Tensor, shape (k,)
        The largest eigenvalues, descending, and the smallest, ascending.
    vectors : list of dict
        Unit eigenvectors of `top`, like the parameters.
    trace, trace_error : float
        The trace, and the standard error of its estimate (0 where it is exact).
    nodes, weights : Tensor, shape (n,)
        A quadrature of the density of eigenvalues: the mean of ``f(lambda)`` is about
        ``(weights * f(nodes)).sum()``; up to 256 parameters the eigenvalues themselves.

    Examples
    --------
    >>> loss = lambda p: (p["q"] ** 2 * torch.tensor([0.5, 4.0])).sum()
    >>> found = dln.learning.hessian_spectrum(loss, {"q": torch.ones(2)}, top=1)
    >>> found.top, found.trace, found.nodes
    (tensor([8.]), 9.0, tensor([1., 8.]))
    """

    top: Tensor
    bottom: Tensor
    vectors: list[Parameters]
    trace: float
    trace_error: float
    nodes: Tensor
    weights: Tensor

    def density(self, x: Any, width: float | None = None) -> Tensor:
        """Return the density of eigenvalues at x, each of them a Gaussian of this width.

        The default is a hundredth of the range of the nodes. The integral is 1.
        """
        at = torch.as_tensor(x, dtype=self.nodes.dtype, device=self.nodes.device)
        if width is None:
            reach = float(self.nodes.max() - self.nodes.min())
            size = max(reach, float(self.nodes.abs().max())) or 1.0
            width = size / 100
        width = as_positive(width, "width")
        z = (at.unsqueeze(-1) - self.nodes) / width
        return (self.weights * (-z.square() / 2).exp()).sum(-1) / (width * (2 * torch.pi) ** 0.5)


def hessian_spectrum(
    loss: Any,
    params: Tensors,
    data: Iterable[Any] | None = None,
    *,
    top: int = 1,
    bottom: int = 0,
    probes: int = 8,
    steps: int = 40,
    reduction: str = "mean",
    rtol: float | None = None,
    generator: torch.Generator | int | None = None,
) -> HessianSpectrum:
    """Return the ends, the trace and the density of the spectrum of a Hessian, over a data set.

    Up to 256 parameters the Hessian is made as a matrix and everything is exact. Above, the Lanczos
    method finds the ends, and stochastic Lanczos quadrature trace and density, from random signs.

    Parameters
    ----------
    loss : callable
        ``loss(params)``; with `data` ``loss(params, batch)``, or what `functionalize` returns,
        which is put on each batch.
    params : dict of str to Tensor
    data : iterable, optional
        The batches, such as a DataLoader: each product with the Hessian goes through all of them
        once, so that an iterator that ends is refused.
    top, bottom : int
        Numbers of eigenvalues at the two ends.
    probes, steps : int
        Number of random vectors for trace and density, and products for each; memory for `steps`
        vectors. `probes=0` leaves both out (trace NaN).
    reduction : "mean" or "sum"
        How the loss of a batch is reduced: means are weighted by the numbers of samples, the first
        axis of the batch's first tensor.
    rtol, generator : optional
        As in `sharpness`, but by default the square root of the machine epsilon.

    References
    ----------
    Ghorbani, Krishnan, Xiao, arXiv 1901.10159 (density by stochastic Lanczos quadrature).

    Examples
    --------
    >>> net = torch.nn.Linear(3, 1)
    >>> batches = [(torch.eye(3), torch.ones(3, 1)), (2 * torch.eye(3)[:1], torch.ones(1, 1))]
    >>> loss, params = dln.learning.functionalize(net, torch.nn.functional.mse_loss, batches[0])
    >>> dln.learning.hessian_spectrum(loss, params, batches, top=2).top.round(decimals=3)
    tensor([3.8350, 1.1360])
    """
    q = as_finite(params)
    as_choice(reduction, ("mean", "sum"), "reduction")
    counts = {"top": (top, 0), "bottom": (bottom, 0), "probes": (probes, 0), "steps": (steps, 1)}
    top, bottom, probes, steps = (as_count(n, name, at) for name, (n, at) in counts.items())
    w = flatten(q)
    for name, count in (("top", top), ("bottom", bottom)):
        if count > len(w):
            raise ValueError(f"{name} must be at most the {len(w)} parameters, got {count}")
    rtol = None if rtol is None else as_positive(rtol, "rtol")
    source = as_generator(generator, w.device)
    product = _data_product(loss, q, data, reduction)
    if len(w) <= DENSE_HESSIAN:
        values, vectors = dense_spectrum(product, w)
        high, low = values[len(w) - top :].flip(0), values[:bottom]
        found = vectors[:, len(w) - top :].flip(1)
        nodes, weights = values, torch.full_like(values, 1 / len(w))
        trace, error = float(values.sum()), 0.0
    else:
        high, found = _end(product, w, top, rtol)
        low = -_end(lambda v: -product(v), w, bottom, rtol)[0]
        rules = [_quadrature(product, _random_signs(w, source), steps) for _ in range(probes)]
        nodes = torch.cat([w.new_zeros(0), *(x for x, _ in rules)])
        weights = torch.cat([w.new_zeros(0), *(y / probes for _, y in rules)])
        traces = torch.tensor([len(w) * float((x * y).sum()) for x, y in rules])
        trace = float(traces.mean())
        error = float(traces.std() / probes**0.5) if probes > 1 else float("nan")
    return HessianSpectrum(
        high, low, [unflatten(v, q) for v in found.mT], trace, error, nodes, weights
    )


def _end(
    product: Callable[[Tensor], Tensor], w: Tensor, count: int, rtol: float | None
) -> tuple[Tensor, Tensor]:
    if count == 0:
        return w.new_zeros(0), w.new_zeros(len(w), 0)
    return top_eigenpairs(product, w, count, rtol=rtol)


def _data_product(
    loss: Any, q: Parameters, data: Any, reduction: str
) -> Callable[[Tensor], Tensor]:
    """Return the product with the Hessian of the loss over all batches."""
    if data is None:
        return flat_product(as_loss(loss), q)
    if isinstance(data, Iterator):
        raise TypeError(
            f"data must be batches that can be gone through many times, got {shown(data)}, which "
            "ends: give a list or a DataLoader"
        )
    if isinstance(data, str | bytes | Tensor | Mapping) or not isinstance(data, Iterable):
        raise TypeError(f"data must be an iterable of batches, got {shown(data)}")

    def product(v: Tensor) -> Tensor:
        total, count = torch.zeros_like(v), 0
        for batch in data:
            own: Loss = batch_losses(loss, [batch], "data")[0]
            share = 1 if reduction == "sum" else _samples(batch)
            total += share * flat_product(own, q)(v)
            count += share
        if count == 0:
            raise ValueError("data must hold at least one batch with samples, got none")
        return total if reduction == "sum" else total / count

    return product


def _samples(batch: Any) -> int:
    for x in pytree.tree_leaves(batch):
        if isinstance(x, Tensor) and x.ndim:
            return len(x)
    return 1


def _random_signs(w: Tensor, generator: torch.Generator) -> Tensor:
    """Return a unit vector of random signs."""
    draw = torch.rand(len(w), generator=generator, device=generator.device).to(w.device)
    return torch.where(draw < 0.5, -1.0, 1.0).to(w) / len(w) ** 0.5


def _quadrature(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the spectral measure of a unit vector, by the Lanczos method."""
    basis = [start]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, len(start))):
        v = product(basis[-1]).detach()
        spanned = torch.stack(basis)
        first = spanned @ v
        v = v - first @ spanned
        again = spanned @ v
        v = v - again @ spanned
        diagonal.append(float(first[-1] + again[-1]))
        size = float(v.norm())
        scale = max(abs(x) for x in (*diagonal, *beside))
        if size <= 100 * torch.finfo(v.dtype).eps * scale:
            break
        beside.append(size)
        basis.append(v / size)
    n = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for k, x in enumerate(beside[: n - 1]):
        matrix[k, k + 1] = matrix[k + 1, k] = x
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes.to(start), vectors[0].square().to(start)
