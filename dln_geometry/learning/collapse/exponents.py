"""Collapse by the noise of minibatches: Lyapunov exponents along a mirror."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import root_scalar
from torch import Tensor

from dln_geometry.learning.collapse.thresholds import curvature
from dln_geometry.learning.mirror import Mirror
from dln_geometry.support import as_float_tensor, as_generator

__all__ = ["Lyapunov", "batch_curvatures", "lyapunov", "noise_threshold"]

# Products of independent random matrices that are followed at once.
_WALKERS = 64


@dataclass(frozen=True)
class Lyapunov:
    """A Lyapunov exponent per step, with its standard error; made by `lyapunov`.

    Parameters
    ----------
    exponent : float
        Mean rate of ``log |O^T q|`` per step: negative if the mirror collapses.
    standard_error : float
        Of the Monte Carlo estimate; 0 where the exponent is a sum over the batches.
    """

    exponent: float
    standard_error: float

    @property
    def collapses(self) -> bool:
        """Whether the exponent is negative."""
        return self.exponent < 0


def batch_curvatures(
    losses: Iterable[Callable[[Any], Tensor]],
    mirror: Mirror,
    params: Any,
    *,
    direction: Any = None,
) -> Tensor:
    """Return the curvature along a mirror of the loss of each batch, at the symmetric point.

    Parameters
    ----------
    losses : iterable of callable
        ``loss(params)``, one for each batch, each with the mirror symmetry.
    mirror : Mirror
        The mirror O.
    params : Tensor or mapping of str to Tensor
        All parameters; they are made symmetric first.
    direction : Tensor, shape (k,), optional
        Coordinates of one direction c, ``Stability.direction`` for instance.

    Returns
    -------
    Tensor, shape (n, k, k) or (n,)
        ``O^T H_x O`` for each batch x; ``c^T O^T H_x O c / |c|^2`` with a direction, which is
        exact where c is an eigenvector of every one of them, and always if k = 1.

    Raises
    ------
    TypeError
        If a loss does not return a tensor.
    ValueError
        If there is no loss; if one is not a finite differentiable scalar, or does not have the
        symmetry; if the direction is zero or of the wrong size.
    """
    if direction is not None:
        c = as_float_tensor(direction, "direction").detach()
        if c.shape != (mirror.dimension,) or not bool(c.any()):
            raise ValueError(
                f"direction must be a vector of {mirror.dimension} coordinates that is not zero, "
                f"got shape {tuple(c.shape)}"
            )
        along = mirror.push(c / c.norm())
        one = Mirror(
            {name: x.unsqueeze(-1) for name, x in along.items()}
            if mirror.names
            else along[""].unsqueeze(-1)
        )
    else:
        one = mirror
    symmetric = mirror.project(params)
    found = []
    for loss in losses:
        mirror.require(loss, params)
        found.append(curvature(loss, one, symmetric))
    if not found:
        raise ValueError("losses must hold at least one, got none")
    stack = torch.stack(found)
    return stack if direction is None else stack[:, 0, 0]


def lyapunov(
    curvatures: Any,
    lr: float,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    steps: int = 4096,
    generator: torch.Generator | None = None,
) -> Lyapunov:
    """Return the rate at which SGD leaves, or is drawn to, the symmetric set.

    Near it ``c = O^T q`` takes the steps ``c+ = (I - lr (h_x + weight_decay)) c`` with the
    curvature h_x of a batch drawn at random; with momentum b,
    ``c_{n+1} = (1 + b - lr (h_x + weight_decay)) c_n - b c_{n-1}``. The exponent is
    ``E log |1 - lr (h_x + weight_decay)|`` for one coordinate without momentum, and the top
    Lyapunov exponent of the product of random matrices else. The mirror collapses if it is
    negative, even where the mean curvature is.

    Parameters
    ----------
    curvatures : array_like, shape (n,) or (n, k, k)
        Of each batch, as from `batch_curvatures`.
    lr : float
        Learning rate, positive.
    weight_decay : float
        Coupled, as that of torch's SGD.
    momentum : float
        b in [0, 1).
    steps : int
        Length of the products, of which 64 are followed; for matrices only.
    generator : torch.Generator, optional
        Draws the batches; a fresh one if not given.

    Raises
    ------
    TypeError
        If an argument is not numeric.
    ValueError
        If the curvatures have another shape or an option is out of range.

    Examples
    --------
    >>> lyapunov([-0.5, 1.0], lr=1.0, weight_decay=0.25)
    Lyapunov(exponent=-0.5815754049028404, standard_error=0.0)
    """
    h = _as_curvatures(curvatures)
    lr = _as_number(lr, "lr", least=0.0, strict=True)
    decay = _as_number(weight_decay, "weight_decay", least=0.0)
    b = _as_number(momentum, "momentum", least=0.0)
    if b >= 1:
        raise ValueError(f"momentum must be below 1, got {momentum!r}")
    if h.ndim == 1 and b == 0:
        return Lyapunov(float((1 - lr * (h + decay)).abs().log().mean()), 0.0)
    draws = _draws(h, steps, generator)
    rates = _rates(_steps(_square_matrices(h), lr, decay, b), draws)
    if bool(torch.isinf(rates).any()):
        return Lyapunov(-math.inf, 0.0)
    return Lyapunov(float(rates.mean()), float(rates.std()) / math.sqrt(rates.numel()))


def noise_threshold(
    curvatures: Any,
    *,
    weight_decay: float = 0.0,
    steps: int = 4096,
    generator: torch.Generator | None = None,
) -> float:
    """Return the learning rate above which the noise of SGD makes a mirror collapse.

    The smallest positive root of the Lyapunov exponent in the learning rate (without momentum).
    For one coordinate with ``a = h + weight_decay`` it is about ``-2 E[a] / E[a^2]`` for small
    noise; 0 if ``E[a] > 0``, where it collapses at every small learning rate.

    Parameters
    ----------
    curvatures : array_like, shape (n,) or (n, k, k)
        Of each batch, as from `batch_curvatures`.
    weight_decay : float
        Coupled, as that of torch's SGD.
    steps, generator : optional
        As in `lyapunov`: for matrices the root is that of an estimate from one set of draws.

    Returns
    -------
    float
        0 if the mirror collapses without noise, inf if no learning rate makes it collapse.

    Raises
    ------
    TypeError, ValueError
        As in `lyapunov`.

    Examples
    --------
    >>> round(noise_threshold([-1.0, 0.5]), 9)
    1.0
    """
    h = _as_curvatures(curvatures)
    decay = _as_number(weight_decay, "weight_decay", least=0.0)
    if h.ndim == 1:
        a = h + decay
        if bool(a.mean() >= 0):
            return 0.0
        if not bool((a > 0).any()):
            return math.inf
        # Concave up to the first pole 1 / max a, from zero upwards: there is exactly one root.
        pole = 1.0 / float(a.max())
        return _root(lambda x: float((1 - x * a).abs().log().mean()), pole)
    eye = torch.eye(h.shape[-1]).to(h)
    mean = torch.linalg.eigvalsh(h.mean(0) + decay * eye)
    if bool(mean[0] >= 0):
        return 0.0
    if not bool((torch.linalg.eigvalsh(h)[:, -1] + decay > 0).any()):
        # Then every step is an expansion.
        return math.inf
    draws = _draws(h, steps, generator)

    def exponent(x: float) -> float:
        # Finite, for the root finder's sake.
        return max(float(_rates(_steps(h, x, decay, 0.0), draws).mean()), -1e6)

    largest = float(torch.linalg.eigvalsh(h).abs().max()) + decay
    grid = [2.0**j / (64 * largest) for j in range(16)]
    before = 0.0
    for x in grid:
        if exponent(x) < 0:
            if before == 0.0:
                return 0.0
            return _between(exponent, before, x, 1e-9)
        before = x
    return math.inf


def _root(exponent: Callable[[float], float], pole: float) -> float:
    """Return the root of a concave exponent in (0, pole), at whose upper end it is -inf."""
    upper = pole * (1 - 1e-15)
    lower = pole / 2
    while exponent(lower) <= 0:
        upper, lower = lower, lower / 2
    step = pole - lower
    while exponent(upper) >= 0:
        # The pole is logarithmic, and may be too narrow for floating numbers to meet.
        step /= 2
        if step < 1e-15 * pole:
            return pole
        upper = pole - step
    return _between(exponent, lower, upper, 1e-14)


def _between(exponent: Callable[[float], float], lower: float, upper: float, tol: float) -> float:
    found = root_scalar(
        exponent, bracket=(lower, upper), method="brentq", xtol=tol * lower, rtol=tol
    )
    return float(found.root)


def _steps(h: Tensor, lr: float, decay: float, b: float) -> Tensor:
    """Return the matrix of a step on c, or on (c, its predecessor), for each batch."""
    eye = torch.eye(h.shape[-1]).to(h)
    move = (1.0 + b - lr * decay) * eye - lr * h
    if b == 0:
        return move
    upper = torch.cat([move, (-b * eye).expand_as(h)], -1)
    lower = torch.cat([eye.expand_as(h), torch.zeros_like(h)], -1)
    return torch.cat([upper, lower], -2)


def _draws(h: Tensor, steps: Any, generator: torch.Generator | None) -> Tensor:
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    generator = as_generator(generator, h.device)
    shape = (int(steps), _WALKERS)
    return torch.randint(h.shape[0], shape, generator=generator, device=generator.device)


def _rates(matrices: Tensor, draws: Tensor) -> Tensor:
    """Return the growth rate of a vector under each product of random matrices.

    The first tenth of the steps turns the vector into the growing direction and is not counted.
    """
    k = matrices.shape[-1]
    # Any generic start does; this one is not an eigenvector of anything that comes in practice.
    v = torch.linspace(1.0, 2.0, k).to(matrices).cos().expand(draws.shape[1], k).unsqueeze(-1)
    skipped = draws.shape[0] // 10
    total = matrices.new_zeros(draws.shape[1])
    for n, draw in enumerate(draws.to(matrices.device)):
        v = matrices[draw] @ v
        size = torch.linalg.vector_norm(v, dim=-2, keepdim=True)
        # A step may kill the vector: the rate is -inf from there on.
        v = v / torch.where(size > 0, size, 1.0)
        if n >= skipped:
            total = total + size[:, 0, 0].log()
    return total / (draws.shape[0] - skipped)


def _square_matrices(h: Tensor) -> Tensor:
    return h.reshape(-1, 1, 1) if h.ndim == 1 else h


def _as_curvatures(curvatures: Any) -> Tensor:
    h = as_float_tensor(curvatures, "curvatures").detach().double()
    square = h.ndim == 3 and h.shape[-1] == h.shape[-2]
    if not (h.ndim == 1 or square) or h.numel() == 0:
        raise ValueError(f"curvatures must have shape (n,) or (n, k, k), got {tuple(h.shape)}")
    return h.reshape(-1) if square and h.shape[-1] == 1 else h


def _as_number(value: Any, name: str, *, least: float, strict: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < least or (strict and number == least):
        kind = "positive" if strict else f"at least {least:g}"
        raise ValueError(f"{name} must be {kind} and finite, got {value!r}")
    return number
