"""The noise of minibatches: Lyapunov exponents of SGD along a mirror."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.collapse.thresholds import curvature
from dln_geometry.learning.mirror import Mirror, as_mirror
from dln_geometry.support import as_count, as_float_tensor, as_generator, as_positive, shown

# Independent products of random matrices, computed side by side.
_WALKERS = 64


@dataclass(frozen=True)
class Lyapunov:
    """A Lyapunov exponent, with its standard error; made by `lyapunov`.

    `exponent` is the mean rate of ``log |O^T q|`` per step, `standard_error` that of the Monte
    Carlo estimate: 0 where the exponent is the mean over the batches.

    Examples
    --------
    >>> curvatures = torch.tensor([0.5, 1.5])  # of two batches, along one mirror
    >>> found = dln.learning.lyapunov(curvatures, lr=0.1)
    >>> round(found.exponent, 4), found.collapses
    (-0.1069, True)
    """

    exponent: float
    standard_error: float

    @property
    def collapses(self) -> bool:
        """Whether the exponent is negative."""
        return self.exponent < 0


def batch_curvatures(
    losses: Iterable[Callable[[Any], Tensor]], mirror: Mirror, params: Any, *, direction: Any = None
) -> Tensor:
    """Return the curvature along a mirror of the loss of each batch, at the symmetric point.

    It is ``O^T H_x O`` for each batch x, shape (n, k, k), or ``c^T O^T H_x O c / |c|^2``, shape
    (n,), with a direction c. That is exact if c is an eigenvector of each, and always if k = 1.

    Parameters
    ----------
    losses : iterable of callable
        ``loss(params)``, one for each batch, each with the mirror symmetry.
    mirror, params
        As in `stability`.
    direction : Tensor, shape (k,), optional
        Coordinates c of one direction, ``Stability.direction`` for instance.

    Examples
    --------
    >>> losses = [lambda q: 0.5 * q.square().sum(), lambda q: 1.5 * q.square().sum()]
    >>> mirror = dln.learning.Mirror([[1.0]])
    >>> dln.learning.batch_curvatures(losses, mirror, torch.tensor([0.5])).flatten()
    tensor([1., 3.])
    """
    one = as_mirror(mirror)
    if not isinstance(losses, Iterable) or isinstance(losses, str | bytes | Tensor):
        raise TypeError(f"losses must be functions of the parameters, got {shown(losses)}")
    if direction is not None:
        c = as_float_tensor(direction, "direction").detach()
        if c.shape != (mirror.dimension,) or not bool(c.any()):
            raise ValueError(
                f"direction must be a vector of {mirror.dimension} coordinates that is not zero, "
                f"got shape {tuple(c.shape)}"
            )
        along = mirror.embed(c / c.norm())
        flat = isinstance(along, Tensor)
        one = Mirror(along[:, None] if flat else {n: x[..., None] for n, x in along.items()})
    symmetric, found = mirror.project(params), []
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
    generator: torch.Generator | int | None = None,
) -> Lyapunov:
    """Return the rate at which SGD leaves the symmetric set, negative if it is drawn to it.

    Near it ``c = O^T q`` takes the steps
    ``c_{n+1} = (1 + b - lr (h_x + weight_decay)) c_n - b c_{n-1}`` with momentum b and the
    curvature h_x of a batch drawn at random. The rate is ``E log |1 - lr (h_x + weight_decay)|``
    for one coordinate without momentum, else the top Lyapunov exponent of the product of random
    matrices. Where it is negative the mirror collapses, even if the mean curvature is negative too.

    Parameters
    ----------
    curvatures : array_like, shape (n,) or (n, k, k)
        Of each batch, as from `batch_curvatures`.
    lr, weight_decay, momentum : float
        Of SGD: the decay is coupled, as in torch, the momentum b lies in [0, 1).
    steps, generator : optional
        Number of factors in each of 64 random products, for matrices and momentum, and their draws.

    Examples
    --------
    >>> dln.learning.lyapunov([-0.5, 1.0], lr=1.0, weight_decay=0.25)
    Lyapunov(exponent=-0.5815754049028404, standard_error=0.0)
    """
    h = _as_curvatures(curvatures)
    lr = as_positive(lr, "lr")
    decay = as_positive(weight_decay, "weight_decay", zero=True)
    b = as_positive(momentum, "momentum", zero=True)
    if b >= 1:
        raise ValueError(f"momentum must be below 1, got {momentum!r}")
    _check_draws(steps, generator)
    if h.ndim == 1 and b == 0:
        return Lyapunov(float((1 - lr * (h + decay)).abs().log().mean()), 0.0)
    draws = _draws(h, steps, generator)
    rates = _rates(_steps(h.reshape(-1, 1, 1) if h.ndim == 1 else h, lr, decay, b), draws)
    if bool(torch.isinf(rates).any()):
        return Lyapunov(-math.inf, 0.0)
    return Lyapunov(float(rates.mean()), float(rates.std()) / math.sqrt(rates.numel()))


def noise_threshold(
    curvatures: Any,
    *,
    weight_decay: float = 0.0,
    steps: int = 4096,
    generator: torch.Generator | int | None = None,
) -> float:
    """Return the learning rate above which the noise of SGD makes a mirror collapse.

    It is the smallest positive root of the Lyapunov exponent in the learning rate (without
    momentum): 0 if the mirror collapses without noise, inf if no learning rate makes it collapse.
    For one coordinate with ``a = h + weight_decay`` and small noise it is about
    ``-2 E[a] / E[a^2]``. Parameters as in `lyapunov`; matrices take one set of draws for all rates.

    Examples
    --------
    >>> round(dln.learning.noise_threshold([-1.0, 0.5]), 9)
    1.0
    """
    h = _as_curvatures(curvatures)
    decay = as_positive(weight_decay, "weight_decay", zero=True)
    _check_draws(steps, generator)
    if h.ndim == 1:
        a = h + decay
        if bool(a.mean() >= 0):
            return 0.0
        if not bool((a > 0).any()):
            return math.inf
        return _root_below(1.0 / float(a.max()), lambda x: float((1 - x * a).abs().log().mean()))
    if bool(
        torch.linalg.eigvalsh(
            h.mean(0) + decay * torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
        )[0]
        >= 0
    ):
        return 0.0
    values = torch.linalg.eigvalsh(h)
    if not bool((values[:, -1] + decay > 0).any()):
        return math.inf  # every step expands
    draws = _draws(h, steps, generator)

    def exponent(x: float) -> float:  # brentq needs finite values
        return max(float(_rates(_steps(h, x, decay, 0.0), draws).mean()), -1e6)

    before, largest = 0.0, float(values.abs().max()) + decay
    for x in (2.0**j / (64 * largest) for j in range(16)):
        if exponent(x) < 0:
            return _root_in(before, x, exponent, 1e-9) if before else 0.0
        before = x
    return math.inf


def _root_below(pole: float, exponent: Callable[[float], float]) -> float:
    """Return the only root in (0, pole) of a concave exponent: 0 and rising at 0, -inf at pole."""
    upper, lower = pole * (1 - 1e-15), pole / 2
    while exponent(lower) <= 0:
        upper, lower = lower, lower / 2
    step = pole - lower
    while exponent(upper) >= 0:
        # The exponent falls so slowly that it may be positive at the last number below the pole.
        step /= 2
        if step < 1e-15 * pole:
            return pole
        upper = pole - step
    return _root_in(lower, upper, exponent, 1e-14)


def _root_in(lower: float, upper: float, exponent: Callable[[float], float], tol: float) -> float:
    from scipy.optimize import root_scalar

    bracket = (lower, upper)
    return root_scalar(exponent, bracket=bracket, method="brentq", xtol=tol * lower, rtol=tol).root


def _steps(h: Tensor, lr: float, decay: float, b: float) -> Tensor:
    """Return the matrix of a step on c, or on (c, its predecessor), for each batch."""
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device).expand_as(h)
    move = (1.0 + b - lr * decay) * eye - lr * h
    if b == 0:
        return move
    lower = torch.cat([eye, torch.zeros_like(h)], -1)
    return torch.cat([torch.cat([move, -b * eye], -1), lower], -2)


def _check_draws(steps: Any, generator: Any) -> None:
    """Refuse wrong arguments of `_draws`, also where nothing is drawn."""
    as_count(steps, "steps", 2)
    as_generator(generator, torch.device("cpu"))


def _draws(h: Tensor, steps: Any, generator: torch.Generator | int | None) -> Tensor:
    shape, source = (as_count(steps, "steps", 2), _WALKERS), as_generator(generator, h.device)
    return torch.randint(h.shape[0], shape, generator=source, device=source.device)


def _rates(matrices: Tensor, draws: Tensor) -> Tensor:
    """Return the growth rate of a vector under each product of random matrices."""
    (steps, walkers), k = draws.shape, matrices.shape[-1]
    # A generic start has a part along the growing direction; the first tenth turns it there.
    v = (
        torch.linspace(1.0, 2.0, k, dtype=matrices.dtype, device=matrices.device)
        .cos()
        .expand(walkers, k)
        .unsqueeze(-1)
    )
    skipped, total = steps // 10, matrices.new_zeros(walkers)
    for n, draw in enumerate(draws.to(matrices.device)):
        v = matrices[draw] @ v
        size = torch.linalg.vector_norm(v, dim=-2, keepdim=True)
        # A singular step may send the vector to 0: its rate is -inf then.
        v = v / torch.where(size > 0, size, 1.0)
        if n >= skipped:
            total = total + size[:, 0, 0].log()
    return total / (steps - skipped)


def _as_curvatures(curvatures: Any) -> Tensor:
    h = as_float_tensor(curvatures, "curvatures").detach().double()
    square = h.ndim == 3 and h.shape[-1] == h.shape[-2]
    if not (h.ndim == 1 or square) or h.numel() == 0:
        raise ValueError(f"curvatures must have shape (n,) or (n, k, k), got {tuple(h.shape)}")
    return h.reshape(-1) if square and h.shape[-1] == 1 else h
