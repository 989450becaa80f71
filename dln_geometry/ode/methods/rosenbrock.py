"""A Rosenbrock method: linearly implicit, L-stable, order 5, for stiff problems of small states.

Every step solves linear systems with ``1 - gamma h J``, J the Jacobian of the field: their size
bounds the state, the stiffness does not bound the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods.jacobians import Jacobian, Parts, differences, solver
from dln_geometry.ode.methods.norms import BlockNorms
from dln_geometry.ode.methods.runge_kutta import Field, Row
from dln_geometry.ode.methods.transfers import upload

Projection = Callable[[Tensor, Tensor], Tensor]
"""``project(y, y_new)`` returns new states (B, n) on the invariants of the field; with ``shift``
the distance (B,) between states (B, n), of which some may be the same up to a symmetry."""

MOST_NUMBERS = 200
"""Numbers of a state up to which `auto` takes the method."""

MOST_COST = 100.0
"""Evaluations that a step may be worth if `auto` is to take the method."""


@dataclass(frozen=True)
class Rosenbrock:
    r"""Declare a stiffly accurate Rosenbrock method.

    ``(1 - gamma h J) U_i = gamma ( h f(t + c_i h, Y_i) + sum_{j<i} g_ij U_j + h^2 d_i f_t )``,
    ``Y_i = y + sum_{j<i} a_ij U_j``; ``y_new = Y_s + U_s``, error ``U_s``.

    Examples
    --------
    >>> from dln_geometry.ode.methods import rosenbrock
    >>> method = rosenbrock.RODAS
    >>> method.order > method.error_order
    True
    """

    name: str
    order: int
    error_order: int
    gamma: float
    a: tuple[Row, ...]
    g: tuple[Row, ...]
    c: Row
    d: Row


_LAST = (
    *(-7.502846399306121, 2.561846144803919, -11.627539656261098),
    *(-0.18268767659942256, 0.030198172008377946),
)

RODAS = Rosenbrock(
    name="rodas",
    order=5,
    error_order=4,
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _LAST,
        (*_LAST, 1.0),
        (*_LAST, 1.0, 1.0),
    ),
    g=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            *(24.854864614690072, -3.0009227002832186, 47.4931110020768),
            *(5.5814197821558125, -0.6610691825249471),
        ),
        (
            *(30.91273214028599, -3.1208243349937974, 77.79954646070892),
            *(34.28646028294783, -19.097331116725623, -28.087943162872662),
        ),
        (
            *(37.80277123390563, -3.2571969029072276, 112.26918849496327),
            *(66.9347231244047, -40.06618937091002, -54.66780262877968, -9.48861652309627),
        ),
    ),
    c=(
        *(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664),
        *(1.0, 1.0, 1.0),
    ),
    d=(
        *(0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734),
        *(2.325825639765069, 0.0, 0.0, 0.0),
    ),
)
"""Rodas5P of Steinebach, BIT Numer. Math. 63, 27 (2023), 8 stages."""


SHIFT = 0.01
"""Share of the shift by a projection that counts as an error: it falls slower than the estimate, so
that a whole one would make steps fail in a row near a rank drop, where they overshoot a little."""


class RosenbrockStepper:
    """Step with a Rosenbrock method; the Jacobian is renewed when a sample has moved.

    One buffer holds the stages, the velocity, the estimate and the new state. Where `project` is
    given, it restores the invariants of the new state before the field is evaluated there, and
    what it moves a state by, in the distance `shift`, counts as an error of the step.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> y, norms = torch.ones(1, 1, dtype=torch.float64), dln.ode.BlockNorms([1])
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> stepper = dln.ode.RosenbrockStepper(dln.ode.RODAS, decay, y, norms)
    >>> decay(None, y, stepper.f)  # a step begins with the velocity of the last one
    >>> _ = stepper.step(np.array([0.0]), np.array([0.1]), y)
    >>> abs(float(stepper.y_new) / math.exp(-0.1) - 1) < 1e-8
    True
    """

    rows = 4

    def __init__(
        self,
        method: Rosenbrock,
        field: Field,
        y: Tensor,
        norms: BlockNorms,
        *,
        jacobian: Jacobian | None = None,
        project: Projection | None = None,
        shift: Projection | None = None,
        autonomous: bool = False,
    ) -> None:
        self.method, self.field, self.project, self.shift = method, field, project, shift
        self.jacobian = jacobian or (lambda t, x: differences(field, t, x))
        self.name, self.error_order = method.name, method.error_order
        stages, n = len(method.a), y.shape[-1]
        buffer = y.new_zeros((stages + 4, *y.shape))
        self._stages = buffer[:stages]
        self.f_new, self._estimate, self._shifted, self.y_new = buffer[stages:]
        self.f, self._slope, self._argument = (torch.empty_like(y) for _ in range(3))
        self.obs_new: Tensor | None = None
        flat = buffer.view(len(buffer), -1)
        self._before = [flat[:i].T for i in range(stages)]
        self._a, self._g = (
            [torch.tensor(row, dtype=y.dtype, device=y.device) for row in rows]
            for rows in (method.a, method.g)
        )
        self._nodes = np.array([*method.c, 1.0, 0.0])[:, None]
        self._views = norms.views(buffer[stages:])
        self._autonomous = autonomous
        # The derivative counts for as many evaluations as it has columns.
        self._of_jacobian = n if jacobian is not None else 2 * n
        self._matrix: Tensor | Parts | None = None
        self.evaluations, self.radius_rows = stages, 2

    def commit(self, moved: bool) -> None:
        """Forget the Jacobian if a sample has moved."""
        if moved:
            self._matrix = None

    def step(self, t: np.ndarray, h: np.ndarray, y: Tensor) -> list[Tensor]:
        """Try a step of sizes h (B,) from (t, y); return norms and two spectral radii."""
        method = self.method
        times = t + self._nodes * h
        times[-1] = h
        *nodes, step = upload(times, y).unbind(0)
        step = step.unsqueeze(-1)
        self.evaluations = len(method.a)
        if self._matrix is None:
            self._matrix = self.jacobian(nodes[0], y)
            self.evaluations += self._of_jacobian
        solve = solver(self._matrix, step.unsqueeze(-1), method.gamma)
        drift = None if self._autonomous else self._time_derivative(t, h, y, step)
        for i, before in enumerate(self._before):
            stage, slope = self._stages[i], self.f
            if i:
                self._sum(before, self._a[i], self._argument)
                self._argument.add_(y)
                slope = self._slope
                self.field(nodes[i], self._argument, slope)
            right = step * slope
            if drift is not None and method.d[i]:
                right.add_(drift, alpha=method.d[i])
            if i:
                self._sum(before, self._g[i], stage)
                right.add_(stage)
            right.mul_(method.gamma)
            stage.copy_(solve(right))
        self._estimate.copy_(self._stages[-1])
        torch.add(self._argument, self._estimate, out=self.y_new)
        if self.project is not None:
            restored = self.project(y, self.y_new)
            if self.shift is None:
                torch.sub(restored, self.y_new, out=self._shifted)
            else:
                self._shifted[:, 0] = self.shift(self.y_new, restored)
            self.y_new.copy_(restored)
        self.obs_new = self.field(nodes[-1], self.y_new, self.f_new)
        return [*BlockNorms.of(self._views), *self._radii(y)]

    def _sum(self, before: Tensor, weights: Tensor, out: Tensor) -> None:
        """Write the weighted sum of the first stages."""
        torch.mv(before, weights, out=out.view(-1))

    def _time_derivative(self, t: np.ndarray, h: np.ndarray, y: Tensor, step: Tensor) -> Tensor:
        """Return ``h^2 f_t`` by central differences."""
        share = torch.finfo(y.dtype).eps ** (1 / 3)
        late, early = torch.empty_like(y), torch.empty_like(y)
        for sign, out in ((share, late), (-share, early)):
            self.field(upload(t + sign * h, y), y, out)
        self.evaluations += 2
        return (late - early).mul_(step / (2 * share))

    def _radii(self, y: Tensor) -> list[Tensor]:
        """Return two estimates of the spectral radius of J, (B,) each, by power iteration."""
        assert self._matrix is not None
        v = torch.frac(torch.arange(1, y.shape[-1] + 1, device=y.device) * 0.6180339887498949)
        v = (v.to(y.dtype) - 0.5).expand_as(y).unsqueeze(-1)
        radii = []
        for _ in range(4):
            length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
            v = v / torch.where(length > 0, length, 1.0)
            v = self._matrix.times(v) if isinstance(self._matrix, Parts) else self._matrix @ v
            radii.append(torch.linalg.vector_norm(v, dim=(1, 2)))
        return radii[-2:]

    def error(self, h: np.ndarray, norms: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return the maximum over blocks of ``|U_s| / scale``, or of the shift of the projection.

        A change of the state behind the back of the estimate must not pass unseen.
        """
        step, shift = (norms[1:3] / scale).max(axis=1)
        return np.maximum(step, SHIFT * shift)

    def state(self) -> dict[str, Any]:
        """Return a copy of all that the next step needs; the Jacobian is computed again."""
        return {"f": self.f.clone()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.f.copy_(state["f"])
        self._matrix = None


def step_cost(n: int, batch: int) -> float:
    """Return what a step of a batch of states of n numbers is worth in evaluations of the field.

    Measured on a CPU: a single small sample is bound by the overhead of each operation, so that the
    n columns of a Jacobian cost little more than one.
    """
    return 14.0 + 3.0 * n * batch / (batch + 64.0)
