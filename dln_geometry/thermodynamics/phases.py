"""Phase diagrams: thermodynamic functions and order parameters over temperature, depth and size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Loss
from dln_geometry.support import FIELDS, as_choice, as_count, as_depth, as_flag, as_positive, shown
from dln_geometry.thermodynamics.energies import Energy, energy_of
from dln_geometry.thermodynamics.measure import SpectralMeasure
from dln_geometry.thermodynamics.partition import partition_function

if TYPE_CHECKING:
    import xarray

_NAMES = ("log_z", "error", "energy", "heat_capacity", "entropy")
# Below this share of the largest value a value of lam counts as zero.
_ZERO = 1e-4


def phase_diagram(
    loss: Loss | Callable[[Tensor], Tensor] | None = None,
    *,
    sizes: Sequence[int] | int,
    depths: Sequence[float] | float,
    betas: Sequence[float] | float,
    kappa: float = 1.0,
    entropy: bool = True,
    field: str = "real",
    integrals: bool = True,
    generator: torch.Generator | int | None = None,
) -> xarray.Dataset:
    r"""Tabulate square d x d networks over inverse temperature, depth N and size d.

    Two kinds of columns. Integrals, by `partition_function`: ``log_z``, ``error``, ``energy``,
    ``heat_capacity``, ``entropy``. Order parameters of the limit ``kappa -> 0``, in which the
    equilibrium sits at the minimum of the free energy ``F = E - S/beta``: ``free_energy`` at the
    minimum (with the constant of S), the ``rank`` there, ``clusters``, the number of different
    singular values, ``spread``, ``1 - s_min/s_max``, and ``largest``, ``s_max``.

    Equal singular values solve ``s e'(s) = (d-1)(1-1/N)/(2 beta)``. Under the ridge they are
    unstable for ``N > 5 - 6/d``, and rank d-1 has the lower F for ``(N-1)(d/2) log(d/(d-1)) > log
    N``: weight decay and the noise of hidden bases together lower the rank.

    Parameters
    ----------
    loss : Loss, callable or None
        As in `partition_function`, but a function of the singular values.
    sizes, depths, betas
        Numbers or sequences of them: the axes.
    kappa, entropy, field, generator
        As in `partition_function`. Order parameters are those with entropy.
    integrals : bool
        Compute the integrals too; order parameters alone are quicker.

    Returns
    -------
    xarray.Dataset
        With the dimensions ``size``, ``depth``, ``beta``.

    Examples
    --------
    >>> table = dln.thermodynamics.phase_diagram(sizes=5, depths=[2, 3], betas=1.0, integrals=False)
    >>> table["rank"].squeeze().values.tolist()
    [5, 4]
    """
    import xarray

    axes = {
        "size": [as_count(d, "sizes") for d in _values_of_axis(sizes, "sizes")],
        "depth": [_depth_of_axis(n) for n in _values_of_axis(depths, "depths")],
        "beta": [as_positive(b, "betas") for b in _values_of_axis(betas, "betas")],
    }
    kappa, entropy = as_positive(kappa, "kappa"), as_flag(entropy, "entropy")
    integrals = as_flag(integrals, "integrals")
    index = FIELDS[as_choice(field, FIELDS, "field")]
    columns: dict[str, list[float]] = {}
    for d in axes["size"]:
        for n in axes["depth"]:
            depth = as_depth(n)
            energy = energy_of(loss, (d, d), d, depth, index)
            if energy.value is None:
                raise ValueError(
                    "loss must be a function of the singular values for phase diagrams"
                )
            measure = SpectralMeasure((d, d), d, depth, 1.0, True, index)
            for b in axes["beta"]:
                row: dict[str, float] = {}
                if integrals:
                    found = partition_function(
                        loss, (d, d), n, beta=b, kappa=kappa, entropy=entropy, field=field,
                        generator=generator,
                    )  # fmt: skip
                    row |= {name: getattr(found, name) for name in _NAMES}
                row |= order_parameters(measure, energy, b)
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
    shape = [len(values) for values in axes.values()]
    data = {name: (tuple(axes), np.reshape(values, shape)) for name, values in columns.items()}
    return xarray.Dataset(data, coords=axes, attrs={"kappa": kappa, "field": field})


def _values_of_axis(values: Any, name: str) -> list[Any]:
    """Return the values of an axis."""
    if isinstance(values, str | bytes | dict | set) or values is None:
        raise TypeError(f"{name} must be a number or a sequence of numbers, got {shown(values)}")
    try:
        found = np.asarray(values).tolist() if not np.isscalar(values) else values
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be numbers, got {shown(values)}") from None
    found = found if isinstance(found, list) else [found]
    if not found:
        raise ValueError(f"{name} must hold at least one number, got none")
    return found


def _depth_of_axis(depth: Any) -> float:
    """Return a finite depth of the axis `depths`."""
    try:
        found = as_depth(depth)
    except (TypeError, ValueError) as error:
        raise type(error)(f"depths: {error}") from None
    if found.infinite:
        raise ValueError("depths must be finite, got inf")
    return float(found)


def order_parameters(measure: SpectralMeasure, energy: Energy, beta: float) -> dict[str, float]:
    """Minimise the free energy from several starts, and describe the best minimum."""
    from scipy.optimize import minimize

    d, n, value = measure.rank, float(measure.depth), energy.value
    assert value is not None

    def free_energy(lam: Tensor) -> Tensor:
        return value(lam**n) - measure.log_orbit_volume(lam.log()) / beta

    def with_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        lam = torch.from_numpy(x).requires_grad_()
        with torch.enable_grad():
            f = free_energy(lam)
            (slope,) = torch.autograd.grad(f, lam)
        return float(f.detach()), slope.numpy()

    scale = _equal_minimum(free_energy, d)
    best, where = math.inf, None
    for start in _first_spectra(d, scale):
        low = 1e-9 * scale
        found = minimize(
            with_slope, start, jac=True, method="L-BFGS-B", bounds=[(low, None)] * d,
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000},
        )  # fmt: skip
        x = np.where(found.x < _ZERO * found.x.max(), 0.0, found.x)
        f = float(free_energy(torch.from_numpy(x)))
        if f < best - 1e-12 * (1 + abs(f)):
            best, where = f, np.sort(x)
    if where is None:
        raise ValueError("loss must grow at infinity for the free energy to have a minimum")
    s = where**n
    apart = np.diff(where) > 1e-3 * where[-1]
    return {
        "free_energy": best,
        "rank": int((where > 0).sum()),
        "clusters": int(apart.sum()) + 1,
        "spread": float(1 - s[0] / s[-1]),
        "largest": float(s[-1]),
    }


def _equal_minimum(free_energy: Callable[[Tensor], Tensor], d: int) -> float:
    """Return the value of lam at which equal values have the least free energy."""
    # A little apart, so that one expression serves for all.
    grid = torch.linspace(-8.0, 8.0, 801, dtype=torch.float64, device="cpu").exp()
    values = torch.stack([free_energy(x.expand(d)) for x in grid])
    return float(grid[int(values.nan_to_num(math.inf).argmin())])


def _first_spectra(d: int, scale: float) -> list[np.ndarray]:
    """Return equal values, one or several small ones, and spread ones."""
    rng = np.random.default_rng(11)
    starts = [scale * (1 + 1e-3 * rng.standard_normal(d))]
    for k in range(1, d):
        x = np.full(d, scale) * (1 + 0.02 * rng.standard_normal(d))
        x[:k] *= 0.3 if k > 1 else 1e-3
        starts.append(x)
    starts.extend(scale * np.exp(rng.uniform(-1.5, 0.5, (4, d))))
    return starts
