"""Symmetries of a loss: families of transformations of the parameters, and their generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import Parameters, Tensors, as_parameters
from dln_geometry.support import as_count, as_float_tensor, shown


class SymmetryError(ValueError):
    """A loss lacks a symmetry; `residual` says by how much.

    Examples
    --------
    >>> try:
    ...     loss, scale = lambda p: p["w"].sum(), dln.learning.Scale("w")
    ...     dln.learning.check_symmetric(loss, scale, {"w": torch.ones(2)})
    ... except dln.learning.SymmetryError as error:
    ...     print(error.residual > 0.1)
    True
    """

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.residual)


class Symmetry:
    r"""A family of transformations ``q -> Q(q, s)`` of the parameters, with ``Q(q, 0) = q``.

    Its generator is the vector field ``dQ(q) = d/ds Q(q, s)`` at ``s = 0``, for each entry of s;
    each has a charge (Tanaka & Kunin, arXiv 2105.02716, section 3).

    Parameters
    ----------
    action : callable
        ``action(params, s)`` returns the parameters that it changes; differentiable, and the
        identity at ``s = 0``.
    shape : tuple of int
        Shape of s; () for one symmetry.
    degree : {0, 1}, optional
        1 if the generators are linear in the parameters and their transposes generate symmetries
        too, 0 if they are constant: then the charges have closed laws (see `DiscreteLaw`).

    Examples
    --------
    A symmetry of a loss of ``q[0] * exp(q[1])``:

    >>> def action(params, s):
    ...     q = params["q"]
    ...     return {"q": torch.stack([q[0] * torch.exp(-s), q[1] + s])}
    >>> symmetry = dln.learning.Symmetry(action)
    >>> loss = lambda params: (params["q"][0] * params["q"][1].exp() - 2).square()
    >>> point = {"q": torch.tensor([1.5, 0.5])}
    >>> symmetry.field(point)
    {'q': tensor([-1.5000,  1.0000])}
    >>> dln.learning.is_symmetric(loss, symmetry, point)
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
        if not callable(action) or isinstance(action, type):
            raise TypeError(f"action must be a function of params and s, got {action!r}")
        if degree is not None and as_count(degree, "degree", 0) > 1:
            raise ValueError(f"degree must be 0, 1 or None, got {degree!r}")
        if not isinstance(shape, tuple | list):
            raise TypeError(f"shape must be a tuple of integers, got {shown(shape)}")
        sizes = tuple(as_count(d, "shape", 0) for d in shape)
        self._action, self._shape, self.degree = action, sizes, degree

    def __repr__(self) -> str:
        return f"Symmetry({getattr(self._action, '__name__', self._action)})"

    def moved(self, params: Parameters, s: Tensor) -> Parameters:
        """Return the parameters that the action changes, at ``Q(params, s)``."""
        return self._action(params, s)

    def shape(self, params: Tensors) -> tuple[int, ...]:
        """Return the shape of s and of the charges."""
        return self._shape

    def action(self, params: Tensors, s: Any) -> Parameters:
        """Return ``Q(params, s)``; a number s stands for all entries of a family."""
        params = as_parameters(params)
        return {**params, **self.moved(params, self._entries(params, s))}

    def field(self, params: Tensors, s: Any = 1.0) -> Parameters:
        """Return the generator ``dQ(q)`` in the direction s (as in `action`), zeros included."""
        params = as_parameters(params)
        field = self.generated(params, self._entries(params, s))
        return {n: field[n] if n in field else torch.zeros_like(q) for n, q in params.items()}

    def generated(self, params: Parameters, s: Tensor) -> Parameters:
        """Return the generator in the direction s, without the parameters that it leaves alone."""
        return torch.func.jvp(lambda t: self.moved(params, t), (self.zero(params),), (s,))[1]

    def pair(self, params: Tensors, covector: Tensors) -> Tensor:
        """Return ``<covector, dQ(q)>`` for a gradient or a momentum, one for each entry of s."""
        params, covector = as_parameters(params), as_parameters(covector, "covector")
        field, pull = torch.func.vjp(lambda s: self.generated(params, s), self.zero(params))[:2]
        return pull({name: covector[name] for name in field})[0]

    def conserved(self, params: Tensors) -> Tensor:
        """Return ``<q, dQ(q)>``, which gradient flow conserves if there is a `degree`.

        It is ``<q, n>`` for translations, ``|q|^2`` for scale, ``|q_1|^2 - |q_2|^2`` for rescale,
        ``W_1 W_1^T - W_2^T W_2`` for the gauge of linear layers and zero for rotations.
        """
        return self.pair(params, params)

    def zero(self, params: Tensors) -> Tensor:
        """Return ``s = 0``."""
        like = next(iter(params.values()))
        return torch.zeros(self.shape(params), dtype=like.dtype, device=like.device)

    def _entries(self, params: Tensors, s: Any) -> Tensor:
        zero = self.zero(params)
        # Tensors may be those of a transform of torch.func, whose values cannot be read.
        s = s if isinstance(s, Tensor) and s.is_floating_point() else as_float_tensor(s, "s")
        if s.ndim > zero.ndim or any(
            n not in (1, size) for n, size in zip(s.shape[::-1], zero.shape[::-1], strict=False)
        ):
            required = f"a number or of shape {tuple(zero.shape)}"
            raise ValueError(f"s must be {required}, got shape {tuple(s.shape)}")
        return s.to(zero).expand(zero.shape)


def as_symmetry(symmetry: Any) -> Symmetry:
    """Return a symmetry, which must be a `Symmetry`."""
    if not isinstance(symmetry, Symmetry):
        raise TypeError(f"symmetry must be a Symmetry, got {type(symmetry).__name__}")
    return symmetry
