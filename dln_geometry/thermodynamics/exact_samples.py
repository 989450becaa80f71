"""Independent samples of the equilibrium, where its law is one that can be drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.laws import beta_hermite
from dln_geometry.dynamics.losses import Loss, Quadratic, prepared
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import as_generator, as_size, normal
from dln_geometry.thermodynamics.closed import classical
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.ensembles import polynomial_ensemble, solvable
from dln_geometry.thermodynamics.existence import equilibrium_of
from dln_geometry.thermodynamics.few import extent
from dln_geometry.thermodynamics.measure import SpectralMeasure
from dln_geometry.thermodynamics.nodes import gauss_panels, interpolate, invert

# Numbers in the largest array of one round.
_ROOM = 4_000_000


def sample_exact(
    loss: Loss | Callable[[Tensor], Tensor] | None,
    shape: tuple[int, int],
    depth: float,
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    field: str = "real",
    rank: int | None = None,
    size: Sequence[int] | int = (),
    generator: torch.Generator | int | None = None,
) -> EndToEnd:
    r"""Draw independent matrices from ``exp(-(beta/kappa) F_beta(X)) dvol_g``, without chains.

    The measure of `partition_function` and of `sample_gibbs`. Singular vectors are uniform;
    singular values are drawn

    - by bidiagonal matrices: powers ``w sum s^q`` with ``q = 2/N`` without entropy, or ``q = 2`` at
      ``kappa = 1/2`` (Laguerre ensembles);
    - by triangular matrices: over the complex numbers at ``kappa = 1``, ``q = 2/N`` (the ridge) or
      ``q = 2`` (Muttalib and Borodin's ensemble);
    - by tridiagonal matrices: ``w sum (log s - c)^2`` at infinite depth without entropy;
    - one after the other, by the conditional densities of determinantal laws: over the complex
      numbers, any sum over the singular values, without entropy, at ``kappa = 1/2`` or 1;
    - by inverted distribution functions: one or two singular values, any function of them, any
      temperature, depth, field and kappa.

    At depth 1, full rank, also for `losses.Quadratic` with any target: Gaussian matrices. Inverted
    distribution functions and conditional densities are accurate to about 1e-10.

    Parameters
    ----------
    loss, shape, depth, beta, kappa, entropy, field, rank
        As in `partition_function`. At infinite depth the matrices are square, of full rank.
    size : int or sequence of int
        Shape of the batch of samples.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; by default a fresh one.

    Returns
    -------
    EndToEnd
        A batch of points in double precision, on the CPU. Quaternion matrices are complex
        representations, of twice the size, with every singular value twice.

    Raises
    ------
    ValueError
        If the measure is infinite; if no exact way of drawing from it is known here.

    References
    ----------
    I. Dumitriu, A. Edelman, arXiv math-ph/0206043; D. Cheliotis, arXiv 1404.4730 (triangular
    matrices); J. Hough et al., Probability Surveys 3 (2006), arXiv math/0503110.

    Examples
    --------
    The energy of the ridge is Gamma distributed with the mean D/(2 beta):

    >>> some = dln.thermodynamics.sample_exact(
    ...     None, (4, 3), 2, beta=1.5, kappa=0.7, entropy=False, size=2000, generator=0
    ... )
    >>> some.s.shape, some.matrix.shape
    (torch.Size([2000, 3]), torch.Size([2000, 4, 3]))
    >>> bool((some.s.sum(-1).mean() - 0.7 * 12 / (2 * 1.5)).abs() < 0.1)
    True
    """
    measure, energy, b, whole = equilibrium_of(
        loss, shape, depth, beta=beta, kappa=kappa, entropy=entropy, field=field, rank=rank
    )
    batch = as_size(size, least=0)
    source, count = as_generator(generator, torch.device("cpu")), math.prod(batch)
    if measure.deep and not measure.rank == whole[0] == whole[1]:
        raise ValueError(
            "shape must be square and rank full at infinite depth, where row and column spaces "
            f"stand still, got shape {whole} and rank {measure.rank}"
        )
    if measure.depth == 1 and isinstance(loss, Quadratic) and measure.rank == min(whole):
        z = normal((*batch, *whole), source, torch.float64) / b**0.5
        if loss.reduction == "sum" and measure.index == 1:
            target = prepared(loss, whole, dtype=torch.float64, device="cpu").target
            return EndToEnd.of(z + target, measure.depth)
    x = _drawn_coordinates(measure, energy, b, count, source)
    s = (measure.span * x).exp().sort(-1, descending=True).values
    u = _frames(count, whole[0], measure.rank, measure.index, source)
    v = _frames(count, whole[1], measure.rank, measure.index, source)
    if measure.index == 4:
        s = s.repeat_interleave(2, -1)
    u, s, v = (y.reshape(*batch, *y.shape[1:]) for y in (u, s, v))
    return EndToEnd(u, s, v.mH, measure.depth, check=False)


def _drawn_coordinates(
    measure: SpectralMeasure, energy: Energy, b: float, count: int, source: torch.Generator
) -> Tensor:
    """Draw x of the singular values, (count, r), in any order."""
    r = measure.rank
    if law := classical(measure, energy, b):
        return law.sample(count, source)
    if measure.deep and measure.nu == 0 and (wave := _square_of_logarithm(energy)):
        # The weight exp(-b w (u - c)^2) is that of time t = index/(4 b w).
        width, center = wave
        t = measure.index / (4 * b * width)
        return center + beta_hermite(r, measure.index, t=t, size=count, generator=source)
    if energy.value is not None and r <= 2:
        return _by_inversion(measure, energy.value, b, count, source)
    if measure.index == 2 and solvable(measure, energy):
        return _one_after_the_other(measure, energy, b, count, source)
    raise ValueError(
        "no exact way of drawing is known here for this loss, kappa and field (powers 2/N without "
        "entropy, 2 at kappa = 1/2; complex: sums without entropy, at kappa = 1/2 or 1; up to two "
        f"singular values: functions of them), got rank {r}: take sample_gibbs"
    )


def _square_of_logarithm(energy: Energy) -> tuple[float, float] | None:
    """Return w and c where ``e = w (log s - c)^2`` up to a constant, else None."""
    if energy.single is None:
        return None
    u = torch.tensor([-1.0, 0.0, 1.0, 0.6, -2.3], dtype=torch.float64, device="cpu")
    e = energy.single(u.exp())
    if not bool(torch.isfinite(e).all()):
        return None
    low, middle, high = e[:3].tolist()
    width, slope = 0.5 * (low + high) - middle, 0.5 * (high - low)
    gap = e - (middle + slope * u + width * u * u)
    if width <= 0 or float(gap.abs().max()) > 1e-10 * float(e.abs().max() + width):
        return None
    return width, -0.5 * slope / width


def _frames(count: int, d: int, r: int, f: int, source: torch.Generator) -> Tensor:
    """Draw uniform r-frames, as the polar factors of Gaussian matrices."""
    parts = [normal((count, d, r), source, torch.float64) for _ in range(f)]
    g = parts[0]
    if f > 1:
        g = torch.complex(parts[0], parts[1])
    if f == 4:
        # The polar factor of a complex representation [[A, -B*], [B, A*]] is one.
        h = torch.complex(parts[2], parts[3])
        g = torch.cat((torch.cat((g, -h.conj()), -1), torch.cat((h, g.conj()), -1)), -2)
        pairs = torch.arange(2 * r, device="cpu").view(2, r).T.flatten()
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    return (u @ vh)[..., pairs] if f == 4 else u @ vh


def _by_inversion(
    measure: SpectralMeasure, value: Any, b: float, count: int, source: torch.Generator
) -> Tensor:
    """Draw the largest value by its distribution function, and the gap to the other by its own."""
    low, high = extent(measure, value, b)
    panels = gauss_panels(low, high, 48)
    top = measure.coordinates(panels[0])
    draws = torch.rand(2, count, generator=source, dtype=torch.float64, device="cpu")
    if measure.rank == 1:
        log = measure.power * top - b * value((measure.span * top).exp().unsqueeze(-1))
        return measure.coordinates(invert(panels, (log - log.max()).exp(), draws[0])[0])[:, None]
    # Gaps are exp(y - e^-y): up to e^8 is as far as anything reaches that is not a power.
    rows = gauss_panels(-3.7, 60.0 if measure.deep else 8.0, 64 if measure.deep else 24)
    fall = (-rows[0]).exp()
    gap = (rows[0] - fall).exp()
    jacobian = rows[0] - fall + torch.log1p(fall)

    def log_density(x: Tensor) -> Tensor:
        below = x.unsqueeze(-1) - gap
        log = jacobian + measure.power * (x.unsqueeze(-1) + below)
        log = log + (0.0 if measure.deep else below) + measure.log_gap(x.unsqueeze(-1), gap)
        both = torch.stack((x.unsqueeze(-1).expand_as(below), below), -1)
        log = log + 2 * measure.nu * measure.log_pair(both[..., 0], both[..., 1])
        return (log - b * value((measure.span * both).exp())).nan_to_num(
            -math.inf, neginf=-math.inf
        )

    log = torch.cat([log_density(part) for part in top.split(max(1, _ROOM // len(gap)))])
    marginal = ((log - log.max()).exp() * rows[1]).sum(-1)
    x = measure.coordinates(invert(panels, marginal, draws[0])[0])
    found = []
    step = max(1, _ROOM // len(gap))
    for k in range(0, max(count, 1), step):
        part = slice(k, k + step)
        log = log_density(x[part])
        weight = (log - log.max(-1, keepdim=True).values).exp()
        y = invert(rows, weight, draws[1, part])[0]
        found.append(x[part] - (y - (-y).exp()).exp())
    return torch.stack((x, torch.cat(found)), -1)


def _one_after_the_other(
    measure: SpectralMeasure, energy: Energy, b: float, count: int, source: torch.Generator
) -> Tensor:
    """Draw from the determinantal law with the kernel ``sum_k phi_k(x) psi_k(y)``.

    Given some values, the density of the next is ``phi(x)^T P psi(x)``; each takes away from P the
    part of rank one along its ``P psi`` and ``phi^T P``.
    """
    law = polynomial_ensemble(measure, energy, b)
    assert law.kernel is not None
    r, (phi, psi) = measure.rank, law.kernel
    panels = (law.nodes, law.weights, law.matrix)
    found = []
    step = max(1, _ROOM // (phi.shape[-1] * r))
    for k in range(0, max(count, 1), step):
        size = min(step, count - k)
        p = torch.eye(r, dtype=torch.float64, device="cpu").expand(size, r, r).clone()
        values = []
        for _ in range(r):
            density = ((phi.T @ p) * psi.T).sum(-1).clamp_min(0.0)
            draws = torch.rand(size, generator=source, dtype=torch.float64, device="cpu")
            y, place = invert(panels, density, draws)
            values.append(measure.coordinates(y))
            left, right = interpolate(phi, place), interpolate(psi, place)
            onto, back = (p @ right.unsqueeze(-1)), (left.unsqueeze(-2) @ p)
            p = p - onto @ back / (left.unsqueeze(-2) @ onto)
        found.append(torch.stack(values, -1))
    return torch.cat(found)
