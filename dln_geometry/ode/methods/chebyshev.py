"""The Runge-Kutta-Chebyshev method: explicit, stabilised, order 2, any number of stages.

For stiff problems whose Jacobian has a real negative spectrum: the stability interval grows with
the square of the number of stages (Sommeijer, Shampine, Verwer, J. Comput. Appl. Math. 88, 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods.norms import BlockNorms
from dln_geometry.ode.methods.runge_kutta import Field
from dln_geometry.ode.methods.transfers import upload

SAFETY = 1.2  # factor on the spectral radius, which power iteration approaches from below


@dataclass(frozen=True)
class Chebyshev:
    """Declare the method; by default each step takes as many stages as stability needs.

    Examples
    --------
    >>> dln.ode.Chebyshev(stages=10).order
    2
    """

    stages: int | None = None
    name: str = "rkc"
    order: int = 2
    error_order: int = 2

    def __post_init__(self) -> None:
        if self.stages is not None and not (isinstance(self.stages, int) and self.stages >= 2):
            raise ValueError(f"stages must be an integer >= 2, got {self.stages!r}")


RKC = Chebyshev()


class Coefficients(NamedTuple):
    """The recursion ``D_j = mu_j D_{j-1} + nu_j D_{j-2} + h (mut_j f_{j-1} + gat_j f_0)``.

    ``D_j = Y_j - y``, ``D_0 = 0``, ``D_1 = h mut_1 f_0``; arrays are indexed by ``j``.
    """

    mu: np.ndarray
    nu: np.ndarray
    mut: np.ndarray
    gat: np.ndarray
    c: np.ndarray


@lru_cache(maxsize=256)
def coefficients(stages: int) -> Coefficients:
    r"""Return the coefficients of the method with `stages` stages in closed form.

    With ``w0 = 1 + (2/13)/s^2``, ``w1 = T_s'(w0)/T_s''(w0)``, ``b_j = T_j''(w0)/T_j'(w0)^2``
    (``b_0 = b_1 = b_2``): ``mut_1 = b_1 w1``, ``mu_j = 2 b_j w0/b_{j-1}``, ``nu_j = -b_j/b_{j-2}``,
    ``mut_j = 2 b_j w1/b_{j-1}``, ``gat_j = -(1 - b_{j-1} T_{j-1}(w0)) mut_j``,
    ``c_j = w1 T_j''(w0)/T_j'(w0)``, ``c_1 = c_2/T_2'(w0)``.

    Examples
    --------
    >>> dln.ode.coefficients(2).c  # times of the stages, as shares of the step
    array([0.        , 0.24074074, 1.        ])
    """
    w0 = 1 + 2 / 13 / stages**2
    # Recurrences, since the hyperbolic forms of T'' cancel where w0 is close to 1.
    value, first, second = (np.zeros(stages + 1) for _ in range(3))
    value[:2], first[1] = (1.0, w0), 1.0
    for j in range(2, stages + 1):
        value[j] = 2 * w0 * value[j - 1] - value[j - 2]
        first[j] = 2 * value[j - 1] + 2 * w0 * first[j - 1] - first[j - 2]
        second[j] = 4 * first[j - 1] + 2 * w0 * second[j - 1] - second[j - 2]
    b = np.empty(stages + 1)
    b[2:] = second[2:] / first[2:] ** 2
    b[:2] = b[2]
    w1 = first[-1] / second[-1]
    mu, nu, mut, gat, c = (np.zeros(stages + 1) for _ in range(5))
    mut[1] = b[1] * w1
    mu[2:] = 2 * w0 * b[2:] / b[1:-1]
    nu[2:] = -b[2:] / b[:-2]
    mut[2:] = 2 * w1 * b[2:] / b[1:-1]
    gat[2:] = -(1 - b[1:-1] * value[1:-1]) * mut[2:]
    c[2:] = w1 * second[2:] / first[2:]
    c[1] = c[2] / first[2]
    return Coefficients(mu, nu, mut, gat, c)


@lru_cache(maxsize=256)
def _weights(stages: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return the weights of every stage from 2 on.

    Even stages multiply the rows (h f_0, h f_{j-1}, D_{j-1}) of the buffer, odd ones the rows
    (D_{j-1}, h f_0, h f_{j-1}).
    """
    k = coefficients(stages)
    table = [
        (k.gat[j], k.mut[j], k.mu[j]) if j % 2 == 0 else (k.mu[j], k.gat[j], k.mut[j])
        for j in range(2, stages + 1)
    ]
    return list(torch.tensor(np.array(table), dtype=dtype, device=device).unbind(0))


def stage_number(hrho: float) -> int:
    """Return the least number of stages whose stability interval holds `hrho`.

    ``s = ceil(sqrt(1 + 1.54 h rho))``, at least 2.

    Examples
    --------
    >>> dln.ode.stage_number(0.0), dln.ode.stage_number(100.0), dln.ode.stage_number(10_000.0)
    (2, 13, 125)
    """
    return max(2, math.ceil(math.sqrt(1 + 1.54 * hrho)))


class ChebyshevStepper:
    """Step with one number of stages for the whole batch.

    The buffer keeps the increments ``D_j = Y_j - y``: their rounding errors scale with the change
    over the step, which matters in single precision where the flow converges. A nonlinear power
    iteration estimates the spectral radius of each sample for the next step.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> y, norms = torch.ones(1, 1, dtype=torch.float64), dln.ode.BlockNorms([1])
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> stepper = dln.ode.ChebyshevStepper(dln.ode.Chebyshev(), decay, y, norms)
    >>> stepper.prepare(0.1)  # stages for h times the spectral radius
    >>> decay(None, y, stepper.f)  # a step begins with the velocity of the last one
    >>> _ = stepper.step(np.array([0.0]), np.array([0.1]), y)
    >>> abs(float(stepper.y_new) / math.exp(-0.1) - 1) < 1e-3
    True
    """

    rows = 3
    due = 25  # after so many steps, estimate the spectral radius again

    def __init__(self, method: Chebyshev, field: Field, y: Tensor, norms: BlockNorms) -> None:
        self.method, self.field = method, field
        self.name, self.error_order = method.name, method.error_order
        buffer = y.new_zeros((8, *y.shape))
        self._even, self._start, self._slope, self._odd = buffer[:4]
        self.f_new, self._estimate, self.y_new, self.f = buffer[4:]
        self.obs_new: Tensor | None = None
        self._argument = self.y_new  # Free until the last stage.
        flat = buffer.view(8, -1)
        low, high = flat[:3].T, flat[1:4].T
        # Even stages overwrite the first row and read the other three, odd ones the reverse.
        self._recursion = (flat[0], high, self._even), (flat[3], low, self._odd)
        final = y.new_tensor([-0.8, 0.4, 0.4])
        self._final, self._flat_estimate = ((low, final), (high, final.flip(0))), flat[5]
        self._views, self._norms = norms.views(buffer[4:7]), norms
        self.eigenvector = torch.empty_like(y)
        self._found: Tensor | None = None
        self.evaluations = self.iterations = 0
        self.stages, self.age = method.stages or 2, self.due

    @property
    def radius_rows(self) -> int:
        """Of the norms that a trial returns, those that are spectral radii."""
        return 2 if self.iterations else 0

    def longest(self, rho: np.ndarray, most_stages: int) -> np.ndarray:
        """Return the longest stable steps (B,) with a number of stages."""
        most = self.method.stages or most_stages
        with np.errstate(divide="ignore"):
            return np.where(rho > 0, (most**2 - 1) / (1.54 * SAFETY * rho), np.inf)

    def prepare(self, hrho: float) -> None:
        """Choose the stages of the next step, and whether it estimates the spectral radius."""
        self.stages = self.method.stages or stage_number(SAFETY * hrho)
        self.iterations = 3 if self.age >= self.due else 0

    def step(self, t: np.ndarray, h: np.ndarray, y: Tensor) -> list[Tensor]:
        """Try a step from (t, y); return norms of f_new, estimate and y_new, and radii if any."""
        s, k = self.stages, coefficients(self.stages)
        times = np.concatenate((t + k.c[:, None] * h, (t + h, h)))
        *nodes, step = upload(times, y).unbind(0)
        step = step.unsqueeze(-1)
        radii = self.power(nodes[0], y) if self.iterations else []
        torch.mul(self.f, step, out=self._start)
        self._even.zero_()
        torch.mul(self._start, float(k.mut[1]), out=self._odd)
        newest = self._odd
        weights = _weights(s, y.dtype, y.device)
        for j in range(2, s + 1):
            torch.add(y, newest, out=self._argument)
            self.field(nodes[j - 1], self._argument, self._slope)
            self._slope.mul_(step)
            flat, others, newest = self._recursion[j % 2]
            flat.addmv_(others, weights[j - 2], beta=float(k.nu[j]))
        torch.add(y, newest, out=self.y_new)
        self.obs_new = self.field(nodes[s + 1], self.y_new, self.f_new)
        torch.mul(self.f_new, step, out=self._slope)
        rows, final = self._final[s % 2]
        torch.mv(rows, final, out=self._flat_estimate)
        self.evaluations = s + self.iterations
        return [*BlockNorms.of(self._views), *radii]

    def error(self, h: np.ndarray, norms: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return the maximum over blocks of ``|0.8 (y - y_new) + 0.4 h (f + f_new)| / scale``."""
        return (norms[1] / scale).max(axis=0)

    def commit(self) -> None:
        """Count the trial and keep the eigenvector of its power iterations."""
        self.age += 1
        if self._found is not None:
            self.eigenvector, self._found = self._found, None

    def seed(self, direction: Tensor) -> None:
        """Start the next power iteration from a direction, and let it begin at once."""
        # Add a rough vector: a smooth one has almost no component along the stiff modes.
        index = self._norms.places(direction)
        # Fractional parts of multiples of the golden ratio: no two neighbours are alike.
        rough = (torch.frac(index * 0.6180339887498949) - 0.5).to(direction.dtype)
        rough = 0.1 * rough / self._norms.lengths(rough[None])
        size = self._norms.lengths(direction)[:, None]
        unit = torch.where((size > 0) & torch.isfinite(size), direction / size, 0.0)
        self.eigenvector = unit + rough
        self._found, self.age = None, self.due

    def state(self) -> dict[str, Any]:
        """Return a copy of all that the next step needs."""
        return {"f": self.f.clone(), "eigenvector": self.eigenvector.clone(), "age": self.age}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.f.copy_(state["f"])
        self.eigenvector = state["eigenvector"].to(self.f.device).clone()
        self.age = state["age"]

    def power(self, t: Tensor, y: Tensor) -> list[Tensor]:
        """Return the last two estimates of the spectral radius, (B,) each."""
        eps = torch.finfo(y.dtype).eps
        size = self._norms.lengths(y)[:, None]
        distance = math.sqrt(eps) * torch.where(size > 0, size, 1.0)
        v = self.eigenvector
        radii: list[Tensor] = []
        for _ in range(self.iterations):
            length = self._norms.lengths(v)[:, None]
            torch.add(y, v * (distance / torch.where(length > 0, length, 1.0)), out=self._argument)
            self.field(t, self._argument, self._slope)
            v = self._slope - self.f
            radii.append((self._norms.lengths(v)[:, None] / distance).squeeze(-1))
        # Keep the old eigenvector where the new direction is zero or not finite.
        size = self._norms.lengths(v)[:, None]
        self._found = torch.where((size > 0) & torch.isfinite(size), v, self.eigenvector)
        return radii[-2:]
