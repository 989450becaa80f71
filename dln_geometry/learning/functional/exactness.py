"""Losses whose derivatives of every order come out right, in forward and in reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from torch.nn import functional

from dln_geometry.learning.functional.exact_derivatives import SmoothNormalisation
from dln_geometry.learning.functional.losses import as_loss

__all__ = ["ExactDerivatives", "with_exact_derivatives"]


class ExactDerivatives(SmoothNormalisation):
    """The normalisations of `SmoothNormalisation`, and a mean square that nests.

    Nested forward mode over the backward pass of torch's own mean square stops with an error
    (torch 2.13). References: the issues 175754, 186256, 196699 and 196700 of pytorch/pytorch.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    >>> with ExactDerivatives():
    ...     y = torch.nn.functional.layer_norm(x, (3,))
    >>> bool(torch.allclose(y, torch.nn.functional.layer_norm(x, (3,))))
    True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the written-out function in place of a fused one."""
        options = {k: v for k, v in (kwargs or {}).items() if v is not None}
        # Deprecated arguments, weights and mistakes go to torch.
        plain = func is functional.mse_loss and len(args) == 2 and options.keys() <= {"reduction"}
        if plain and (reduction := options.get("reduction", "mean")) in ("mean", "sum", "none"):
            return _mean_square(args[0], args[1], reduction)
        return super().__torch_function__(func, types, args, kwargs or {})


def with_exact_derivatives(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the same function, evaluated in `ExactDerivatives`.

    Raises
    ------
    TypeError
        If it cannot be called.
    """
    loss = as_loss(loss)

    @wraps(loss, updated=())
    def exact(*args: Any, **kwargs: Any) -> Tensor:
        with ExactDerivatives():
            return loss(*args, **kwargs)

    return exact


def _mean_square(x: Tensor, target: Tensor, reduction: str) -> Tensor:
    squares = (x - target).square()
    if reduction == "mean":
        return squares.mean()
    return squares.sum() if reduction == "sum" else squares
