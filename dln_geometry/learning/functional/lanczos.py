"""The largest eigenvalue of a symmetric operator by the Lanczos method, restarted thickly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dln_geometry.support import as_count, as_generator, as_rtol


def largest_eigenvalue(
    matvec: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    rtol: float | None = None,
    max_products: int = 1000,
    subspace: int = 48,
    generator: torch.Generator | int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalue of a symmetric operator and a unit eigenvector.

    Lanczos iteration with full reorthogonalisation. When `subspace` vectors are stored, it restarts
    from the best quarter of the Ritz vectors (thick restart). The vectors have the shape (n,),
    dtype (at least single precision) and device of `like`. `rtol` bounds the residual
    ``|A x - lambda x|`` relative to the largest modulus of an eigenvalue met; the default is the
    cube root of the machine epsilon. The error of the eigenvalue is the square of the residual
    over the gap. More than `max_products` products raise a RuntimeError. See Parlett, The Symmetric
    Eigenvalue Problem, chapters 12-13; Wu & Simon, SIAM J. Matrix Anal. Appl. 22, 2000 (restart).
    """
    dtype = like.dtype if like.dtype.itemsize >= 4 else torch.float32
    eps, n = torch.finfo(dtype).eps, like.numel()
    bound = max(eps ** (1 / 3) if rtol is None else as_rtol(rtol, dtype), 100 * eps)
    left, most = as_count(max_products, "max_products", 1), as_count(subspace, "subspace", 4)
    most, kept = min(most, n), most // 4
    generator = as_generator(generator, like.device)
    x = torch.randn(n, generator=generator, dtype=dtype, device=generator.device).to(like.device)
    basis = x.new_empty(most, n)
    basis[0] = x / torch.linalg.vector_norm(x)
    # On the host, in double precision: decomposing such a small matrix on a GPU is slow.
    image, size, k, relative = torch.zeros(most, most, dtype=torch.float64), 0.0, 0, 0.0
    for _ in range(left):
        w = matvec(basis[k]).detach()
        spanned = basis[: k + 1]
        # Orthogonalise twice (Kahan, Parlett): once leaves the rounding errors of the cancellation.
        coefficients = spanned @ w
        w = w - coefficients @ spanned
        again = spanned @ w
        w, column = w - again @ spanned, (coefficients + again).double().cpu()
        beta = float(torch.linalg.vector_norm(w))
        if not bool(torch.isfinite(column).all()):
            raise ValueError("the operator must be finite, got a product with NaN or infinity")
        image[k, : k + 1] = image[: k + 1, k] = column
        values, vectors = torch.linalg.eigh(image[: k + 1, : k + 1])
        size = max(size, float(values.abs().max()))
        error = 0.0 if k + 1 == n else beta * abs(float(vectors[-1, -1]))
        relative = error / size if size > 0 else 0.0
        if relative <= bound:
            # In an invariant space beta, and so the residual, is zero.
            x = vectors[:, -1].to(basis) @ spanned
            return values[-1].to(basis), x / torch.linalg.vector_norm(x)
        k += 1
        if k == most:
            # The next product fills the row that couples the Ritz vectors with the new vector.
            basis[:kept] = vectors[:, -kept:].mT.to(basis) @ basis
            image.zero_()
            image[:kept, :kept] = values[-kept:].diag()
            k = kept
        basis[k] = w / beta
    raise RuntimeError(
        f"the largest eigenvalue must be found to the relative residual {bound:.1e} in "
        f"{max_products} products, got {relative:.1e}: allow more, or a larger rtol"
    )
