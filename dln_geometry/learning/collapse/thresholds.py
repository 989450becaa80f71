"""The curvature of a loss along a mirror, and the weight decay above which the mirror collapses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import as_loss, largest_eigenvalue
from dln_geometry.learning.mirror import Mirror, NotFiniteError, as_mirror, as_scalar
from dln_geometry.support import as_generator, as_positive

# Up to this many coordinates the Hessian is made as a matrix.
_DENSE = 32


@dataclass(frozen=True, eq=False)
class Stability:
    """How stable the symmetric set of a mirror is; made by `stability`.

    Attributes
    ----------
    threshold : float
        ``-lambda_min(O^T H O)`` at the symmetric point: the weight decay above which the symmetric
        set attracts.
    pointwise : float or None
        ``2 (f((I-P) q) - f(q)) / |P q|^2``: the weight decay above which the penalised loss is
        lower at the symmetric point than at q. `None` if q is symmetric to half of the digits.
    direction : Tensor, shape (k,)
        Unit coordinates of the direction that leaves the symmetric set first.
    defect, residual : float
        `Mirror.defect` of q; ``|O^T H O v - lambda v|`` of the eigenvector found.

    Examples
    --------
    >>> mirror, q = dln.learning.Mirror([[1.0]]), torch.tensor([0.5])
    >>> found = dln.learning.stability(lambda q: (q.square().sum() - 1).square(), mirror, q)
    >>> found.threshold, found.direction.abs(), found.defect
    (4.0, tensor([1.]), 1.0)
    """

    threshold: float
    pointwise: float | None
    direction: Tensor
    defect: float
    residual: float

    def is_stable(self, weight_decay: float = 0.0) -> bool:
        """Tell whether the symmetric set attracts gradient descent with this weight decay."""
        return weight_decay > self.threshold


def stability(
    loss: Callable[[Any], Tensor],
    mirror: Mirror,
    params: Any,
    *,
    tol: float | None = None,
    generator: torch.Generator | int | None = None,
) -> Stability:
    """Return the weight decay at which a mirror symmetry collapses.

    With the penalty ``gamma/2 |q|^2`` (``weight_decay=gamma`` of torch's SGD) gradient descent
    near the symmetric set ``O^T q = 0`` follows ``(O^T q)' = -(O^T H O + gamma) O^T q``, since the
    Hessian H has no block between O and the set. The set attracts if gamma is above
    ``gamma_0 = -lambda_min(O^T H O)``, H at ``(I - O O^T) q``. If parameters have different decays,
    add the penalty to the loss: the set attracts if the threshold is below 0.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor, twice differentiable, without the penalty.
    mirror : Mirror
        A symmetry of the loss: others raise a `SymmetryError`, with the residual.
    params : Tensor or mapping of str to Tensor
        All parameters q.
    tol : float, optional
        Residual allowed, relative to the largest curvature met; 1e-8 in double precision, 1e-4
        in single precision if not given. The error of the eigenvalue is about its square.
    generator : torch.Generator, optional
        Of the first vector of the iteration; a fresh one if not given.

    Notes
    -----
    Up to 32 coordinates take a dense Hessian; more a restarted Lanczos iteration on Hessian-vector
    products, in the memory of a few dozen vectors: RuntimeError if 2000 products are too few.

    Examples
    --------
    A double well, whose second derivative at 0 is -4:

    >>> mirror, q = dln.learning.Mirror([[1.0]]), torch.tensor([0.5])
    >>> found = dln.learning.stability(lambda q: (q.square().sum() - 1).square(), mirror, q)
    >>> found.threshold, found.is_stable(4.1), found.is_stable(3.9)
    (4.0, True, False)
    """
    as_mirror(mirror)
    tol = None if tol is None else as_positive(tol, "tol")
    if generator is not None:
        as_generator(generator, torch.device("cpu"))
    mirror.require(loss, params)
    symmetric = mirror.project(params)
    product = _Curvature(loss, mirror, symmetric)
    like = product.origin
    if mirror.dimension <= _DENSE:
        dense = _dense(product)
        # eigh does not exist in half precision.
        values, vectors = torch.linalg.eigh(dense if dense.itemsize >= 4 else dense.float())
        value, direction = float(values[0]), vectors[:, 0].to(like)
    else:
        if tol is None:
            tol = 1e-8 if like.dtype == torch.float64 else 1e-4
        top, direction = largest_eigenvalue(
            lambda v: -product(v.to(like)).to(v),
            like,
            rtol=tol,
            max_products=2000,
            generator=generator,
        )
        value, direction = -float(top), direction.to(like)
    residual = float((product(direction) - value * direction).norm())
    defect, pointwise = float(mirror.defect(params).detach()), None
    if defect > math.sqrt(torch.finfo(like.dtype).eps):
        # Any nearer, both differences are rounding errors.
        with torch.no_grad():
            gain = float(loss(symmetric)) - float(loss(params))
            pointwise = 2.0 * gain / float(mirror.coordinates(params).square().sum())
    return Stability(-value, pointwise, direction, defect, residual)


def curvature(loss: Callable[[Any], Tensor], mirror: Mirror, params: Any) -> Tensor:
    """Return the Hessian along a mirror, ``O^T H O``, shape (k, k), at any point `params`.

    Examples
    --------
    >>> mirror = dln.learning.Mirror([[1.0]])
    >>> dln.learning.curvature(lambda q: 1.5 * q.square().sum(), mirror, torch.tensor([0.5]))
    tensor([[3.]])
    """
    as_mirror(mirror).coordinates(params)
    return _dense(_Curvature(loss, mirror, params))


class _Curvature:
    """The map ``v -> O^T H O v``, by a second backward pass through one gradient."""

    def __init__(self, loss: Callable[[Any], Tensor], mirror: Mirror, params: Any) -> None:
        named = isinstance(params, Mapping)
        detached = {k: x.detach() for k, x in params.items()} if named else params.detach()
        self.origin = torch.zeros_like(mirror.coordinates(detached)).requires_grad_()
        with torch.enable_grad():
            value = as_scalar(as_loss(loss)(mirror.shift(detached, self.origin)))
            (self.gradient,) = torch.autograd.grad(value, self.origin, create_graph=True)

    def __call__(self, v: Tensor) -> Tensor:
        if not self.gradient.requires_grad:  # the loss is linear along the mirror
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(
            self.gradient, self.origin, v, retain_graph=True, materialize_grads=True
        )
        if not bool(torch.isfinite(product).all()):
            message = "loss must have finite second derivatives, got NaN or infinite ones"
            raise NotFiniteError(message)
        return product


def _dense(product: _Curvature) -> Tensor:
    like = product.origin
    eye = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    h = torch.stack([product(e) for e in eye])
    return (h + h.mT) / 2
