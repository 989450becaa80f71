"""Test whether a loss has a symmetry, and measure by how much it lacks it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_finite,
    gradient_and_value_of,
)
from dln_geometry.learning.symmetry.symmetries import Symmetry, SymmetryError, as_symmetry
from dln_geometry.support import as_positive

# Compare the loss so far along the orbit: far enough to see more than the slope.
_STRETCH = 0.3


def symmetry_residual(loss: Loss, symmetry: Symmetry, params: Tensors) -> float:
    r"""Return by how much a loss lacks a symmetry; infinite if it is not finite along the orbit.

    ``max( |<grad f, dQ>|, |f(Q(q, s)) - f(q)|, |f(Q(q, -s)) - f(q)| ) / (|f| + |grad f| |dQ|)``

    for a finite s; a family is tested in one generic direction. Rounding gives a few hundred eps,
    a broken symmetry up to order one. A normalisation layer gives about its `eps` over the
    variance, because the eps breaks the scale of the weights before it.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor.
    symmetry : Symmetry
        Its action must be the identity at ``s = 0``.
    params : dict of str to Tensor
        A generic point. At a special one, such as zero, every symmetry may seem to hold.

    Examples
    --------
    >>> loss = lambda p: (p["w"] / p["w"].norm()).sum()
    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> dln.learning.symmetry_residual(loss, dln.learning.Scale("w"), params) < 1e-5
    True
    >>> shift = dln.learning.Translation("w", torch.ones(2))
    >>> dln.learning.symmetry_residual(loss, shift, params) > 0.01
    True
    """
    params = {name: q.detach() for name, q in as_finite(params).items()}
    zero = as_symmetry(symmetry).zero(params)
    _check_identity(symmetry, params, zero)
    s = torch.full_like(zero, _STRETCH)
    if zero.ndim:
        # A generic direction without random numbers, not antisymmetric where s is a matrix.
        s *= (
            (1 + 2.4 * torch.arange(zero.numel(), dtype=zero.dtype, device=zero.device))
            .cos()
            .reshape(zero.shape)
        )
    gradient, value = gradient_and_value_of(loss)(params)
    field = symmetry.generated(params, s)
    slope = sum(float((gradient[name] * d).sum()) for name, d in field.items())
    size = _length({name: gradient[name] for name in field}) * _length(field)
    changes = [float(loss(symmetry.action(params, sign * s)) - value) for sign in (1, -1)]
    if not all(math.isfinite(x) for x in (slope, *changes)):
        return math.inf
    worst, scale = max(map(abs, (slope, *changes))), abs(float(value)) + size
    return worst / scale if scale else (0.0 if worst == 0 else math.inf)


def is_symmetric(
    loss: Loss, symmetry: Symmetry, params: Tensors, *, rtol: float | None = None
) -> bool:
    """Tell whether a loss has a symmetry, at a generic point.

    Other parameters and errors as in `symmetry_residual`.

    Parameters
    ----------
    rtol : float, optional
        Largest `symmetry_residual` allowed. The default is the square root of the eps of the
        parameters' dtype.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> symmetry = learning.Symmetry(lambda params, s: {"q": params["q"] * torch.exp(s)})
    >>> point = {"q": torch.tensor([1.0, 2.0])}
    >>> learning.is_symmetric(lambda p: p["q"][0] / p["q"].norm(), symmetry, point)
    True
    >>> learning.is_symmetric(lambda p: p["q"].norm(), symmetry, point)
    False
    """
    return symmetry_residual(loss, symmetry, params) <= _tolerance(params, rtol)


def check_symmetric(
    loss: Loss, symmetry: Symmetry, params: Tensors, *, rtol: float | None = None
) -> None:
    """Raise a `SymmetryError`, whose `residual` says by how much, unless `is_symmetric`.

    Examples
    --------
    >>> loss = lambda p: (p["w"] / p["w"].norm()).sum()
    >>> dln.learning.check_symmetric(loss, dln.learning.Scale("w"), {"w": torch.tensor([1.0, 2.0])})
    """
    residual, bound = symmetry_residual(loss, symmetry, params), _tolerance(params, rtol)
    if not residual <= bound:
        raise SymmetryError(
            f"loss must have the symmetry {symmetry!r} within {bound:.1e}, got a residual of "
            f"{residual:.3e}",
            residual,
        )


def _check_identity(symmetry: Symmetry, params: Parameters, zero: Tensor) -> None:
    """Refuse an action that moves parameters at s = 0, or returns other names or shapes."""
    still = symmetry.moved(params, zero)
    if not isinstance(still, Mapping):
        raise TypeError(f"action must return a dict of tensors, got {type(still).__name__}")
    for name, q in still.items():
        if name not in params or q.shape != params[name].shape:
            shapes = {n: tuple(p.shape) for n, p in params.items()}
            raise ValueError(
                f"action must return parameters of {shapes}, got {name!r} of {tuple(q.shape)}"
            )
        if not q.numel():
            continue
        change, size = (float(x.abs().max()) for x in (q - params[name], params[name]))
        if change > math.sqrt(torch.finfo(q.dtype).eps) * (1 + size):
            raise ValueError(
                f"action must be the identity at s = 0, got a change of {name!r} by {change:.3e}"
            )


def _tolerance(params: Tensors, rtol: float | None) -> float:
    if rtol is None:
        return math.sqrt(max(torch.finfo(q.dtype).eps for q in params.values()))
    return as_positive(rtol, "rtol")


def _length(tensors: Tensors) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in tensors.values()))
