"""Losses of observed entries that are not squares: yes or no, and counts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dln_geometry.dynamics.losses.completion import Completion
from dln_geometry.support import as_float_tensor


class LinkLoss(Completion):
    """A loss ``E(X) = sum_e w_e l(z_e, v_e)`` of ``z_e = X[rows_e, cols_e] + o_e``, convex in z.

    The base of `Logistic` and `Poisson`. `mean` makes of z the expected value of an entry, `link`
    is its inverse and `curvature` its derivative; a loss of another kind defines these three, with
    `_of`, the loss of every entry, and `_fits`, which tells whether values are allowed. The slope
    of ``l`` must be ``mean(z) - v``, as it is for exponential families.

    Examples
    --------
    A matrix of zeros expects every answer with probability 1/2, and every count to be 1:

    >>> at = {"rows": [0, 1], "cols": [0, 1], "values": [1.0, 0.0], "shape": (2, 2)}
    >>> for kind in (dln.losses.Logistic, dln.losses.Poisson):
    ...     loss = kind(**at)
    ...     z = loss.link(loss.mean(torch.zeros(1)))
    ...     kind.__name__, float(loss.mean(z)), float(loss.curvature(z))
    ('Logistic', 0.5, 0.25)
    ('Poisson', 1.0, 1.0)
    """

    _range: ClassVar[str]
    complex_numbers = False
    _own: ClassVar = {"values": 1, "offsets": 1}
    entries: ClassVar = (*Completion.entries, "offsets")

    def __init__(
        self,
        rows: Any,
        cols: Any,
        values: Any,
        shape: Sequence[int],
        *,
        weights: Any = None,
        offsets: Any = None,
        reduction: str = "sum",
    ) -> None:
        given = as_float_tensor(values, "values")
        if not self._fits(given):
            least, most = float(given.min()), float(given.max())
            raise ValueError(f"values must be {self._range}, got {least:g} to {most:g}")
        order = self._arrange(rows, cols, given, shape, weights, reduction)
        self.offsets = torch.zeros_like(self.values)
        if offsets is not None:
            o = as_float_tensor(offsets, "offsets", dtype=given.dtype, device=given.device)
            if o.shape[-1:] != given.shape[-1:]:
                required = f"shape (..., {given.shape[-1]}) like the entries"
                raise ValueError(f"offsets must have {required}, got {tuple(o.shape)}")
            self.offsets = o[..., order].expand(self.values.shape)

    def _to(self, dtype: torch.dtype, device: torch.device) -> Self:
        copy = super()._to(dtype, device)
        copy.offsets = self.offsets.to(device, dtype)
        return copy

    def _target(self) -> Tensor:
        return -self.offsets

    def _measured(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = self._of(residual), self.mean(residual) - self.values
        if self.weights is not None:
            energy, slope = self.weights * energy, self.weights * slope
        return self._reduced(energy.sum(-1), slope)

    @abstractmethod
    def _fits(self, values: Tensor) -> bool: ...

    @abstractmethod
    def _of(self, z: Tensor) -> Tensor:
        """Return ``l(z, v)`` for every entry."""

    @staticmethod
    @abstractmethod
    def mean(z: Tensor) -> Tensor:
        """Return the expected value of an entry."""

    @staticmethod
    @abstractmethod
    def curvature(z: Tensor) -> Tensor:
        """Return the derivative of `mean`."""

    @staticmethod
    @abstractmethod
    def link(mean: Tensor) -> Tensor:
        """Return the z with this mean, the inverse of `mean`."""


class Logistic(LinkLoss):
    """The log loss of probabilities, ``sum_e w_e (log(1 + e^z) - v z)``, ``z = X_ij + o_ij``.

    Minus the log likelihood of entries that are 1 with probability ``1/(1 + e^{-z})``; `values`
    in [0, 1] and `offsets` (added to X, default 0) have shape (..., k), other parameters as in
    `Completion`.

    Examples
    --------
    >>> import torch
    >>> loss = dln.losses.Logistic([0, 1], [0, 1], [1.0, 0.0], (2, 2))
    >>> loss.value(torch.zeros(2, 2)), loss.gradient(torch.zeros(2, 2)).to_dense()
    (tensor(1.3863), tensor([[-0.5000,  0.0000],
            [ 0.0000,  0.5000]]))
    """

    _range = "in [0, 1]"

    def _fits(self, values: Tensor) -> bool:
        return bool(((values >= 0) & (values <= 1)).all())

    def _of(self, z: Tensor) -> Tensor:
        return torch.nn.functional.softplus(z) - self.values * z

    @staticmethod
    def mean(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @staticmethod
    def curvature(z: Tensor) -> Tensor:
        return torch.sigmoid(z) * torch.sigmoid(-z)

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        return torch.logit(mean)


class Poisson(LinkLoss):
    """The log loss of counts, ``sum_e w_e (e^z - v z)``, ``z = X_ij + o_ij``.

    Minus the log likelihood, up to a constant, of counts with the mean ``e^z``; `values` >= 0 and
    `offsets` (added to X, default 0) have shape (..., k), other parameters as in `Completion`.

    Examples
    --------
    >>> import torch
    >>> loss = dln.losses.Poisson([0, 1], [0, 1], [2.0, 0.0], (2, 2))
    >>> loss.value(torch.zeros(2, 2)), loss.gradient(torch.zeros(2, 2)).to_dense()
    (tensor(2.), tensor([[-1.,  0.],
            [ 0.,  1.]]))
    """

    _range = "at least 0"

    def _fits(self, values: Tensor) -> bool:
        return bool((values >= 0).all())

    def _of(self, z: Tensor) -> Tensor:
        return z.exp() - self.values * z

    @staticmethod
    def mean(z: Tensor) -> Tensor:
        return z.exp()

    @staticmethod
    def curvature(z: Tensor) -> Tensor:
        return z.exp()

    @staticmethod
    def link(mean: Tensor) -> Tensor:
        return mean.log()
