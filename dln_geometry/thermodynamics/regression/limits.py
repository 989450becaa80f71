"""Wide networks with as many samples: the equation for the renormalised scale of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.thermodynamics.regression.data import data_of, prior_of


def renormalized_scales(
    inputs: Any, outputs: Any, widths: Sequence[int], *, variances: Any = 1.0
) -> Tensor:
    r"""Return by how much the kernel of a wide network is rescaled by the data, shape (m,).

    In the limit of widths and samples that grow together, without noise. Given the layers above the
    first, the m outputs have the covariance K times the kernel of the inputs, and the posterior of
    K concentrates. With ``R = Y^T (A A^T)^+ Y / M'``, ``M' = (v_1/d_0) prod v_{p+1}``, its
    eigenvalues over those at infinite width are ``u = prod_p (1 - c/d_p)``, with c the root below
    ``min d_p`` of ``k - c = r/u``, k the rank of the inputs and r an eigenvalue of R. For equal
    widths, ``u = t^{N-1}``, this is ``1 - t = alpha (1 - r/(k u))``, ``alpha = k/d``.

    For one output it is the limit of `BayesianRegression.scale` at every depth. For several outputs
    all layers are taken to share the eigenvectors of R (as in samples of one and two hidden
    layers they do).

    Parameters
    ----------
    inputs, variances
        As in `bayesian_regression`.
    outputs : array_like, shape (P,) or (P, m)
    widths : sequence of int
        ``(n, d_1, .., d_{N-1}, m)``.

    Returns
    -------
    Tensor, shape (m,)
        Descending; 1 at infinite width.

    Raises
    ------
    ValueError
        If no linear function gives the outputs, or an eigenvalue of R is zero and
        ``k >= min d_p``.

    References
    ----------
    Li, Sompolinsky, Phys. Rev. X 11, 031059, arXiv 2012.04030.

    Examples
    --------
    >>> inputs, outputs = torch.eye(40, 50), torch.full((40,), 0.2)
    >>> wide = dln.thermodynamics.renormalized_scales(inputs, outputs, (50, 80, 1))
    >>> exact = dln.thermodynamics.bayesian_regression(inputs, outputs, (50, 80, 1))
    >>> bool((wide / exact.scale - 1).abs() < 0.02)
    True
    """
    data = data_of(inputs, outputs, widths, several=True)
    log_m, shapes = prior_of(data.widths, variances)
    data.check_reached()
    hidden = 2.0 * shapes
    at_infinity = np.exp(log_m + np.log(shapes).sum())
    scaled = data.coordinates / data.singular[:, None]
    ratios = np.linalg.svd(scaled, compute_uv=False) ** 2 / at_infinity if data.rank else []
    m = data.widths[-1]
    values = np.zeros(m)
    values[: len(ratios)] = ratios
    found = [_scale(data.rank, float(r), hidden) for r in values]
    return torch.from_numpy(np.array(found)).to(data.like)


def _scale(k: int, r: float, hidden: np.ndarray) -> float:
    """Return ``u = prod (1 - c/d_p)`` with ``(k - c) u = r``."""
    from scipy.optimize import brentq

    if not len(hidden):
        return 1.0
    least = float(hidden.min())
    if r == 0:
        if k >= least:
            raise ValueError(
                "outputs must span all m directions where the inputs' rank reaches the least "
                f"width, {k} >= {int(least)}: the scale of the others tends to zero"
            )
        return float(np.prod(1.0 - k / hidden))

    # c = least - first - e^x, so that all factors are sums of positive numbers.
    first = max(least - k, 0.0)
    fixed = max(k - least, 0.0)

    def excess(x: float) -> float:
        factors = np.log((hidden - least + first + np.exp(x)) / hidden).sum()
        return float(np.log(fixed + np.exp(x)) + factors - np.log(r))

    x: Any = brentq(excess, -690.0, 690.0 / (1 + len(hidden)), xtol=1e-13)
    return float(np.prod((hidden - least + first + np.exp(x)) / hidden))
