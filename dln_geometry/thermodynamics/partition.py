"""The partition function of balanced networks: exactly where it can be had, by chains elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Loss
from dln_geometry.support import as_choice, as_count, as_generator
from dln_geometry.thermodynamics.chains import Walk, by_chains
from dln_geometry.thermodynamics.closed import log_closed
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.ensembles import polynomial_ensemble, solvable
from dln_geometry.thermodynamics.existence import equilibrium_of
from dln_geometry.thermodynamics.few import MOST, quadrature
from dln_geometry.thermodynamics.measure import SpectralMeasure

METHODS = ("auto", "closed", "pfaffian", "quadrature", "annealing", "integration")


@dataclass(frozen=True)
class PartitionFunction:
    """Log Z and what follows from it; made by `partition_function`.

    Attributes
    ----------
    log_z : float
        The logarithm of Z.
    error : float
        Its standard error; 0 where log Z is exact up to rounding.
    energy : float
        ``E[E(X)]``.
    heat_capacity : float
        ``(beta/kappa)^2 Var E``, that is ``beta^2 d^2 log Z/d beta^2``.
    entropy : float
        ``E[log vol(O_X)]``, of the orbits of hidden bases.
    method : str
        How log Z was computed.
    errors : dict of str to float
        Standard errors of ``energy``, ``heat_capacity``, ``entropy``; 0 where they are exact.

    Examples
    --------
    >>> found = dln.thermodynamics.partition_function(None, (2, 2), 2, beta=1.0)
    >>> found.method, found.energy, found.error  # dim(M)/2 = (4 + 1)/2
    ('quadrature', 2.5, 0.0)
    """

    log_z: float
    error: float
    energy: float
    heat_capacity: float
    entropy: float
    method: str
    errors: dict[str, float] = field(default_factory=dict)


def partition_function(
    loss: Loss | Callable[[Tensor], Tensor] | None,
    shape: tuple[int, int],
    depth: float,
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    field: str = "real",
    method: str = "auto",
    rank: int | None = None,
    steps: int = 400,
    generator: torch.Generator | int | None = None,
) -> PartitionFunction:
    r"""Return ``Z = int exp(-(beta/kappa) E(X)) vol(O_X)^{1/kappa} dvol_g`` and its derivatives.

    The integral is over the m x n matrices of rank r. Normalisation:

    - ``dvol_g`` is the Riemannian volume of the metric ``<Z, A^{-1} Z>`` with the undivided
      operator A. At depth 1 it is that of the Frobenius metric (Lebesgue measure of the entries at
      full rank); for real matrices of any depth it is ``N^{-r(m+n-r-1)/2}`` times the same in
      ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``.
    - ``vol(O_X)`` is ``exp(dln.entropy(X))``, the volume of the balanced networks above X in the
      Frobenius metric of all layers, both components of O(d) counted, hidden layers of width
      ``min(m, n)``. Without entropy the factor is left out.

    At ``kappa = 1`` with entropy, Z is the integral of ``exp(-beta E)`` over the balanced manifold.
    Over the complex numbers and quaternions bases are unitary and symplectic, and the inner product
    of matrices is the real part of ``tr(A^* B)``.

    At infinite depth Z is that of the r x r matrices in fixed row and column spaces, with the
    divided operator A and the entropy without its constant, as `dln.entropy` has it. Zero is
    infinitely far there: if the loss is finite where a singular value vanishes, Z is finite, over
    the real numbers, only with entropy and ``(r-1)(1/(2 kappa) - 1) > 1``; complex and quaternion
    orbits shrink fast enough at every kappa.

    Parameters
    ----------
    loss : Loss, callable or None
        A loss of the matrix; or a function of the singular values, (..., r) to (...), in float64;
        or None, the ridge ``(N/2) sum s_i^{2/N}``.
    shape : (int, int)
        Shape (m, n) of the matrices.
    depth : float
        Depth N >= 1, not necessarily an integer, or infinity.
    beta, kappa, entropy
        As in `langevin`; kappa is positive.
    field : str
        ``"real"``, ``"complex"`` or, for losses of the singular values, ``"quaternion"``; layers
        are acted on by unitary and symplectic bases. A `Loss` sees complex matrices over the
        complex numbers.
    method : str
        ``"closed"``: formulas (powers of the singular values). ``"pfaffian"``: Pfaffians and
        determinants, for sums over the singular values, without entropy or at ``kappa = 1/2``
        (complex: also 1). ``"quadrature"``: up to three singular values, any function of them.
        ``"annealing"`` and ``"integration"``: any loss, by annealed importance sampling and by
        thermodynamic integration. ``"auto"`` takes the first of these that applies.
    rank : int, optional
        The rank r; full by default.
    steps : int
        Steps of chains from the Gaussian to the Gibbs measure; annealing takes more if its
        weights spread.
    generator : torch.Generator or int, optional
        Source of randomness of the chains, or its seed.

    Returns
    -------
    PartitionFunction
        ``log_z``, ``error``, ``energy``, ``heat_capacity``, ``entropy``, ``method``, ``errors``.

    Raises
    ------
    ValueError
        If Z is infinite, with the inequality that fails; if the method does not apply.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088v3 (the measure). N. de Bruijn, J. Indian
    Math. Soc. 19 (1955); K. Muttalib, J. Phys. A 28 (1995); R. Neal, arXiv physics/9803008.

    Examples
    --------
    The Gaussian integral of a 2 x 2 matrix, ``(2 pi/beta)^2``:

    >>> import math
    >>> found = dln.thermodynamics.partition_function(None, (2, 2), 1, beta=3.0)
    >>> round(found.log_z - 2 * math.log(2 * math.pi / 3), 12), found.energy
    (0.0, 0.6666666666666666)
    >>> loss = dln.losses.Quadratic(torch.zeros(100, 100))
    >>> deep = dln.thermodynamics.partition_function(loss, (100, 100), 4, beta=1.0, kappa=0.5)
    >>> deep.method, deep.error, deep.heat_capacity  # (d^2 + (N-1) d (d-1)) / (2N)
    ('closed', 0.0, 4962.5)
    """
    method = as_choice(method, METHODS, "method")
    measure, energy, b, whole = equilibrium_of(
        loss, shape, depth, beta=beta, kappa=kappa, entropy=entropy, field=field, rank=rank
    )
    steps = as_count(steps, "steps", 20)
    source = as_generator(generator, torch.device("cpu"))
    return _computed(measure, energy, b, method, whole, steps, source)


def _computed(
    measure: SpectralMeasure, energy: Energy, b: float, method: str, shape: Any, steps: int,
    source: torch.Generator,
) -> PartitionFunction:  # fmt: skip
    """Compute by the first method that applies, or by the one that was asked for."""
    anything, few = method == "auto", energy.value is not None and measure.rank <= MOST
    closed = log_closed(measure, energy, b) if anything or method == "closed" else None
    if closed is not None or method == "closed":
        if closed is None:
            raise ValueError("method 'closed' needs a power of singular values that has a formula")
        known = {"log_z": closed, "error": 0.0}
        try:
            return _with_moments(measure, energy, b, "closed", known, few)
        except ArithmeticError:
            # Only the entropy is wanted of the chains.
            found = by_chains(Walk(measure, energy, b, shape, source), steps, "annealing")
            return _result(measure, energy, b, "closed", found | known)
    if method == "pfaffian" or (anything and solvable(measure, energy)):
        if not solvable(measure, energy):
            raise ValueError(
                "method 'pfaffian' needs a sum over singular values, and no entropy or kappa 1/2 "
                "(complex: or 1)"
            )
        try:
            return _with_moments(measure, energy, b, "pfaffian", {}, few)
        except ArithmeticError as error:
            if not anything:
                raise ValueError(
                    f"method 'pfaffian' fails at rank {measure.rank}: {error}"
                ) from None
    if method == "quadrature" or (anything and few):
        if not few:
            raise ValueError(
                f"method 'quadrature' needs a function of at most {MOST} singular values"
            )
        return _result(measure, energy, b, "quadrature", quadrature(measure, energy, b))
    name = "annealing" if anything else method
    found = by_chains(Walk(measure, energy, b, shape, source), steps, name)
    return _result(measure, energy, b, name, found)


def _with_moments(
    measure: SpectralMeasure, energy: Energy, b: float, name: str, known: dict[str, Any], few: bool
) -> PartitionFunction:
    """Add the moments: from correlations, by quadrature, or for the entropy from chains."""
    if solvable(measure, energy):
        law = polynomial_ensemble(measure, energy, b)
        x = law.x
        assert energy.single is not None
        e = energy.single((measure.span * x).exp())
        volume = measure.log_orbit + law.mean(measure.log_single(x))
        volume += 0.5 * law.pair_mean(lambda rows: measure.log_pair(x[rows, None], x))
        heat = b * b * law.variance(e)
        found = {"energy": law.mean(e), "heat_capacity": heat, "entropy": volume}
        error = law.digits if law.digits > 1e-9 * max(1.0, abs(law.log_z)) else 0.0
        found |= {"log_z": law.log_z, "error": error}
    else:
        # One singular value: every other closed form is that of a solvable law.
        assert few
        found = quadrature(measure, energy, b)
    return _result(measure, energy, b, name, found | known)


def _result(
    measure: SpectralMeasure, energy: Energy, b: float, name: str, found: dict[str, Any]
) -> PartitionFunction:
    """Return the result; homogeneous losses have exact energies at every temperature."""
    errors = {"energy": 0.0, "heat_capacity": 0.0, "entropy": 0.0} | found.pop("errors", {})
    if energy.degree is not None:
        capacity = measure.dimension(measure.rank) / (energy.degree * measure.span)
        found |= {"energy": capacity / b, "heat_capacity": capacity}
        errors |= {"energy": 0.0, "heat_capacity": 0.0}
    return PartitionFunction(method=name, errors=errors, **found)
