"""Whether the partition function is finite: the inequality that fails is told."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.sampling import falloff, infinite_measure
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import normal
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure


def why_infinite(
    measure: SpectralMeasure, energy: Energy, shape: tuple[int, int], beta: float
) -> str | None:
    r"""Return why the measure is infinite, None if no reason is known.

    At infinite depth the entropy must hold the smallest singular value: ``(r-1)(1/(2 kappa) - 1) >
    1``. At finite depth zero is integrable, and if k values of ``lam = s^{1/N}`` grow like t, the
    mass grows like ``t^D_k``, so that the loss must grow faster than ``(kappa/beta) D_k log t``.
    """
    if measure.depth.infinite:
        return _at_infinite_depth(measure, energy, shape)
    if energy.value is None:
        return _along_flat_directions(measure, energy.loss, shape)
    r, n = measure.rank, float(measure.depth)
    for k in range(1, r + 1):
        s = torch.full((2, r), 0.5, dtype=torch.float64, device="cpu")
        apart = 1.0 - 0.01 * torch.arange(k, dtype=torch.float64, device="cpu") / k
        s[:, :k] = s.new_tensor([[1e4], [1e6]]) * apart
        low, high = energy.value(s).tolist()
        rate = (beta / measure.kappa) * (high - low) / (math.log(1e2) / n)
        need = measure.dimension(k)
        if not rate > need * (1 + 1e-9):
            return (
                f"where {k} singular values grow like t^N the mass grows like t^{need:g} and "
                f"exp(-(beta/kappa) E) falls like t^-{rate:.3g}: {rate:.3g} > {need:g} fails"
            )
    return None


def _at_infinite_depth(measure: Any, energy: Energy, shape: tuple[int, int]) -> str | None:
    r, nu = measure.rank, 0.5 / measure.kappa if measure.entropy else 0.0
    power = (r - 1) * (nu - 1.0)
    if power > 1:
        return None
    if energy.value is not None:
        s = torch.ones(2, r, dtype=torch.float64, device="cpu")
        s[:, -1] = s.new_tensor([1e-100, 1e-200])
        first, second = energy.value(s).tolist()
        if not abs(second - first) <= 1e-6 * (1 + abs(first)):
            return None
        given = f"1/(2 kappa) = {nu:g}" if measure.entropy else "0 for 1/(2 kappa) without entropy"
        return (
            "the loss is finite where a singular value vanishes, infinitely far at infinite depth: "
            f"(r-1)(1/(2 kappa) - 1) > 1 fails with r = {r} and {given}"
        )
    return infinite_measure(
        energy.loss, _point(shape, measure), measure.kappa, measure.entropy, 0.0
    )


def _point(shape: tuple[int, int], measure: SpectralMeasure) -> EndToEnd:
    source = torch.Generator("cpu").manual_seed(3)
    x = normal(shape, source, torch.float64)
    return EndToEnd.of(x, measure.depth, rank=measure.rank)


def _along_flat_directions(
    measure: SpectralMeasure, loss: Any, shape: tuple[int, int]
) -> str | None:
    """Look for matrices along which the loss stands still, and compare dimensions."""
    point = _point(shape, measure)
    entropic = measure.entropy and measure.nu > 0
    known = infinite_measure(loss, point, measure.kappa, entropic, measure.excess)
    if known or measure.rank < min(shape) or shape[0] * shape[1] > 400:
        return known
    flat = flat_directions(loss, point.matrix)
    if not len(flat):
        return None
    k = int(torch.linalg.matrix_rank(flat.sum(0)))
    p = falloff(measure.depth, measure.nu, measure.sides, k, measure.excess)
    if p > len(flat):
        return None
    return (
        f"the loss does not depend on {len(flat)} directions, where the density falls like "
        f"t^-{p:.3g} along matrices of rank {k}: {p:.3g} > {len(flat)} fails"
    )


def flat_directions(loss: Any, x: Tensor) -> Tensor:
    """Return a basis (q, m, n) of the matrices Z with ``E(X + t Z) = E(X)``."""
    m, n = x.shape
    basis = torch.eye(m * n, dtype=x.dtype, device=x.device).view(-1, m, n)
    changes = loss.gradient(x + basis) - loss.gradient(x)
    changes = changes.to_dense() if changes.layout != torch.strided else changes
    _, s, vh = torch.linalg.svd(changes.reshape(m * n, m * n).T)
    flat = vh[s <= 1e-9 * s[0].clamp_min(1e-300)].view(-1, m, n)
    if not len(flat):
        return flat
    # A basis in general position, whose sum has the generic rank.
    source = torch.Generator("cpu").manual_seed(5)
    mix = normal((len(flat), len(flat)), source, x.dtype)
    flat = torch.einsum("ij,jmn->imn", mix, flat)
    there, here = loss.value(x + 1e3 * flat), loss.value(x)
    return flat if bool(((there - here).abs() <= 1e-6 * (1 + here.abs())).all()) else flat[:0]
