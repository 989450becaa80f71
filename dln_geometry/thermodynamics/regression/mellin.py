r"""One integral, ``G(z) = (1/2 pi i) int prod_j Gamma(b_j + v) z^{-v} dv``, a Meijer G function.

``G^{J,0}_{0,J}(z | b)``. With ``b`` the shapes of independent Gamma variables, ``G(z)`` over
``prod Gamma(b_j)`` is the density of the logarithm of their product at log z.
"""

from __future__ import annotations

import numpy as np

# exp(-42) is below the rounding of the sum.
_TAIL = 42.0
# Above this exponent the relative error of Laplace's method is below that of its rounding.
_LARGE = 1e8
_NODES = (32, 64, 128, 256, 512, 1024, 2048)


def saddle(shapes: np.ndarray, log_z: np.ndarray) -> np.ndarray:
    """Return v with ``sum_j psi(b_j + v) = log z``, one for each z, right of all poles."""
    from scipy.special import polygamma, psi

    kinds, counts = np.unique(shapes, return_counts=True)
    above, counts = kinds[:, None] - kinds[0], counts[:, None]

    def gap(x: np.ndarray) -> np.ndarray:
        return (counts * psi(above + np.exp(x))).sum(0) - log_z

    # In x = log(v + min b) it increases from minus infinity to infinity.
    low, high = np.full_like(log_z, -1.0), np.full_like(log_z, 1.0)
    while (gap(low) > 0).any():
        low = np.where(gap(low) > 0, 2 * low, low)
    while (gap(high) < 0).any():
        high = np.where(gap(high) < 0, 2 * high, high)
    x = 0.5 * (low + high)
    for _ in range(200):
        value = gap(x)
        low, high = np.where(value < 0, x, low), np.where(value < 0, high, x)
        u = np.exp(x)
        new = x - value / ((counts * polygamma(1, above + u)).sum(0) * u)
        new = np.where((new > low) & (new < high), new, 0.5 * (low + high))
        done = np.abs(new - x) <= 1e-14 * (1.0 + np.abs(x))
        x = new
        if done.all():
            break
    return np.exp(x) - kinds[0]


def log_meijer(shapes: np.ndarray, log_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``log G`` and an estimate of its error.

    The integral runs through the saddle, upward, and for small z bends to the left, around the
    poles, as the integrand falls fastest there: the trapezoidal rule converges geometrically, for
    parameters of any size and also where poles coincide. Where the exponent loses its digits,
    Laplace's method is as exact.
    """
    from scipy.special import loggamma

    kinds, counts = np.unique(shapes, return_counts=True)
    v = saddle(shapes, log_z)
    top, second, found, term = _laplace(kinds, counts, v, log_z)

    def exponent(step: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the logarithm of the integrand over that of Gamma at the saddle, beside it."""
        total = -step * log_z[at] - top[at]
        for b, count in zip(kinds, counts, strict=True):
            total = total + count * loggamma(b + v[at] + step)
        return total

    error = np.where(np.abs(top) > _LARGE, term**2, np.inf)
    found = np.where(np.abs(top) > _LARGE, found + np.log1p(term), found)
    left = np.flatnonzero(np.abs(top) <= _LARGE)
    # Near a pole the integrand is a peak of this width with a long tail.
    width = 1.0 / np.sqrt(second)
    bend = np.where(log_z < 0, 1.0, 0.0)

    def path(x: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the hyperbola from the saddle and its derivative."""
        sinh, cosh = np.sinh(x), np.cosh(x)
        move = 1j * sinh - bend[at] * (cosh - 1.0)
        return width[at] * move, width[at] * (1j * cosh - bend[at] * sinh)

    end = np.full_like(top, 2.0)
    for _ in range(200):
        low = np.real(exponent(path(end[left], left)[0], left)) > -_TAIL
        if not low.any():
            break
        end[left] = np.where(low, end[left] + 0.25, end[left])
    for nodes in _NODES if len(left) else ():
        x = end[left] / nodes * np.arange(nodes + 1)[:, None]
        step, slope = path(x, left)
        terms = np.imag(np.exp(exponent(step, left)) * slope)
        total = (terms.sum(0) - 0.5 * terms[0]) * x[1] / np.pi
        value = np.log(total) + top[left] - v[left] * log_z[left]
        error[left], found[left] = np.abs(value - found[left]), value
        # The convergence is geometric: the last change is far above the error.
        left = left[error[left] > 1e-12 * (1.0 + np.abs(top[left]))]
        if not len(left):
            break
    return found, error + 100 * np.finfo(float).eps * (1.0 + np.abs(top) + np.abs(v * log_z))


def _laplace(
    kinds: np.ndarray, counts: np.ndarray, v: np.ndarray, log_z: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return ``sum log Gamma`` and its second derivative, ``log G`` by Laplace, the next term."""
    from scipy.special import gammaln, polygamma

    u, weights = kinds[:, None] + v, counts[:, None]
    top = (weights * gammaln(u)).sum(0)
    second, third, fourth = ((weights * polygamma(k, u)).sum(0) for k in (1, 2, 3))
    value = top - v * log_z - 0.5 * np.log(2 * np.pi * second)
    return top, second, value, fourth / (8 * second**2) - 5 * third**2 / (24 * second**3)


def log_meijer_saddle(shapes: np.ndarray, log_z: float) -> tuple[float, float]:
    """Return ``log G`` by Laplace's method, and the size of the next term.

    The error falls like the inverse of the shapes where all of them grow.
    """
    kinds, counts = np.unique(shapes, return_counts=True)
    z = np.array([log_z])
    _, _, value, term = _laplace(kinds, counts, saddle(shapes, z), z)
    return float(value[0]), abs(float(term[0]))


def log_density(shapes: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the log-density at t of the logarithm of a product of Gamma variables."""
    from scipy.special import gammaln

    return log_meijer(shapes, t)[0] - gammaln(shapes).sum()
