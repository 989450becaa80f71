"""The equation of motion of any optimiser, from differences of its iterates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_like,
    as_loss,
    as_parameters,
    combination,
    norm,
)
from dln_geometry.learning.motion.equation import VectorField
from dln_geometry.learning.motion.series import difference_weights
from dln_geometry.learning.rules import Rule, as_rule
from dln_geometry.support import as_count, as_positive

Step = Callable[[Parameters], Parameters]
PREFIX = "velocity."


def equation_of_motion_from_iterates(step: Step, lr: float, order: int) -> VectorField:
    """Return the field ``F = (1/lr) sum_{j=1}^J (-1)^{j+1}/j Delta^j q``, J = `order`.

    ``Delta`` is the forward difference of the iterates of `step` from the point itself:
    ``F = log(1 + Delta) q / lr``, cut off after J terms. The flow of F passes through the iterates
    at ``t = n lr`` up to a global error of order ``lr^J``; it takes J calls of the step of any
    optimiser, and no Hessian. For gradient descent J = 1 is gradient flow, and J = a + 2 is as
    accurate as the equation of motion of order a (Miyagawa, arXiv 2210.15898; Henrici, Elements of
    Numerical Analysis, for ``log(1 + Delta)``).

    Parameters
    ----------
    step : callable
        ``step(params)`` returns the next parameters and changes nothing in place. The optimiser's
        state, if it has one, is part of `params`: for momentum see `momentum_step`.
    lr : float
        Learning rate: the time of one step.
    order : int
        Number J of differences, at least 1.

    Raises
    ------
    ValueError
        Later, if the differences do not decrease: the series does not converge, for example where
        ``lr lambda_max >= 1`` and no real equation of motion exists. (This check costs nothing,
        but misses sharp directions that are at rest; `EquationOfMotion.check` finds them.)

    Examples
    --------
    >>> from dln_geometry import learning
    >>> field = learning.equation_of_motion_from_iterates(lambda p: {"q": p["q"] * 0.75}, 0.25, 4)
    >>> field({"q": torch.tensor([1.0])})["q"].round(decimals=3)
    tensor([-1.1500])
    >>> (torch.tensor(0.75).log() / 0.25).round(decimals=3)
    tensor(-1.1510)
    """
    as_loss(step, "step")
    lr, order = as_positive(lr, "lr"), as_count(order, "order", 1)

    def velocity(params: Parameters) -> Parameters:
        now, moves = params, []
        for _ in range(order):
            after = as_like(step(now), params, "what step returns")
            moves += _differences([now, after])
            now = after
        return _motion(moves, params, lr)

    return VectorField(velocity)


def motion_of_iterates(iterates: Sequence[Tensors], lr: float) -> Parameters:
    """Return the velocity F at the first of J + 1 consecutive iterates of any optimiser.

    ``F = (1/lr) sum_{j=1}^J (-1)^{j+1}/j Delta^j q``, error of order ``lr^J``, for example from a
    training run on a fixed loss. With momentum b the iterates are smooth in ``n lr`` only after
    the transient of the start, which decays like b^n. Other parameters and errors as in
    `equation_of_motion_from_iterates`.

    Parameters
    ----------
    iterates : sequence of dicts
        ``q_n, ..., q_{n+J}``, at least two.

    Examples
    --------
    >>> path = [{"q": torch.tensor([x])} for x in (1.0, 0.9, 0.81)]
    >>> dln.learning.motion_of_iterates(path, 0.1)
    {'q': tensor([-1.0500])}
    """
    lr = as_positive(lr, "lr")
    if isinstance(iterates, str) or not isinstance(iterates, Sequence):
        raise TypeError(f"iterates must be a sequence of dicts, got {type(iterates).__name__}")
    if len(iterates) < 2:
        raise ValueError(f"iterates must number at least 2, got {len(iterates)}")
    first = as_parameters(iterates[0], "iterates[0]")
    points = [as_like(q, first, f"iterates[{n}]") for n, q in enumerate(iterates)]
    return _motion(_differences(points), first, lr)


def momentum_step(loss: Loss, rule: Rule) -> Step:
    """Return the step of a rule with momentum as a map of parameters and velocities together.

    The state is one dict: the parameters, and under ``velocity.<name>`` the momentum buffers (see
    `with_velocity`); without momentum the parameters alone. Start the equation of motion of this
    map (`equation_of_motion_from_iterates`) after the transient of the first buffers, which decays
    like b^n: from other buffers, such as zero, the transient is its error at every order.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> loss = lambda p: p["q"].square().sum() / 2
    >>> step = learning.momentum_step(loss, learning.Rule(lr=0.5, momentum=0.5))
    >>> step(learning.with_velocity({"q": torch.tensor([1.0])}, {"q": torch.tensor([2.0])}))
    {'q': tensor([0.]), 'velocity.q': tensor([2.])}
    """
    loss, rule = as_loss(loss), as_rule(rule)

    def step(state: Parameters) -> Parameters:
        params, velocity = without_velocity(state)
        if not rule.momentum:
            return rule.step(loss, params)[0]
        if velocity.keys() != params.keys():
            raise ValueError(
                f"the state must hold a velocity for each of {sorted(params)}, got "
                f"{sorted(velocity)}: join them by with_velocity"
            )
        return with_velocity(*rule.step(loss, params, velocity))

    return step


def with_velocity(params: Tensors, velocity: Tensors) -> Parameters:
    """Join parameters and momentum buffers into the state of `momentum_step`.

    Examples
    --------
    >>> state = dln.learning.with_velocity({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
    >>> dln.learning.without_velocity(state)
    ({'w': tensor([1.])}, {'w': tensor([3.])})
    """
    params = as_parameters(params)
    velocity = as_like(velocity, params, "velocity")
    return {**params, **{PREFIX + name: v for name, v in velocity.items()}}


def without_velocity(state: Tensors) -> tuple[Parameters, Parameters]:
    """Split the state of `momentum_step` into parameters and momentum buffers.

    Examples
    --------
    >>> state = dln.learning.with_velocity({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
    >>> params, velocity = dln.learning.without_velocity(state)
    >>> velocity
    {'w': tensor([3.])}
    """
    state = as_parameters(state, "state")
    params = {name: x for name, x in state.items() if not name.startswith(PREFIX)}
    if not params:
        raise ValueError("state must hold parameters, got velocities alone")
    return params, {name.removeprefix(PREFIX): x for name, x in state.items() if name not in params}


def _motion(moves: list[Parameters], first: Parameters, lr: float) -> Parameters:
    """Sum the series from the increments: less cancels among them than among the iterates."""
    _check_decrease(moves, float(norm(first).detach()))
    weights = difference_weights(len(moves))
    return combination([(w / lr, move) for w, move in zip(weights, moves, strict=True)])


def _differences(points: list[Parameters]) -> list[Parameters]:
    return [combination([(1.0, after), (-1.0, before)]) for before, after in pairwise(points)]


def _check_decrease(moves: list[Parameters], size: float) -> None:
    """Refuse differences that grow: then the series of the logarithm does not converge."""
    eps = max(torch.finfo(x.dtype).eps for x in moves[0].values())
    differences, before = moves, None
    for j in range(len(moves)):
        length = float(norm(differences[0]).detach())
        if not math.isfinite(length):
            raise ValueError("the step must be finite, got NaN or infinite parameters")
        # Each difference may double the rounding errors of the iterates: allow for them.
        floor = 4.0 * eps * size * 2**j
        if before is not None and length >= before > floor:
            raise ValueError(
                f"the differences of the iterates must decrease, got |Delta^{j} q| = "
                f"{before:.3g} and |Delta^{j + 1} q| = {length:.3g}: the series of "
                "log(1 + Delta) does not converge, as where lr * lambda_max >= 1 and no real "
                "equation of motion exists"
            )
        before, differences = length, _differences(differences)
