"""Evidence and posterior of the end-to-end vector of a deep linear network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.support import as_choice, as_positive
from dln_geometry.thermodynamics.regression.data import Data, data_of, prior_of
from dln_geometry.thermodynamics.regression.mellin import (
    log_density,
    log_meijer,
    log_meijer_saddle,
)

_METHODS = ("auto", "meijer", "quadrature", "saddle", "lognormal")
_TAIL = 45.0


@dataclass(frozen=True)
class BayesianRegression:
    """Evidence and posterior of the end-to-end vector; made by `bayesian_regression`.

    Attributes
    ----------
    log_evidence : float
        Logarithm of the density of the outputs, given the inputs.
    posterior_mean : Tensor, shape (n,)
    posterior_covariance : Tensor, shape (n, n)
    scale : float
        Posterior mean of the prior's variance of an entry of w, over that at infinite width.
    error : float
        Estimated error of `log_evidence`.
    method : str
        How it was computed.

    Examples
    --------
    >>> found = dln.thermodynamics.bayesian_regression([[1.0, 0.0]], [2.0], (2, 3, 1))
    >>> found.method, found.posterior_mean
    ('meijer', tensor([2., 0.]))
    """

    log_evidence: float
    posterior_mean: Tensor
    posterior_covariance: Tensor
    scale: float
    error: float
    method: str


def bayesian_regression(
    inputs: Any,
    outputs: Any,
    widths: Sequence[int],
    *,
    noise: float = 0.0,
    variances: Any = 1.0,
    method: str = "auto",
) -> BayesianRegression:
    r"""Return evidence and posterior of ``w = (W_N .. W_1)^T`` under Gaussian layers.

    Prior: the entries of W_p are independent, of variance ``v_p / d_{p-1}``. Given the layers above
    the first, w is Gaussian with the variance ``S = (v_1/d_0) prod_{p=1}^{N-1} (2 v_{p+1}/d_p)
    g_p`` of each entry, ``g_p`` independent Gamma variables of shape ``d_p/2``: a Gaussian scale
    mixture. Outputs are ``y_k = <w, x_k>`` and Gaussian noise. Without noise, with k the rank of
    the inputs A and ``q = |A^+ y|^2``, the evidence is a Meijer G function,

    ``(pi q)^{-k/2} det(A A^T)^{-1/2} G^{N,0}_{0,N}(q/(2M) | k/2, d_1/2, .., d_{N-1}/2)
    / prod_p Gamma(d_p/2)``, ``M = S / prod g_p``,

    and the posterior mean of S is ``(q/2)`` times a quotient of two of them. With noise it is an
    integral over log S. Several outputs have a matrix in the place of S, a product of Wishart
    matrices, and no such closed form; `renormalized_scales` has their limit of large widths.

    Parameters
    ----------
    inputs : array_like, shape (P, n)
    outputs : array_like, shape (P,) or (P, 1)
    widths : sequence of int
        ``(n, d_1, .., d_{N-1}, 1)``.
    noise : float
        Standard deviation of the outputs.
    variances : float or sequence of N floats
        The v_p.
    method : str
        ``"meijer"``: the closed form, without noise. ``"quadrature"``: over log S, with noise or
        without. ``"saddle"``: Laplace's method on the closed form, for widths and P that grow
        together; the error is the size of the next term. ``"lognormal"``: log S as a normal
        variable, exact where depth and widths grow with ``sum_p 1/d_p`` fixed; the error is the
        size of the term of the third cumulant. ``"auto"``: the closed form without noise, else
        quadrature.

    Returns
    -------
    BayesianRegression
        Computed in double precision, the posterior in the dtype of the inputs. Where inputs have
        lower rank than P the evidence without noise is the density on the outputs that they reach.

    Raises
    ------
    ValueError
        If there is no noise and no w gives the outputs, or all outputs are zero and the evidence is
        infinite (``k >= min d_p``).

    References
    ----------
    Hanin, Zlokapa, arXiv 2212.14457 (closed form without noise).

    Examples
    --------
    >>> inputs, outputs = [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [1.0, 2.0]
    >>> found = dln.thermodynamics.bayesian_regression(inputs, outputs, (3, 5, 5, 1))
    >>> again = dln.thermodynamics.bayesian_regression(
    ...     inputs, outputs, (3, 5, 5, 1), method="quadrature"
    ... )
    >>> abs(found.log_evidence - again.log_evidence) < 1e-10
    True
    >>> found.posterior_covariance.diagonal() / found.posterior_covariance[2, 2]
    tensor([0., 0., 1.])
    """
    noise = as_positive(noise, "noise", zero=True)
    data = data_of(inputs, outputs, widths, noise)
    log_m, shapes = prior_of(data.widths, variances)
    method = as_choice(method, _METHODS, "method")
    if method == "auto":
        method = "meijer" if noise == 0 else "quadrature"
    if noise == 0:
        data.check_reached()
        if data.square == 0 and len(shapes) and not data.rank / 2 < shapes.min():
            raise ValueError(
                "outputs must not all be zero where the inputs' rank reaches the least width, "
                f"{data.rank} >= {int(2 * shapes.min())}: the evidence without noise is infinite"
            )
    elif method in ("meijer", "saddle"):
        raise ValueError(f"noise must be 0 for method {method!r}, got {noise}")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if method in ("meijer", "saddle"):
            found = _closed(data, log_m, shapes, method)
        else:
            found = _integrated(data, noise, log_m, shapes, method)
    log_evidence, mean, covariance, log_scale, error = found
    lost = method in ("meijer", "quadrature") and not error < 0.1
    if lost or not abs(log_evidence) < 1e12:
        raise ValueError(
            "outputs must be within reach of the prior, got a log-evidence of "
            f"{log_evidence:.1e}, whose digits are lost"
        )
    # At infinite width every g_p is d_p/2.
    at_infinity = log_m + float(np.log(shapes).sum())
    here = {"dtype": data.like.dtype, "device": data.like.device}
    return BayesianRegression(
        log_evidence=float(log_evidence),
        posterior_mean=torch.from_numpy(mean).to(**here),
        posterior_covariance=torch.from_numpy(covariance).to(**here),
        scale=float(np.exp(log_scale - at_infinity)),
        error=float(error),
        method=method,
    )


_Found = tuple[float, np.ndarray, np.ndarray, float, float]


def _closed(data: Data, log_m: float, shapes: np.ndarray, method: str) -> _Found:
    """Evaluate the Meijer G functions, exactly or by Laplace's method."""
    from scipy.special import gammaln

    k, q = data.rank, data.square

    def log_moment(power: float) -> tuple[float, float]:
        """Return ``log E[S^{-power} exp(-q/(2S))]`` and its error."""
        if q == 0:
            value = gammaln(shapes - power).sum() - gammaln(shapes).sum() - power * log_m
            return float(value), 1e-15 * abs(value)
        b, log_z = np.append(shapes, power), float(np.log(q / 2) - log_m)
        if method == "saddle":
            value, error = log_meijer_saddle(b, log_z)
        else:
            values, errors = log_meijer(b, np.array([log_z]))
            value, error = float(values[0]), float(errors[0])
        return value - gammaln(shapes).sum() - power * np.log(q / 2), error

    value, error = log_moment(k / 2)
    log_scale = log_moment(k / 2 - 1)[0] - value
    evidence = value - 0.5 * k * np.log(2 * np.pi) - np.log(data.singular).sum()
    free = np.eye(data.n) - data.right.T @ data.right
    return evidence, data.solution, np.exp(log_scale) * free, log_scale, error


def _integrated(data: Data, noise: float, log_m: float, shapes: np.ndarray, method: str) -> _Found:
    """Integrate over the logarithm t of the product of Gamma variables, ``S = M e^t``."""
    if not len(shapes):
        t, log_weight, error = np.zeros(1), data.log_likelihood(np.array([log_m]), noise), 0.0
        log_evidence = float(log_weight[0])
    else:
        normal, skewness = _normal_prior(shapes)
        prior = normal if method == "lognormal" else lambda t: log_density(shapes, t)
        t, log_weight, log_evidence, error = _integral(
            lambda t: prior(t) + data.log_likelihood(t + log_m, noise), shapes
        )
        if method == "lognormal":
            error += abs(float(np.exp(log_weight - log_evidence) @ skewness(t)))
    share = np.exp(log_weight - log_evidence)
    scale = np.exp(t + log_m)
    x = data.singular
    shrunk = np.ones((len(t), data.rank))
    if noise > 0:
        shrunk = scale[:, None] * x**2 / (scale[:, None] * x**2 + noise**2)
    coordinates = shrunk * (data.coordinates / x)
    mean = share @ coordinates
    # The law of total covariance, on the row space and beside it.
    moved = coordinates - mean
    inside = np.diag(share @ (scale[:, None] * (1.0 - shrunk))) + (share[:, None] * moved).T @ moved
    mean_scale = float(share @ scale)
    free = np.eye(data.n) - data.right.T @ data.right
    covariance = data.right.T @ inside @ data.right + mean_scale * free
    found = data.right.T @ mean, covariance, float(np.log(mean_scale))
    return log_evidence, *found, error


def _normal_prior(shapes: np.ndarray) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the normal law with the cumulants of t, and the next term of its expansion."""
    from scipy.special import polygamma, psi

    mean, sd = psi(shapes).sum(), np.sqrt(polygamma(1, shapes).sum())
    third = polygamma(2, shapes).sum() / sd**3

    def log_normal(t: np.ndarray) -> np.ndarray:
        return -0.5 * ((t - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)

    def term(t: np.ndarray) -> np.ndarray:
        u = (t - mean) / sd
        return third / 6 * (u**3 - 3 * u)

    return log_normal, term


def _integral(
    log_f: Callable[[np.ndarray], np.ndarray], shapes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Return nodes, logarithms of weights times values, the logarithm of the sum, its error."""
    from scipy.special import polygamma, psi

    center, width = psi(shapes).sum(), 8.0 * np.sqrt(polygamma(1, shapes).sum()) + 4.0
    low, high = center - width, center + width
    for _ in range(80):
        t = np.linspace(low, high, 257)
        values = log_f(t)
        values[~np.isfinite(values)] = -np.inf
        if not np.isfinite(values).any():
            return t, values, -np.inf, np.inf
        kept = np.flatnonzero(values >= values.max() - _TAIL)
        left, right, step = kept[0] == 0, kept[-1] == 256, high - low
        low = low - step if left else t[kept[0] - 1]
        high = high + step if right else t[kept[-1] + 1]
        if len(kept) > 32 and not left and not right:
            break
    nodes, t = 64, np.linspace(low, high, 65)
    values = log_f(t)
    last = float(np.logaddexp.reduce(values)) + np.log((high - low) / nodes)
    while True:
        nodes *= 2
        t, coarse = np.linspace(low, high, nodes + 1), values
        values = np.empty(nodes + 1)
        values[::2], values[1::2] = coarse, log_f(t[1::2])
        log_weight = values + np.log((high - low) / nodes)
        total = float(np.logaddexp.reduce(log_weight))
        error, last = abs(total - last), total
        if error < 1e-13 * (1 + abs(total)) or nodes >= 4096:
            return t, log_weight, total, error
