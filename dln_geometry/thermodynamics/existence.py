"""Whether the partition function is finite: the inequality that fails is told."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.sampling import falloff, infinite_measure
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import (
    FIELDS,
    as_choice,
    as_count,
    as_depth,
    as_flag,
    as_matrix_shape,
    as_positive,
    as_sides,
    normal,
)
from dln_geometry.thermodynamics.energies import Energy, energy_of
from dln_geometry.thermodynamics.measure import SpectralMeasure, gaussians


def equilibrium_of(
    loss: Any, shape: Any, depth: Any, *, beta: Any, kappa: Any, entropy: Any, field: Any, rank: Any
) -> tuple[SpectralMeasure, Energy, float, tuple[int, int]]:
    """Check the arguments of `partition_function`, and that the measure is finite.

    Return the measure, the energy, beta/kappa and the shape.
    """
    whole, sides = as_matrix_shape(shape), as_sides(shape)
    depth, beta, kappa = as_depth(depth), as_positive(beta, "beta"), as_positive(kappa, "kappa")
    entropy, index = as_flag(entropy, "entropy"), FIELDS[as_choice(field, FIELDS, "field")]
    r = sides[1] if rank is None else as_count(rank, "rank")
    if r > sides[1]:
        raise ValueError(f"rank must be at most {sides[1]}, got {r}")
    if depth.infinite and loss is None:
        raise ValueError("loss must be given at infinite depth, where the ridge has no limit")
    energy = energy_of(loss, whole, r, depth, index)
    measure = SpectralMeasure(sides, r, depth, kappa, entropy, index)
    if energy.value is None and index == 4:
        raise ValueError(
            "field must be 'real' or 'complex' for a loss that is no function of singular values, "
            f"got {field!r}: losses take real or complex matrices"
        )
    if energy.value is None and depth.infinite and not r == whole[0] == whole[1]:
        raise ValueError(
            "shape must be square and rank full at infinite depth, where row and column spaces "
            f"stand still, for a loss that sees them, got shape {whole} and rank {r}"
        )
    if reason := why_infinite(measure, energy, whole, beta):
        raise ValueError(f"the partition function is infinite: {reason}")
    return measure, energy, beta / kappa, whole


def why_infinite(
    measure: SpectralMeasure, energy: Energy, shape: tuple[int, int], beta: float
) -> str | None:
    r"""Return why the measure is infinite, None if no reason is known.

    At finite depth zero is integrable, and if k values of ``lam = s^{1/N}`` grow like t, the
    mass grows like ``t^D_k``, so that the loss must grow faster than ``(kappa/beta) D_k log t``.
    At infinite depth zero is infinitely far: see `_at_infinite_depth`.
    """
    if measure.deep:
        return _at_infinite_depth(measure, energy, shape, beta / measure.kappa)
    if energy.value is None:
        return _along_flat_directions(measure, energy.loss, shape)
    r, n = measure.rank, float(measure.depth)
    for k in range(1, r + 1):
        s = torch.full((3, 2, r), 0.5, dtype=torch.float64, device="cpu")
        apart = 1.0 - 0.01 * torch.arange(k, dtype=torch.float64, device="cpu") / k
        # A small beta shows only far out how a loss grows.
        s[..., :k] = s.new_tensor([1e4, 1e40, 1e120])[:, None, None] * apart
        s[:, 1, :k] *= 1e2
        low, high = energy.value(s).unbind(-1)
        gain = torch.where(torch.isinf(high), math.inf, high - low).max()
        rate = (beta / measure.kappa) * float(gain) / (math.log(1e2) / n)
        need = measure.dimension(k)
        if not rate > need * (1 + 1e-9):
            return (
                f"where {k} singular values grow like t^N the mass grows like t^{need:g} and "
                f"exp(-(beta/kappa) E) falls like t^-{rate:.3g}: {rate:.3g} > {need:g} fails"
            )
    return None


def _at_infinite_depth(
    measure: SpectralMeasure, energy: Energy, shape: tuple[int, int], b: float
) -> str | None:
    r"""Let k values of ``u = log s`` go to plus or minus infinity, like T.

    A pair of which one value goes there adds ``T^{f(1-nu)}``, and ``e^{2 f nu T}`` if its larger
    value does; integration adds ``T^k``. One value that vanishes while the loss stays finite needs,
    over the real numbers, ``(r-1)(1/(2 kappa) - 1) > 1``.
    """
    if energy.value is None:
        share = measure.entropy
        return infinite_measure(energy.loss, _point(shape, measure), measure.kappa, share, 0.0)
    r, f, nu = measure.rank, measure.index, measure.nu
    far = torch.tensor([60.0, 120.0], dtype=torch.float64, device="cpu")
    for k in range(1, r + 1):
        pairs = 0.5 * k * (k - 1)
        need = k + f * (1.0 - nu) * (pairs + k * (r - k))
        apart = 1.0 - 0.01 * torch.arange(k, dtype=torch.float64, device="cpu") / k
        for sign in (1.0, -1.0):
            s = torch.full((2, r), 0.5, dtype=torch.float64, device="cpu")
            s[:, :k] = (sign * far[:, None] * apart).exp()
            low, high = energy.value(s).tolist()
            if not math.isfinite(high):
                continue
            gain = measure.dimension(k) if sign > 0 else -k * measure.power - 2 * f * nu * pairs
            rate = (b * (high - low) - gain * 60.0) / math.log(2.0)
            if rate > need * (1 + 1e-9) + 1e-9:
                continue
            if f == k == -sign and abs(high - low) <= 1e-6 * (1 + abs(low)):
                given = f"1/(2 kappa) = {nu:g}" if measure.entropy else "no entropy"
                return (
                    "the loss is finite where a singular value vanishes, infinitely far at "
                    f"infinite depth: (r-1)(1/(2 kappa) - 1) > 1 fails with r = {r} and {given}"
                )
            where = "grow like e^T" if sign > 0 else "fall like e^-T"
            return (
                f"where {k} singular values {where} the density with its volume is T^({need:.3g} - "
                f"{rate:.3g}) dT/T: {rate:.3g} > {need:.3g} fails"
            )
    return None


def _point(shape: tuple[int, int], measure: SpectralMeasure) -> EndToEnd:
    source = torch.Generator("cpu").manual_seed(3)
    x = gaussians(shape, measure.index, source)
    return EndToEnd.of(x, measure.depth, rank=measure.rank)


def _along_flat_directions(
    measure: SpectralMeasure, loss: Any, shape: tuple[int, int]
) -> str | None:
    """Look for matrices along which the loss stands still, and compare dimensions."""
    point = _point(shape, measure)
    entropic = measure.entropy and measure.nu > 0
    f = measure.index
    excess = f * measure.excess
    known = infinite_measure(loss, point, measure.kappa, entropic, excess)
    if known or measure.rank < min(shape) or shape[0] * shape[1] > 400:
        return known
    flat = flat_directions(loss, point.matrix)
    if not len(flat):
        return None
    k = int(torch.linalg.matrix_rank(flat.sum(0)))
    p = falloff(measure.depth, measure.nu, measure.sides, k, excess, f)
    if p > len(flat):
        return None
    return (
        f"the loss does not depend on {len(flat)} directions, where the density falls like "
        f"t^-{p:.3g} along matrices of rank {k}: {p:.3g} > {len(flat)} fails"
    )


def flat_directions(loss: Any, x: Tensor) -> Tensor:
    """Return a real basis (q, m, n) of the matrices Z with ``E(X + t Z) = E(X)``."""
    m, n = x.shape
    basis = torch.eye(m * n, dtype=x.dtype, device=x.device).view(-1, m, n)
    basis = torch.cat((basis, 1j * basis)) if x.is_complex() else basis
    changes = loss.gradient(x + basis) - loss.gradient(x)
    changes = changes.to_dense() if changes.layout != torch.strided else changes
    parts = (changes.real, changes.imag) if x.is_complex() else (changes,)
    _, s, vh = torch.linalg.svd(torch.cat([part.flatten(1) for part in parts], 1).T)
    flat = vh[s <= 1e-9 * s[0].clamp_min(1e-300)].to(x.dtype) @ basis.flatten(1)
    flat = flat.view(-1, m, n)
    if not len(flat):
        return flat
    # A basis in general position, whose sum has the generic rank.
    source = torch.Generator("cpu").manual_seed(5)
    mix = normal((len(flat), len(flat)), source, torch.float64).to(x.dtype)
    flat = torch.einsum("ij,jmn->imn", mix, flat)
    there, here = loss.value(x + 1e3 * flat), loss.value(x)
    return flat if bool(((there - here).abs() <= 1e-6 * (1 + here.abs())).all()) else flat[:0]
