"""Products with the Hessian of a loss, and its largest eigenvalues."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_finite,
    as_like,
    flatten,
    gradient_of,
    largest_eigenvalue,
    unflatten,
    with_exact_derivatives,
)

# Up to this many parameters the Hessian is made as a matrix.
DENSE_HESSIAN = 256
# Products with so many vectors are made at once.
_ROWS = 32


def hessian_product(loss: Loss, params: Tensors) -> Callable[[Tensors], Parameters]:
    """Return the map ``v -> H v`` with the Hessian of the loss at `params`.

    The graph of the gradient is kept: a product costs about two gradients. The loss must be twice
    differentiable.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> product = learning.hessian_product(lambda p: p["q"].prod(), {"q": torch.tensor([2.0, 3.0])})
    >>> product({"q": torch.tensor([1.0, 0.0])})
    {'q': tensor([0., 1.])}
    """
    params = as_finite(params)
    pull = _pullback(loss, params)
    # The Hessian is symmetric: reverse mode gives the product itself.
    return lambda v: pull(as_like(v, params, "v", finite=True))[0]


def sharpness(
    loss: Loss,
    params: Tensors,
    *,
    rtol: float | None = None,
    max_products: int = 1000,
    generator: torch.Generator | int | None = None,
) -> Tensor:
    """Return the largest eigenvalue ``lambda_max`` of the Hessian, a scalar tensor.

    Gradient descent has an equation of motion where ``lr * lambda_max < 1``, and is stable at a
    minimum where ``lr * lambda_max < 2``. The Lanczos method finds it (Parlett, The Symmetric
    Eigenvalue Problem, chapters 12-13).

    Parameters
    ----------
    rtol : float, optional
        Bound on the residual ``|H x - lambda x|`` relative to the size of the spectrum; the
        default is the cube root of the machine epsilon. The error of the eigenvalue is the square
        of the residual over the gap.
    max_products : int
        Most products with the Hessian (about two gradients each); a RuntimeError beyond.
    generator : torch.Generator or int, optional
        Source of the random start, or its seed; a fresh one if not given.

    Examples
    --------
    >>> loss = lambda p: (p["q"] ** 2 * torch.tensor([0.5, 4.0])).sum()
    >>> dln.learning.sharpness(loss, {"q": torch.ones(2)}).round(decimals=4)
    tensor(8.)
    """
    params, options = as_finite(params), {"max_products": max_products, "generator": generator}
    matvec = flat_product(loss, params)
    return largest_eigenvalue(matvec, flatten(params), rtol=rtol, **options)[0]


def _pullback(loss: Loss, params: Parameters) -> Callable[[Parameters], tuple[Parameters]]:
    """Return the map ``v -> (H v,)``; refuse a gradient that is not finite."""
    gradient, pull = torch.func.vjp(gradient_of(with_exact_derivatives(loss)), params)[:2]
    for name, g in gradient.items():
        # Inside transforms of torch.func values cannot be read.
        if not is_functorch_wrapped_tensor(g) and not bool(torch.isfinite(g).all()):
            raise ValueError(
                f"the gradient of loss must be finite, got NaN or infinity in that of {name!r}"
            )
    return pull


class FlatProduct:
    """The product with the Hessian of a loss as a map of flat vectors."""

    def __init__(self, loss: Loss, params: Parameters) -> None:
        self._params = params
        self._pull = _pullback(loss, params)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``H x``."""
        return flatten(self._pull(unflatten(x, self._params))[0]).to(x.dtype)

    def of_rows(self, x: Tensor) -> Tensor:
        """Return the products of all rows of x, shape (n, p), some at once."""
        return torch.func.vmap(self, chunk_size=_ROWS)(x)


def flat_product(loss: Loss, params: Parameters) -> FlatProduct:
    """Return the map ``x -> H x`` of flat vectors."""
    return FlatProduct(loss, as_finite(params))


def dense_hessian(product: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """Return the symmetric matrix of a product with flat vectors like w."""
    eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
    if isinstance(product, FlatProduct):
        dense = product.of_rows(eye)
    else:
        dense = torch.stack([product(row) for row in eye])
    return (dense + dense.mT) / 2


def dense_spectrum(product: Callable[[Tensor], Tensor], w: Tensor) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues of a product with flat vectors like w, ascending, and eigenvectors."""
    dense = dense_hessian(product, w)
    if not bool(torch.isfinite(dense).all()):
        raise ValueError("loss must have finite second derivatives, got NaN or infinity")
    # eigh does not exist in half precision.
    values, vectors = torch.linalg.eigh(dense if dense.itemsize >= 4 else dense.float())
    return values.to(w), vectors.to(w)


def curvature_slopes(loss: Loss, params: Parameters, first: Tensor, second: Tensor) -> Tensor:
    """Return the gradients of ``<a_i, H b_i>`` for constant flat vectors, shapes (n, p).

    `loss` has exact derivatives.
    """
    w = flatten(params)

    def turn(a: Tensor, b: Tensor) -> Tensor:
        def slope(y: Tensor) -> Tensor:
            return torch.func.grad(lambda v: loss(unflatten(v, params)))(y) @ a

        return torch.func.grad(lambda z: torch.func.grad(slope)(z) @ b)(w)

    if len(w) <= DENSE_HESSIAN:
        return torch.func.vmap(turn)(first, second)
    # Together they would take the memory of all at once.
    return torch.stack([turn(*pair) for pair in zip(first, second, strict=True)])


def top_eigenpairs(
    product: Callable[[Tensor], Tensor], w: Tensor, count: int, *, rtol: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of the Hessian, descending, and eigenvectors, shape (p, m).

    `product` is that with flat vectors like w; `rtol` as in `sharpness`, by default the square root
    of the machine epsilon.
    """
    m = min(count, len(w))
    if len(w) <= DENSE_HESSIAN:
        levels, vectors = dense_spectrum(product, w)
        return levels[-m:].flip(0), vectors[:, -m:].flip(1)
    values: list[Tensor] = []
    found = w.new_zeros(len(w), 0)
    rtol = torch.finfo(w.dtype).eps ** 0.5 if rtol is None else rtol
    for _ in range(m):
        shift = torch.stack(values).abs().max() * 2 if values else w.new_zeros(())

        deflated = _deflated(product, found, shift)
        value, vector = largest_eigenvalue(deflated, w, rtol=rtol, generator=0)
        vector = vector - found @ (found.mT @ vector)
        found = torch.cat([found, (vector / vector.norm())[:, None]], 1)
        values.append(value)
    return torch.stack(values), found


def _deflated(
    product: Callable[[Tensor], Tensor], found: Tensor, shift: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the operator with the eigenvectors that are known moved below all others."""

    def deflated(v: Tensor) -> Tensor:
        inside = found @ (found.mT @ v)
        return product(v - inside) - shift * inside

    return deflated
