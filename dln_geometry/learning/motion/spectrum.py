"""Products with the Hessian of a loss, and its largest eigenvalue by the Lanczos method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dln_geometry.geometry.doors import as_generator
from dln_geometry.learning.algebra import as_like, as_order, as_parameters, as_positive
from dln_geometry.learning.exactness import with_exact_derivatives
from dln_geometry.learning.parameters import Parameters, flatten, unflatten

__all__ = ["hessian_product", "largest_eigenvalue", "sharpness"]

Loss = Callable[[Parameters], Tensor]


def hessian_product(
    loss: Loss, params: Mapping[str, Tensor]
) -> Callable[[Mapping[str, Tensor]], Parameters]:
    """Return the map ``v -> H v`` with the Hessian of the loss at `params`.

    The gradient is evaluated once and its graph kept: a product costs about two gradients.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor, twice differentiable.
    params : dict of str to Tensor
        Where the Hessian is taken.

    Raises
    ------
    TypeError
        If `params` (or later v) is no dict of real tensors.
    ValueError
        If v does not have the names and shapes of `params`.

    Examples
    --------
    >>> product = hessian_product(lambda p: p["q"].prod(), {"q": torch.tensor([2.0, 3.0])})
    >>> product({"q": torch.tensor([1.0, 0.0])})
    {'q': tensor([0., 1.])}
    """
    params = as_parameters(params)
    _, pull = torch.func.vjp(torch.func.grad(with_exact_derivatives(loss)), params)[:2]
    # The Hessian is symmetric: the adjoint that reverse mode gives is the product itself.
    return lambda v: pull(as_like(v, params, "v"))[0]


def sharpness(
    loss: Loss,
    params: Mapping[str, Tensor],
    *,
    rtol: float | None = None,
    max_products: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the largest eigenvalue ``lambda_max`` of the Hessian, a scalar tensor.

    Gradient descent has an equation of motion where ``lr * lambda_max < 1``, and is stable at a
    minimum where ``lr * lambda_max < 2``.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor.
    params : dict of str to Tensor
        Where the Hessian is taken.
    rtol : float, optional
        Bound on the residual ``|H x - lambda x|`` relative to the size of the spectrum; the
        default is the cube root of the machine epsilon. The eigenvalue is far closer, by the
        square of it over the gap.
    max_products : int
        Most products with the Hessian, of the cost of two gradients each.
    generator : torch.Generator, optional
        Source of the random start; a fresh one if not given.

    Raises
    ------
    RuntimeError
        If the bound is not reached in `max_products` products.
    ValueError
        If the Hessian is not finite.

    References
    ----------
    Parlett, The Symmetric Eigenvalue Problem, chapters 12-13 (Lanczos).

    Examples
    --------
    >>> loss = lambda p: (p["q"] ** 2 * torch.tensor([0.5, 4.0])).sum()
    >>> sharpness(loss, {"q": torch.ones(2)}).round(decimals=4)
    tensor(8.)
    """
    params = as_parameters(params)
    product = hessian_product(loss, params)

    def matvec(vector: Tensor) -> Tensor:
        return flatten(product(unflatten(vector, params))).to(vector.dtype)

    flat = flatten(params)
    options = {"rtol": rtol, "max_products": max_products, "generator": generator}
    return largest_eigenvalue(matvec, flat, **options)[0]


def largest_eigenvalue(
    matvec: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    rtol: float | None = None,
    max_products: int = 1000,
    subspace: int = 64,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalue of a symmetric operator and a unit eigenvector.

    Lanczos with full reorthogonalisation, begun anew from the best vector when `subspace` vectors
    are stored.

    Parameters
    ----------
    matvec : callable
        ``matvec(x)``, both of shape (n,).
    like : Tensor, shape (n,)
        Size, dtype and device of the vectors.
    rtol, max_products, generator : optional
        As in `sharpness`.
    subspace : int
        Most vectors that are stored, at least 2.

    Returns
    -------
    value : Tensor, shape ()
    vector : Tensor, shape (n,)

    Raises
    ------
    RuntimeError
        If the bound is not reached in `max_products` products.
    ValueError
        If a product is not finite.
    """
    dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
    eps = torch.finfo(dtype).eps
    bound = max(eps ** (1 / 3) if rtol is None else as_positive(rtol, "rtol"), 100 * eps)
    left, n = as_order(max_products, "max_products", 1), like.numel()
    generator = as_generator(generator, like.device)
    x = torch.randn(n, generator=generator, dtype=dtype, device=generator.device).to(like.device)
    residual = math.inf
    while left > 0:
        value, x, residual, spent = _krylov(
            matvec, x, bound, min(left, as_order(subspace, "subspace", 2), n)
        )
        if residual <= bound:
            return value, x
        left -= spent
    raise RuntimeError(
        f"the largest eigenvalue must be found to the relative residual {bound:.1e} in "
        f"{max_products} products, got {residual:.1e}: allow more, or a larger rtol"
    )


def _krylov(
    matvec: Callable[[Tensor], Tensor], start: Tensor, rtol: float, most: int
) -> tuple[Tensor, Tensor, float, int]:
    """Return value, vector and relative residual of one Krylov space, and the products spent."""
    basis = start.new_empty(most, len(start))
    basis[0] = start / torch.linalg.vector_norm(start)
    image = start.new_zeros(most, most)
    for k in range(most):
        w = matvec(basis[k]).detach()
        spanned = basis[: k + 1]
        # Twice is enough (Kahan, Parlett): once leaves the rounding errors of what cancels.
        coefficients = spanned @ w
        w = w - coefficients @ spanned
        again = spanned @ w
        w, beta = (rest := w - again @ spanned), torch.linalg.vector_norm(rest)
        image[k, : k + 1] = image[: k + 1, k] = coefficients + again
        # On the host, in double precision: the small matrix costs nothing, a decomposition of
        # it on a GPU does.
        small = image[: k + 1, : k + 1].double().cpu()
        if not bool(torch.isfinite(small).all()):
            raise ValueError("the operator must be finite, got a product with NaN or infinity")
        values, vectors = torch.linalg.eigh(small)
        size = float(values.abs().max())
        error = float(beta) * abs(float(vectors[-1, -1]))
        relative = error / size if size > 0 else 0.0
        if relative <= rtol or k + 1 == most:
            x = vectors[:, -1].to(start) @ spanned
            if k + 1 == len(start):
                relative = 0.0
            return values[-1].to(start), x / torch.linalg.vector_norm(x), relative, k + 1
        # A space that is invariant ends above, with the residual zero.
        basis[k + 1] = w / beta
    raise AssertionError("unreachable: the last vector returns")
