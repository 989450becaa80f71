"""Explicit Runge-Kutta methods, and `ExplicitStepper`, which tries one step of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods.norms import BlockNorms, move_pieces, norms_by_pieces, pieces_of
from dln_geometry.ode.methods.transfers import upload

Row = tuple[float, ...]

Field = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""``field(t, y, out)`` writes dy/dt at ``t (B,)``, ``y (B, n)`` into ``out (B, n)`` and returns
observables ``(B, k)`` or None."""


@dataclass(frozen=True)
class RungeKutta:
    r"""Declare an embedded explicit Runge-Kutta method.

    ``Y_i = y + h sum_{j<i} a_ij f(t + c_j h, Y_j)``, ``y_new = y + h sum_i b_i f(t + c_i h, Y_i)``,
    error ``h |sum_i e_i f_i|``; with two rows e of error weights, Hairer's combination
    ``h |e1|^2 / sqrt(|e1|^2 + 0.01 |e2|^2)``.
    """

    name: str
    order: int
    error_order: int  # the error estimate of a step is O(h^(error_order + 1))
    a: tuple[Row, ...]
    b: Row
    c: Row
    e: tuple[Row, ...]
    fsal: bool  # whether the last stage is the first one of the next step
    real_stability: float  # length of the stability interval on the negative real axis

    @property
    def evaluations(self) -> int:
        """Evaluations of the field per step, the one at the end of the step included."""
        return len(self.b) - 1 if self.fsal else len(self.b)


class Tableau(NamedTuple):
    """Coefficients of a method as tensors; stage 0 is ``f(y)``, the last stage ``f(y_new)``.

    Stage i lies in the place ``places[i]`` of the buffer: stages that few others use lie apart.
    ``rows[i - 1]`` weighs the places ``spans[i - 1]`` for the argument of stage ``i``. ``weights``
    has a row per error estimate; where the last two stages both stand at the end of the step, two
    rows follow, for the differences of their arguments (over h) and of their derivatives: the ratio
    of the norms estimates the spectral radius.
    """

    places: tuple[int, ...]
    spans: tuple[slice, ...]
    rows: tuple[Tensor, ...]
    weights: Tensor
    nodes: tuple[float, ...]
    has_stiffness_rows: bool


@lru_cache(maxsize=64)
def tableau(method: RungeKutta, dtype: torch.dtype, device: torch.device) -> Tableau:
    """Convert a method to tensors of a dtype and device, once."""
    a, c, e = list(method.a), list(method.c), list(method.e)
    if not method.fsal:
        a.append(method.b)
        c.append(1.0)
        e = [(*row, 0.0) for row in e]
    weights = [list(row) for row in e]
    stiff = len(c) > 2 and c[-2] == 1.0
    if stiff:
        before, last = ((*row, *(0.0,) * (len(c) - len(row))) for row in a[-2:])
        weights.append([x - y for x, y in zip(last, before, strict=True)])
        weights.append([0.0] * (len(c) - 2) + [-1.0, 1.0])
    places = _slots_of(a)
    spans = [_used_slots(places, row) for row in a[1:]]
    order = np.argsort(places)
    rows = tuple(
        torch.tensor([row[k] for k in order[span]], dtype=dtype, device=device)
        for row, span in zip(a[1:], spans, strict=True)
    )
    estimates = torch.tensor(np.array(weights)[:, order], dtype=dtype, device=device)
    return Tableau(places, tuple(spans), rows, estimates, tuple(c), stiff)


def _slots_of(a: Sequence[Row]) -> tuple[int, ...]:
    """Return the places of the stages that make the spans of all arguments shortest.

    Stage 0 goes behind the first k, in reverse: those that are soon not used any more.
    """

    def length(k: int) -> float:
        places, total = _behind(k, len(a)), 0.0
        for i, row in enumerate(a[1:], start=1):
            span = _used_slots(places, row)
            made = {places[j] for j in range(i)}
            # What lies between must have been written: zero times NaN is NaN.
            total += span.stop - span.start if made.issuperset(range(*span.indices(99))) else 99
        return total

    return _behind(min(range(len(a) - 1), key=length), len(a))


def _behind(k: int, stages: int) -> tuple[int, ...]:
    return (k, *reversed(range(k)), *range(k + 1, stages))


def _used_slots(places: Sequence[int], row: Row) -> slice:
    """Return the places from the first to the last stage that has a weight."""
    used = [places[j] for j, weight in enumerate(row) if weight]
    return slice(min(used), max(used) + 1)


BOGACKI_SHAMPINE_3 = RungeKutta(
    name="rk3",
    order=3,
    error_order=2,
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    e=((-5 / 72, 1 / 12, 1 / 9, -1 / 8),),
    fsal=True,
    real_stability=2.51,
)
"""Bogacki and Shampine 3(2), for loose tolerances (Appl. Math. Lett. 2, 1989)."""

DORMAND_PRINCE_5 = RungeKutta(
    name="rk5",
    order=5,
    error_order=4,
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    e=((71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),),
    fsal=True,
    real_stability=3.30,
)
"""Dormand and Prince 5(4); Hairer, Norsett, Wanner, Solving ODEs I, table II.5.2."""

DORMAND_PRINCE_8 = RungeKutta(
    name="rk8",
    order=8,
    error_order=7,
    a=(
        (),
        (0.05260015195876773,),
        (0.0197250569845379, 0.0591751709536137),
        (0.02958758547680685, 0.0, 0.08876275643042054),
        (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
        (1 / 27, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
        (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
        (
            *(0.03709200011850479, 0.0, 0.0, 0.17038392571223998, 0.10726203044637328),
            *(-0.015319437748624402, 0.008273789163814023),
        ),
        (
            *(0.6241109587160757, 0.0, 0.0, -3.3608926294469414, -0.868219346841726),
            *(27.59209969944671, 20.154067550477894, -43.48988418106996),
        ),
        (
            *(0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843),
            *(21.230051448181193, 15.279233632882423, -33.28821096898486, -0.020331201708508627),
        ),
        (
            *(-0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295),
            *(-8.149787010746927, -18.52006565999696, 22.739487099350505, 2.4936055526796523),
            -3.0467644718982196,
        ),
        (
            *(2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625),
            *(-17.9589318631188, 27.94888452941996, -2.8589982771350235, -8.87285693353063),
            *(12.360567175794303, 0.6433927460157636),
        ),
    ),
    b=(
        *(0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003),
        *(-5.801203960010585, 0.3111643669578199, -0.1521609496625161, 0.20136540080403034),
        0.04471061572777259,
    ),
    c=(
        *(0.0, 0.05260015195876773, 0.0789002279381516, 0.1183503419072274, 0.2816496580927726),
        *(1 / 3, 1 / 4, 4 / 13, 127 / 195, 3 / 5, 6 / 7, 1.0),
    ),
    e=(
        (
            *(0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502),
            *(1.6643771824549864, -0.35032884874997366, 0.3341791187130175),
            *(0.08192320648511571, -0.022355307863886294),
        ),
        (
            *(0.054293734116568765 - 0.2440944881889764, 0.0, 0.0, 0.0, 0.0),
            *(4.450312892752409, 1.8915178993145003, -5.801203960010585),
            *(0.3111643669578199 - 0.7338466882816118, -0.1521609496625161),
            *(0.20136540080403034, 0.04471061572777259 - 0.022058823529411766),
        ),
    ),
    fsal=False,
    real_stability=6.1,
)
"""Dormand and Prince 8(5,3), error estimate of DOP853; Solving ODEs I, section II.10."""

METHODS: dict[str, RungeKutta] = {
    m.name: m for m in (BOGACKI_SHAMPINE_3, DORMAND_PRINCE_5, DORMAND_PRINCE_8)
}


class ExplicitStepper:
    """Step with an explicit Runge-Kutta method.

    One buffer holds the stages, the error estimates and the new state: a stage is a matrix-vector
    product, and all norms are one reduction per run of blocks. A trial writes `y_new`, `f_new` and
    `obs_new`, and keeps `f` and the state that it started from. Of a large state the sums are made
    piece by piece in the cache, and the error estimates, whose norms alone are wanted, never as a
    whole: memory holds the stages and one state more.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> y, norms = torch.ones(1, 1, dtype=torch.float64), dln.ode.BlockNorms([1])
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> stepper = dln.ode.ExplicitStepper(dln.ode.METHODS["rk5"], decay, y, norms)
    >>> decay(None, y, stepper.f)  # a step begins with the velocity of the last one
    >>> _ = stepper.step(np.array([0.0]), np.array([0.1]), y)
    >>> abs(float(stepper.y_new) / math.exp(-0.1) - 1) < 1e-8
    True
    """

    radius_rows = 0  # of the norms that a trial returns, those that are spectral radii

    def __init__(self, method: RungeKutta, field: Field, y: Tensor, norms: BlockNorms) -> None:
        self.method, self.field = method, field
        self.name, self.error_order = method.name, method.error_order
        self._tableau, self._norms = tableau(method, y.dtype, y.device), norms
        stages, estimates = len(self._tableau.nodes), len(self._tableau.weights)
        self.evaluations, self.rows = stages - 1, estimates + 2
        self._pieces = pieces_of(y, norms.bounds())
        buffer = y.new_zeros((stages + 1 + (0 if self._pieces else estimates), *y.shape))
        self._buffer, flat = buffer, buffer.view(len(buffer), -1)
        self._slopes = [buffer[k] for k in self._tableau.places]
        self.f, self.f_new, self.y_new = self._slopes[0], self._slopes[-1], buffer[-1]
        self.obs_new: Tensor | None = None
        self._all_stages, self._estimates = flat[:stages], flat[stages:-1]
        self._views = norms.views(buffer[stages - 1 :])
        self._nodes = np.append(np.array(self._tableau.nodes), 0.0)[:, None]
        if self._pieces:
            return
        self._sum = y.new_empty(y.numel())
        self._sum_wide = self._sum.view(y.shape)
        self._columns = [flat[span].T for span in self._tableau.spans]

    def step(self, t: np.ndarray, h: np.ndarray, y: Tensor) -> list[Tensor]:
        """Try a step of sizes h (B,) from (t, y); rows: f_new, estimates, y_new."""
        times = t + self._nodes * h
        times[-1] = h
        *nodes, step = upload(times, y).unbind(0)
        step = step.unsqueeze(-1)
        argument = self.y_new  # The argument of the last stage is the new state.
        for i, weights in enumerate(self._tableau.rows, start=1):
            if self._pieces:
                made = self._buffer[self._tableau.spans[i - 1]]
                move_pieces(self._pieces, made, weights, step, y, argument)
            else:
                torch.mv(self._columns[i - 1], weights, out=self._sum)
                torch.addcmul(y, self._sum_wide, step, out=argument)
            self.obs_new = self.field(nodes[i], argument, self._slopes[i])
        if self._pieces:
            made = self._buffer[: len(self._nodes) - 1]
            estimates = self._tableau.weights
            return norms_by_pieces(self._pieces, made, estimates, argument, self._norms.runs())
        torch.mm(self._tableau.weights, self._all_stages, out=self._estimates)
        return BlockNorms.of(self._views)

    @property
    def df(self) -> Tensor:
        """The difference of the derivatives of the last two stages."""
        return self.f_new - self._slopes[-2]

    def error(self, h: np.ndarray, norms: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return the largest over the blocks of the error estimate over its tolerance."""
        error = h * norms[1] / scale
        if len(self.method.e) == 2:
            other = h * norms[2] / scale
            total = np.hypot(error, 0.1 * other)
            error = error * error / np.where(total == 0, 1.0, total)
        return np.maximum.reduce(error)

    def stiffness(self, norms: np.ndarray) -> np.ndarray | None:
        """Estimate h times the spectral radius (B,), 0 at rest; None if the method cannot.

        ``|f(Y_s) - f(Y_{s-1})| / |(Y_s - Y_{s-1})/h|`` of two stages at the end of the step.
        """
        if not self._tableau.has_stiffness_rows:
            return None
        dy, df = np.sqrt(np.add.reduce(np.square(norms[-3:-1]), 1))
        return np.divide(df, dy, out=np.zeros_like(dy), where=dy > 0)

    def state(self) -> dict[str, Any]:
        """Return a copy of all that the next step needs."""
        return {"f": self.f.clone()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.f.copy_(state["f"])
