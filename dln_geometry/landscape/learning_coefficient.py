"""The learning coefficient of deep linear networks: in closed form, and estimated by a sampler.

The volume of the layers whose loss is within e of the best is ``e^lambda log(1/e)^(theta - 1)`` up
to a constant; lambda, the real log canonical threshold, is the learning coefficient. Half the
number of parameters where the best layers are isolated, and less where they are singular.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Quadratic
from dln_geometry.geometry.points import Network
from dln_geometry.landscape.strata import as_target_rank
from dln_geometry.support import (
    as_count,
    as_generator,
    as_positive,
    as_width_sequence,
    normal,
    refuse_complex,
)


class LearningCoefficient(NamedTuple):
    """The learning coefficient and its multiplicity.

    Examples
    --------
    >>> dln.landscape.learning_coefficient((1, 1, 1), 0)
    LearningCoefficient(value=0.5, multiplicity=2)
    """

    value: float
    multiplicity: int


def learning_coefficient(widths: Sequence[int], rank: int) -> LearningCoefficient:
    r"""Return the learning coefficient of layers of these widths with a target of this rank.

    With ``M_p = d_p - r`` there is a set of widths, k + 1 of them, of which the largest M is less
    than all others, ``sum M >= k max M`` within it, and ``sum M < k min M`` of the others. With
    ``M = ceil(sum M / k)`` and ``a = sum M - (M - 1) k``, sums over this set,

    ``lambda = (r (m + n) - r^2)/2 + a (k - a)/(4k)
    - (sum M)^2 (k - 1)/(4k) + 1/2 sum_{p<q} M_p M_q``

    and the multiplicity is ``a (k - a) + 1``. It is the smallest one over all layers whose product
    is the target: that of the most singular of these.

    Parameters
    ----------
    widths : sequence of int
        ``(d_0, ..., d_N)``.
    rank : int
        Rank r of the target, from 0 to the smallest width.

    References
    ----------
    Aoyagi, Consideration on the learning efficiency of multiple-layered neural networks with
    linear units, 2024; Aoyagi, Watanabe 2005 (two layers).

    Examples
    --------
    >>> dln.landscape.learning_coefficient((3, 3), 2).value  # one layer is regular: 9 / 2
    4.5
    >>> dln.landscape.learning_coefficient((2, 2, 2), 1)
    LearningCoefficient(value=2.0, multiplicity=2)
    """
    resolved = as_width_sequence(widths)
    r = as_target_rank(rank, resolved)
    rest = sorted(d - r for d in resolved)
    # Of equal numbers all are in the set or none: it holds the smallest ones.
    for count in range(2, len(rest) + 1):
        inside, outside, k = rest[:count], rest[count:], count - 1
        total = sum(inside)
        if outside and not inside[-1] < outside[0]:
            continue
        if total >= k * inside[-1] and (not outside or total < k * outside[0]):
            break
    else:
        raise AssertionError(f"no set of widths was found for {resolved} and rank {r}")
    most = -(-total // k)
    a = total - (most - 1) * k
    pairs = sum(x * y for x, y in combinations(inside, 2))
    m, n = resolved[-1], resolved[0]
    # As fractions: the sum is a multiple of 1/(4k).
    value = Fraction(r * (m + n) - r * r + pairs, 2)
    value += Fraction(a * (k - a) - total * total * (k - 1), 4 * k)
    return LearningCoefficient(float(value), a * (k - a) + 1)


def estimate_learning_coefficient(
    factors: Sequence[Any],
    *,
    beta: float,
    strength: float = 1.0,
    steps: int = 2000,
    chains: int = 100,
    generator: torch.Generator | int | None = None,
) -> tuple[float, float]:
    """Return an estimate of the learning coefficient near some layers, and its standard error.

    ``beta E[K]`` of the loss ``K = |W_N .. W_1 - X|^2 / 2``, X the product of the given layers,
    under ``exp(-beta K - strength/2 sum |W_p - W_p^0|^2)``, by the Metropolis-adjusted Langevin
    algorithm from the layers, in double precision; the first half of the steps adapts their size.
    As beta grows it tends to the coefficient of the layers within reach, from below where the
    multiplicity theta is above 1: by ``(theta - 1)/log beta``.

    Parameters
    ----------
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)`` of one network.
    beta : float
        Inverse temperature, or the number of data.
    strength : float
        Of the pull to the given layers, which keeps the chains there.
    steps, chains : int
        Steps of every chain, and number of chains.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; a fresh one if not given.

    References
    ----------
    Lau, Furman, Wang, Murfet, Wei, arXiv 2308.12108 (the estimator).

    Examples
    --------
    >>> value, error = dln.landscape.estimate_learning_coefficient(
    ...     ([[1.0]],), beta=1e3, steps=400, generator=0
    ... )
    >>> abs(value - 0.5) < 4 * error + 0.01
    True
    """
    network = Network(factors)
    refuse_complex("factors", network.dtype)
    if network.batch_shape:
        raise ValueError(f"factors must be of one network, got {tuple(network.batch_shape)}")
    beta, strength = as_positive(beta, "beta"), as_positive(strength, "strength")
    steps, chains = as_count(steps, "steps", 4), as_count(chains, "chains", 2)
    layers = [w.detach().double() for w in network]
    source = as_generator(generator, layers[0].device)
    loss = Quadratic(network.matrix.detach().double())
    shapes = [w.shape for w in layers]
    start = torch.cat([w.flatten() for w in layers])

    def energy(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of layers (chains, P), the whole energy and its gradient."""
        parts = y.split([s.numel() for s in shapes], -1)
        w = [part.view(-1, *s) for part, s in zip(parts, shapes, strict=True)]
        below = [w[0]]
        for layer in w[1:]:
            below.append(layer @ below[-1])
        value, back = loss.evaluate(below[-1])
        slopes = []
        for p in range(len(w) - 1, 0, -1):
            slopes.append(back @ below[p - 1].mT)
            back = w[p].mT @ back
        slopes.append(back)
        slope = torch.cat([g.flatten(1) for g in reversed(slopes)], -1)
        pull = y - start
        whole = beta * value + 0.5 * strength * pull.square().sum(-1)
        return value, whole, beta * slope + strength * pull

    y = start.expand(chains, -1)
    value, whole, slope = energy(y)
    h = start.new_full((), 1.0 / (beta + strength))
    seen = []
    for step in range(steps):
        noise = normal(y.shape, source, y.dtype, y.device)
        new = y - 0.5 * h * slope + h.sqrt() * noise
        new_value, new_whole, new_slope = energy(new)
        back = y - new + 0.5 * h * new_slope
        log_ratio = whole - new_whole + 0.5 * noise.square().sum(-1)
        log_ratio = log_ratio - 0.5 * back.square().sum(-1) / h
        chance = log_ratio.clamp_max(0.0).exp()
        drawn = torch.rand(chains, generator=source, dtype=y.dtype, device=source.device)
        taken = drawn.to(y.device) < chance
        y = torch.where(taken.unsqueeze(-1), new, y)
        slope = torch.where(taken.unsqueeze(-1), new_slope, slope)
        value, whole = torch.where(taken, new_value, value), torch.where(taken, new_whole, whole)
        if step < steps // 2:
            # To the acceptance at which these steps go farthest.
            h = h * torch.exp((chance.mean() - 0.574) / math.sqrt(1.0 + 0.1 * step))
        else:
            seen.append(value)
    means = beta * torch.stack(seen).mean(0)
    return float(means.mean()), float(means.std() / math.sqrt(chains))
