"""Vector fields on the parameters of a model, in the form that a solver wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dln_geometry.learning.functional import Parameters, as_parameters, flatten, unflatten

__all__ = ["VectorField"]


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
        """Return the velocity at `params`.

        Raises
        ------
        TypeError
            If `params` is no dict of real tensors.
        ValueError
            If it is empty.
        """
        return self._velocity(as_parameters(params))

    def field(self, like: Mapping[str, Tensor]) -> Callable[[Any, Tensor, Tensor], None]:
        """Return the field on batches of flat vectors: ``field(t, y, out)``, y of shape (B, p).

        That is what `dln_geometry.dynamics.solvers.integrate` integrates. Each row of y is a
        `flatten` of parameters, which `unflatten` brings back.

        Parameters
        ----------
        like : mapping of str to Tensor
            Names, shapes and dtypes of the parameters.
        """
        like = as_parameters(like, "like")

        def field(t: Any, y: Tensor, out: Tensor) -> None:
            # Row by row: the Hessians of different rows share nothing, and what a row allocates
            # is freed before the next.
            for row, target in zip(y, out, strict=True):
                target.copy_(flatten(self(unflatten(row, like))))

        return field
