"""Symmetries of a loss: families of transformations of the parameters, and their generators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.algebra import as_parameters
from dln_geometry.learning.losses import gradient_and_value_of
from dln_geometry.learning.parameters import Parameters

__all__ = [
    "Symmetry",
    "SymmetryError",
    "as_symmetry",
    "check_symmetric",
    "is_symmetric",
    "symmetry_residual",
]

# How far along the orbit the loss is compared: far enough to see more than the slope.
_STRETCH = 0.3


class SymmetryError(ValueError):
    """A loss does not have the symmetry that was claimed; `residual` says by how much."""

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual


class Symmetry:
    r"""A family of transformations ``q -> Q(q, s)`` of the parameters, with ``Q(q, 0) = q``.

    Its generator is the vector field ``dQ(q) = d/ds Q(q, s)`` at ``s = 0``. With a parameter s of
    more than one entry it is a whole family of symmetries, with one charge for each entry of s.

    Parameters
    ----------
    action : callable
        ``action(params, s) -> params``: differentiable, the identity at ``s = 0``. Names that it
        does not return stay as they are.
    shape : tuple of int
        Shape of s; () for one symmetry.
    degree : {0, 1}, optional
        1 if the generators are linear in the parameters, and their transposes generate symmetries
        too; 0 if they are constant. Then the charges have closed laws (see `DiscreteLaw`).

    Raises
    ------
    TypeError
        If `action` cannot be called.
    ValueError
        If `degree` is another number.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716, section 3.

    Examples
    --------
    A symmetry of your own in three lines, of a loss of ``q[0] * exp(q[1])``:

    >>> def action(params, s):
    ...     q = params["q"]
    ...     return {"q": torch.stack([q[0] * torch.exp(-s), q[1] + s])}
    >>> symmetry = Symmetry(action)
    >>> loss = lambda params: (params["q"][0] * params["q"][1].exp() - 2).square()
    >>> point = {"q": torch.tensor([1.5, 0.5])}
    >>> symmetry.field(point)
    {'q': tensor([-1.5000,  1.0000])}
    >>> is_symmetric(loss, symmetry, point)
    True
    """

    degree: int | None

    def __init__(
        self,
        action: Callable[[Parameters, Tensor], Parameters],
        *,
        shape: tuple[int, ...] = (),
        degree: int | None = None,
    ) -> None:
        if not callable(action):
            raise TypeError(f"action must be a function of params and s, got {action!r}")
        if degree not in (None, 0, 1):
            raise ValueError(f"degree must be 0, 1 or None, got {degree!r}")
        self._action = action
        self._shape = tuple(shape)
        self.degree = degree

    def __repr__(self) -> str:
        return f"Symmetry({getattr(self._action, '__name__', self._action)})"

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        """Return those parameters that the action changes, at ``Q(params, s)``."""
        return self._action(params, s)

    def shape(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Return the shape of s, which is that of the charges."""
        return self._shape

    def action(self, params: Mapping[str, Tensor], s: Any) -> Parameters:
        """Return ``Q(params, s)``.

        Parameters
        ----------
        params : dict of str to Tensor
            The parameters q.
        s : Tensor or float
            Of the shape of the family; a number stands for all its entries.
        """
        params = dict(params)
        zero = self.zero(params)
        s = torch.as_tensor(s, dtype=zero.dtype, device=zero.device).expand(zero.shape)
        return {**params, **self.moved(params, s)}

    def field(self, params: Mapping[str, Tensor], s: Any = 1.0) -> Parameters:
        """Return the generator ``dQ(q)``, for a family in the direction s.

        Parameters
        ----------
        params : dict of str to Tensor
            The parameters q.
        s : Tensor or float
            Of the shape of the family; a number stands for all its entries.

        Returns
        -------
        dict of str to Tensor
            Zero for the parameters that the action leaves alone.
        """
        params = dict(params)
        zero = self.zero(params)
        s = torch.as_tensor(s, dtype=zero.dtype, device=zero.device).expand(zero.shape)
        field = self.generated(params, s)
        return {n: field[n] if n in field else torch.zeros_like(q) for n, q in params.items()}

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        """Return the generator in the direction s, of those parameters that it changes."""
        return torch.func.jvp(lambda t: self.moved(params, t), (self.zero(params),), (s,))[1]

    def pair(self, params: Mapping[str, Tensor], covector: Mapping[str, Tensor]) -> Tensor:
        """Return the products ``<covector, dQ(q)>`` of a covector and the generators.

        Parameters
        ----------
        params, covector : dict of str to Tensor
            The point q, and a gradient, a momentum or the like.

        Returns
        -------
        Tensor
            One product for each entry of s.
        """
        params = dict(params)
        outcome = torch.func.vjp(lambda s: self.generated(params, s), self.zero(params))
        return outcome[1]({name: covector[name] for name in outcome[0]})[0]

    def conserved(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return ``<q, dQ(q)>``, which gradient flow conserves if there is a `degree`.

        It is ``<q, n>`` for translations, ``|q|^2`` for scale, ``|q_1|^2 - |q_2|^2`` for rescale,
        ``W_1 W_1^T - W_2^T W_2`` for the gauge of linear layers and zero for rotations.
        """
        return self.pair(params, params)

    def zero(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return ``s = 0``."""
        like = next(iter(params.values()))
        return torch.zeros(self.shape(params), dtype=like.dtype, device=like.device)


def as_symmetry(symmetry: Any) -> Symmetry:
    """Return a symmetry.

    Raises
    ------
    TypeError
        If it is none.
    """
    if not isinstance(symmetry, Symmetry):
        raise TypeError(f"symmetry must be a Symmetry, got {type(symmetry).__name__}")
    return symmetry


def symmetry_residual(
    loss: Callable[[Parameters], Tensor], symmetry: Symmetry, params: Mapping[str, Tensor]
) -> float:
    r"""Return by how much a loss lacks a symmetry, relative to what a general loss does.

    ``max( |<grad f, dQ>|, |f(Q(q, s)) - f(q)|, |f(Q(q, -s)) - f(q)| ) / (|f| + |grad f| |dQ|)``

    for a finite s; a family is tested in one generic direction. Rounding gives a few hundred eps,
    a broken symmetry any number up to order one: a normalisation layer, whose own `eps` breaks the
    scale of the weights before it, about `eps` over the variance.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor.
    symmetry : Symmetry
        The claim.
    params : dict of str to Tensor
        A generic point. At a special one, such as zero, every symmetry may seem to hold.

    Returns
    -------
    float
        The residual, infinite if the loss is not finite along the orbit.

    Raises
    ------
    TypeError
        If `symmetry` is none, `params` is no dict of real tensors, or the loss returns no tensor.
    ValueError
        If `params` is empty, the loss is no scalar or does not depend on them, or the action is
        not the identity at ``s = 0``.
    """
    params = {name: q.detach() for name, q in as_parameters(params).items()}
    zero = as_symmetry(symmetry).zero(params)
    _check_identity(symmetry, params, zero)
    # Directions of no special kind, without random numbers; not antisymmetric as a matrix either.
    count = torch.arange(zero.numel(), dtype=zero.dtype, device=zero.device)
    s = _STRETCH * (1 + 2.4 * count).cos().reshape(zero.shape)
    if not zero.ndim:
        s = torch.full_like(zero, _STRETCH)
    gradient, value = gradient_and_value_of(loss)(params)
    field = symmetry.generated(params, s)
    slope = sum(float((gradient[name] * d).sum()) for name, d in field.items())
    size = _norm({name: gradient[name] for name in field}) * _norm(field)
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

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor.
    symmetry : Symmetry
        The claim.
    params : dict of str to Tensor
        A generic point.
    rtol : float, optional
        Largest `symmetry_residual` allowed. The default is the square root of the eps of the
        parameters' dtype.

    Raises
    ------
    TypeError, ValueError
        As `symmetry_residual`; if `rtol` is not positive.

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
    """Refuse a loss that lacks a symmetry.

    Parameters
    ----------
    loss, symmetry, params, rtol
        As in `is_symmetric`.

    Raises
    ------
    SymmetryError
        If the loss lacks it. The attribute `residual` says by how much.
    """
    residual = symmetry_residual(loss, symmetry, params)
    if not residual <= _tolerance(params, rtol):
        raise SymmetryError(
            f"loss must have the symmetry {symmetry!r} within {_tolerance(params, rtol):.1e}, got "
            f"a residual of {residual:.3e}",
            residual,
        )


def _check_identity(symmetry: Symmetry, params: Parameters, zero: Tensor) -> None:
    """Refuse an action that moves the parameters at s = 0, or makes others of them."""
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


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in tensors.values()))
