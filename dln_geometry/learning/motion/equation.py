"""The equation of motion of gradient descent: the flow that passes through its iterates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_finite,
    as_parameters,
    flatten,
    largest_eigenvalue,
    unflatten,
)
from dln_geometry.learning.motion.series import closed_motion
from dln_geometry.learning.motion.spectrum import flat_product
from dln_geometry.support import as_count, as_flag, as_generator, as_positive


class VectorField:
    """A map from parameters to their velocity, ``q' = F(q)``, a dict like the parameters."""

    def __init__(self, velocity: Callable[[Parameters], Parameters]) -> None:
        self._velocity = velocity

    def __call__(self, params: Tensors) -> Parameters:
        """Return the velocity at `params`."""
        return self._velocity(as_finite(params))

    def field(self, like: Tensors) -> Callable[[Any, Tensor, Tensor], None]:
        """Return the field for `dln_geometry.ode.integrate`: ``field(t, y, out)``, y (B, p).

        Each row of y is a `flatten` of parameters, and `unflatten` makes it a dict with the names,
        shapes and dtypes of `like`.
        """
        like = as_parameters(like, "like")

        def field(t: Any, y: Tensor, out: Tensor) -> None:
            # The Hessians of different rows share nothing: one by one they need less memory.
            for row, target in zip(y, out, strict=True):
                target.copy_(flatten(self(unflatten(row, like))))

        return field


class EquationOfMotion(VectorField):
    """The vector field ``F = -g - lr xi_0 - ... - lr^(order + 1) xi_order`` of a loss.

    Made by `equation_of_motion`; the attributes are its arguments.
    """

    def __init__(
        self, loss: Loss, lr: float, order: int, check: bool, generator: Generator | None
    ) -> None:
        super().__init__(closed_motion(loss, lr, order))
        self.loss, self.lr, self.order = loss, lr, order
        self._unchecked = check and order >= 0
        self._generator = generator

    def __call__(self, params: Tensors) -> Parameters:
        """Return the velocity at `params`, the first time after a `check` there."""
        params = as_parameters(params)
        if self._unchecked:
            self.check(params)
            self._unchecked = False
        return super().__call__(params)

    def check(self, params: Tensors) -> float:
        """Return ``lr max |lambda|`` over the eigenvalues of the Hessian; refuse 1 and above.

        In each eigendirection the equation is the series of ``log(1 - lr lambda) / lr``. At
        ``lr lambda = 1`` gradient descent comes to rest in one step, and beyond it jumps across
        the minimum in every step: no real flow passes through such iterates. Below -1 there is a
        flow, but the series diverges.
        """
        params = as_finite(params)
        product, flat = flat_product(self.loss, params), flatten(params)
        options: Any = {"rtol": 1e-2, "generator": self._generator}  # one percent is enough here
        highest, lowest = (
            self.lr * float(largest_eigenvalue(matvec, flat, **options)[0])
            for matvec in (product, lambda x: -product(x))
        )
        if highest >= 1:
            raise ValueError(
                f"lr must be below 1 / lambda_max, where an equation of motion exists, got "
                f"lr * lambda_max = {highest:.4g}: gradient descent jumps across the minimum "
                "along the sharpest direction, and no real flow does; central_flow follows the "
                "average of such iterates"
            )
        if lowest >= 1:
            raise ValueError(
                f"lr must be below 1 / |lambda_min|, where the counter terms converge, got "
                f"lr * lambda_min = {-lowest:.4g}"
            )
        return max(highest, lowest)


def equation_of_motion(
    loss: Loss,
    lr: float,
    order: int,
    *,
    check: bool = True,
    generator: Generator | int | None = None,
) -> EquationOfMotion:
    """Return the field ``F = -g - lr xi_0 - ... - lr^(order + 1) xi_order`` of gradient descent.

    Its flow q(t) passes through the iterates ``q_n`` of gradient descent at ``t = n lr``, up to a
    global error of order ``lr^(order + 2)``. Order -1 is gradient flow.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor; with weight decay, the loss that includes it.
    lr : float
        Learning rate eta.
    order : int
        Index of the last counter term kept (see `counter_terms`), at least -1.
    check : bool
        Whether to call `EquationOfMotion.check` at the first point where the field is evaluated
        (not for gradient flow, which always exists): a ValueError if ``lr lambda_max >= 1``.
    generator : torch.Generator or int, optional
        Start of the Lanczos method in that check, or its seed; a fresh one if not given.

    Returns
    -------
    EquationOfMotion
        ``motion(params)`` is the velocity, a dict like `params`; ``motion.field(like)`` the same
        for a solver; ``motion.check(params)`` the check at another point.

    References
    ----------
    Miyagawa, arXiv 2210.15898.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> loss = lambda p: p["q"].square().sum() / 2
    >>> point = {"q": torch.tensor([1.0])}
    >>> fields = [learning.equation_of_motion(loss, 0.1, order) for order in (-1, 0, 1, 2)]
    >>> [round(float(field(point)["q"]), 5) for field in fields]
    [-1.0, -1.05, -1.05333, -1.05358]
    >>> round(float(torch.tensor(0.9).log() / 0.1), 5)  # all orders: log(1 - lr) / lr
    -1.05361
    """
    lr, order = as_positive(lr, "lr"), as_count(order, "order", -1)
    if generator is not None:
        generator = as_generator(generator, torch.device("cpu"))
    return EquationOfMotion(loss, lr, order, as_flag(check, "check"), generator)
