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
from dln_geometry.support import as_generator, as_size
from dln_geometry.thermodynamics.closed import classical
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.ensembles import Ensemble, polynomial_ensemble, solvable
from dln_geometry.thermodynamics.existence import equilibrium_of
from dln_geometry.thermodynamics.few import extent
from dln_geometry.thermodynamics.measure import SpectralMeasure, gaussians
from dln_geometry.thermodynamics.nodes import gauss_panels, interpolate, invert, panel_ends, running

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
    - one after the other, by the conditional densities of determinantal and Pfaffian laws: any sum
      over the singular values, without entropy or at ``kappa = 1/2``, complex ones also at 1;
    - by inverted distribution functions: one or two singular values, any function of them, any
      temperature, depth, field and kappa.

    Also for `losses.Quadratic` with any target, at full rank: Gaussian matrices at depth 1, and
    square complex ones at ``kappa = 1/2`` at every finite depth. Inverted
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
        If the measure is infinite; if no exact way of drawing from it is known here: with entropy
        the pairs have the factors ``|lam_i^2 - lam_j^2|^{f(1-nu)} |s_i^2 - s_j^2|^{f nu}``, ``nu =
        1/(2 kappa)``, over the reals a Pfaffian at nu = 0 and 1 alone.

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
    # The volume and the orbits' cancel over the complex numbers at kappa = 1/2.
    square = measure.rank == whole[0] == whole[1] and not measure.deep
    flat = measure.depth == 1 or (square and measure.index == 2 and measure.nu == 1)
    if flat and isinstance(loss, Quadratic) and measure.rank == min(whole) and measure.index < 4:
        z = gaussians((*batch, *whole), measure.index, source) / b**0.5
        if loss.reduction == "sum":
            target = prepared(loss, whole, dtype=z.dtype, device="cpu").target
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
    if solvable(measure, energy):
        try:
            law = polynomial_ensemble(measure, energy, b)
        except ArithmeticError as error:
            raise ValueError(f"no exact draws at rank {r}: {error}; take sample_gibbs") from None
        draw = _of_determinants if measure.index == 2 else _of_pfaffians
        # Densities on all nodes, and conditional ones of all values.
        step = max(1, _ROOM // (len(law.nodes) * r))
        parts = (min(step, count - k) for k in range(0, count, step))
        found = [draw(measure, law, part, source) for part in parts]
        return torch.cat(found) if found else law.nodes.new_zeros(0, r)
    raise ValueError(
        "no exact way of drawing is known here for this loss, kappa and field (sums over the "
        "singular values without entropy or at kappa = 1/2, complex ones also at 1; up to two "
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
    # The polar factor of a complex representation of quaternions is one.
    u, _, vh = torch.linalg.svd(gaussians((count, d, r), f, source), full_matrices=False)
    q = u @ vh
    # Both columns of a quaternion stand side by side.
    return q.unflatten(-1, (2, r)).mT.flatten(-2) if f == 4 else q


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


def _of_determinants(
    measure: SpectralMeasure, law: Ensemble, count: int, source: torch.Generator
) -> Tensor:
    """Draw from the determinantal law with the kernel ``sum_k phi_k(x) psi_k(y)``.

    Given some values, the density of the next is ``phi(x)^T P psi(x)``; each takes away from P the
    part of rank one along its ``P psi`` and ``phi^T P``.
    """
    r, (phi, psi) = measure.rank, law.kernel
    panels = (law.nodes, law.weights, law.matrix)
    p = torch.eye(r, dtype=torch.float64, device="cpu").expand(count, r, r).clone()
    values = []
    for _ in range(r):
        density = ((phi.T @ p) * psi.T).sum(-1).clamp_min(0.0)
        draws = torch.rand(count, generator=source, dtype=torch.float64, device="cpu")
        y, place = invert(panels, density, draws)
        values.append(measure.coordinates(y))
        left, right = interpolate(phi, place), interpolate(psi, place)
        onto, back = (p @ right.unsqueeze(-1)), (left.unsqueeze(-2) @ p)
        p = p - onto @ back / (left.unsqueeze(-2) @ onto)
    return torch.stack(values, -1)


def _of_pfaffians(
    measure: SpectralMeasure, law: Ensemble, count: int, source: torch.Generator
) -> Tensor:
    r"""Draw from the Pfaffian law of `Ensemble`, real or quaternion.

    With ``F = (tau; psi)(X)`` at the values X so far, ``A = F M^{-1} F^T``, over the reals minus
    ``sgn(X_a - X_b)`` among the rows of tau, the next has the density of a Schur complement,
    ``tau^T (M^{-1} - M^{-1} F^T A^{-1} F M^{-1}) psi + sum_a sgn(x - X_a) c_a psi``, c the rows of
    ``A^{-1} F M^{-1}`` that belong to tau. There ``tau' = -2 psi`` makes the integral of a sign
    times psi a difference of tau.
    """
    tau, psi, inverse = law.kernel
    panels, real = (law.nodes, law.weights, law.matrix), measure.index == 1
    low = tau[:, 0] + 2 * running(psi, law.weights, law.matrix)[:, 0]
    drops = (psi * law.weights).unflatten(-1, (-1, len(law.matrix))).sum(-1).cumsum(-1)
    edges = torch.cat((low.unsqueeze(-1), low.unsqueeze(-1) - 2 * drops), -1)
    points = panel_ends(law.nodes, law.weights)

    def signed(x: Tensor, c: Tensor, there: Tensor) -> Any:
        """Return the masses of the signs at the ends of panels, and at points."""
        base = (c * (there - low)).sum((-2, -1)) / 2

        def mass(y: Tensor, at: Tensor) -> Tensor:
            turned = torch.sign(y.unsqueeze(-2) - x.unsqueeze(-1)) * (
                (c * there).sum(-1, True) - c @ at
            )
            return base.unsqueeze(-1) + turned.sum(-2) / 2

        def inside(y: Tensor, place: Any) -> Tensor:
            return mass(y.unsqueeze(-1), interpolate(tau, place).unsqueeze(-1)).squeeze(-1)

        return mass(points, edges), inside

    values, at = [], tau.new_zeros(count, 2, 0, len(tau))
    for k in range(measure.rank):
        p, more = inverse.expand(count, *inverse.shape), None
        if k:
            f = at.flatten(1, 2)
            form = f @ inverse @ f.mT
            x = torch.stack(values, -1)
            if real:
                form[:, :k, :k] -= torch.sign(x.unsqueeze(-1) - x.unsqueeze(-2))
            back = torch.linalg.solve(form, f @ inverse)
            p = p - inverse @ f.mT @ back
            more = signed(x, back[:, :k], at[:, 0]) if real else None
        density = ((tau.T @ p) * psi.T).sum(-1)
        draws = torch.rand(count, generator=source, dtype=torch.float64, device="cpu")
        y, place = invert(panels, density, draws, more)
        values.append(y)
        both = torch.stack((interpolate(tau, place), interpolate(psi, place)), 1)
        at = torch.cat((at, both.unsqueeze(2)), 2)
    return measure.coordinates(torch.stack(values, -1))
