"""Vector fields on the parameters of a model, and the form in which solvers want them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dln_geometry.learning.functional import Parameters, as_parameters, flatten, unflatten


class VectorField:
    """A map from parameters to their velocity, ``q' = F(q)``.

    Parameters
    ----------
    velocity : callable
        ``velocity(params)`` returns a dict with the names and shapes of `params`.
    """

    def __init__(self, velocity: Callable[[Parameters], Parameters]) -> None:
        self._velocity = velocity

    def __call__(self, params: Mapping[str, Tensor]) -> Parameters:
        """Return the velocity at `params`."""
        return self._velocity(as_parameters(params))

    def field(self, like: Mapping[str, Tensor]) -> Callable[[Any, Tensor, Tensor], None]:
        """Return the field for `dln_geometry.ode.integrate`: ``field(t, y, out)``, y (B, p).

        Each row of y is a `flatten` of parameters, and `unflatten` makes it a dict with the names,
        shapes and dtypes of `like`.
        """
        like = as_parameters(like, "like")

        def field(t: Any, y: Tensor, out: Tensor) -> None:
            # Row by row: the Hessians of different rows share nothing, and what a row allocates
            # is freed before the next.
            for row, target in zip(y, out, strict=True):
                target.copy_(flatten(self(unflatten(row, like))))

        return field
