"""Test whether a loss has a symmetry, and measure by how much it lacks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dln_geometry.learning.functional import Parameters, as_parameters, gradient_and_value_of
from dln_geometry.learning.symmetry.symmetries import Symmetry, SymmetryError, as_symmetry

# How far along the orbit the loss is compared: far enough to see more than the slope.
_STRETCH = 0.3


def symmetry_residual(
    loss: Callable[[Parameters], Tensor], symmetry: Symmetry, params: Mapping[str, Tensor]
) -> float:
    r"""Return by how much a loss lacks a symmetry, relative to what a general loss does.

    ``max( |<grad f, dQ>|, |f(Q(q, s)) - f(q)|, |f(Q(q, -s)) - f(q)| ) / (|f| + |grad f| |dQ|)``

    for a finite s; a family is tested in one generic direction. Rounding gives a few hundred eps,
    a broken symmetry up to order one. A normalisation layer gives about its own `eps` over the
    variance, since that breaks the scale of the weights before it.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor.
    symmetry : Symmetry
        The claim; its action must be the identity at ``s = 0``.
    params : dict of str to Tensor
        A generic point. At a special one, such as zero, every symmetry may seem to hold.

    Returns
    -------
    float
        The residual, infinite if the loss is not finite along the orbit.
    """
    params = {name: q.detach() for name, q in as_parameters(params).items()}
    zero = as_symmetry(symmetry).zero(params)
    _check_identity(symmetry, params, zero)
    # A generic direction without random numbers, not antisymmetric where s is a matrix.
    count = torch.arange(zero.numel(), dtype=zero.dtype, device=zero.device)
    s = _STRETCH * (1 + 2.4 * count).cos().reshape(zero.shape)
    if not zero.ndim:
        s = torch.full_like(zero, _STRETCH)
    gradient, value = gradient_and_value_of(loss)(params)
    field = symmetry.generated(params, s)
    slope = sum(float((gradient[name] * d).sum()) for name, d in field.items())
    size = _length({name: gradient[name] for name in field}) * _length(field)
    changes = [float(loss(symmetry.action(params, sign * s)) - value) for sign in (1, -1)]
    worst = max(abs(slope), *(abs(change) for change in changes))
    if not all(math.isfinite(x) for x in (slope, *changes)):
        return math.inf
    scale = abs(float(value)) + size
    return worst / scale if scale else (0.0 if worst == 0 else math.inf)


def is_symmetric(
    loss: Callable[[Parameters], Tensor],
    symmetry: Symmetry,
    params: Mapping[str, Tensor],
    *,
    rtol: float | None = None,
) -> bool:
    """Whether a loss has a symmetry, at a generic point.

    Other parameters and errors as in `symmetry_residual`.

    Parameters
    ----------
    rtol : float, optional
        Largest `symmetry_residual` allowed. The default is the square root of the eps of the
        parameters' dtype.

    Examples
    --------
    >>> symmetry = Symmetry(lambda params, s: {"q": params["q"] * torch.exp(s)})
    >>> point = {"q": torch.tensor([1.0, 2.0])}
    >>> is_symmetric(lambda p: p["q"][0] / p["q"].norm(), symmetry, point)
    True
    >>> is_symmetric(lambda p: p["q"].norm(), symmetry, point)
    False
    """
    return symmetry_residual(loss, symmetry, params) <= _tolerance(params, rtol)


def check_symmetric(
    loss: Callable[[Parameters], Tensor],
    symmetry: Symmetry,
    params: Mapping[str, Tensor],
    *,
    rtol: float | None = None,
) -> None:
    """Raise a `SymmetryError`, whose `residual` says by how much, unless `is_symmetric`."""
    residual = symmetry_residual(loss, symmetry, params)
    if not residual <= _tolerance(params, rtol):
        raise SymmetryError(
            f"loss must have the symmetry {symmetry!r} within {_tolerance(params, rtol):.1e}, got "
            f"a residual of {residual:.3e}",
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
        change = float((q - params[name]).abs().max())
        bound = math.sqrt(torch.finfo(q.dtype).eps) * (1 + float(params[name].abs().max()))
        if change > bound:
            raise ValueError(
                f"action must be the identity at s = 0, got a change of {name!r} by {change:.3e}"
            )


def _tolerance(params: Mapping[str, Tensor], rtol: float | None) -> float:
    if rtol is None:
        return math.sqrt(max(torch.finfo(q.dtype).eps for q in params.values()))
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, got {rtol}")
    return rtol


def _length(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in tensors.values()))
