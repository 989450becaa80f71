"""What a trial step sends from the device to the host, at its only wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from dln_geometry.ode.methods import RosenbrockStepper

if TYPE_CHECKING:
    from dln_geometry.ode.loop import Integration


class Flags(NamedTuple):
    """Numbers that a trial step sends to the host."""

    norms: np.ndarray  # (rows, blocks, B)
    radii: np.ndarray | None  # (2, B): two estimates of the spectral radius
    obs: np.ndarray  # (k, B)
    faulty: np.ndarray | None  # (B,): samples to correct
    outside: np.ndarray | None  # (B,): samples to project


def wait_for(run: Integration, pieces: list[Tensor]) -> Flags:
    """Wait once for the device, and sort the numbers that it sent."""
    stepper, correct, batch = run.stepper, run.options.correct, len(run.y)
    count = len(pieces) - stepper.radius_rows
    rows, obs, outside = stepper.rows, stepper.obs_new, run.choice.system.outside
    if isinstance(stepper, RosenbrockStepper):
        outside = None  # its states are projected already
    if obs is not None:
        pieces.append(obs.T)
        if correct is not None:
            pieces.append(correct[0](obs))
    if outside is not None:
        pieces.append(outside(stepper.y_new))
    if run.norms.is_shared or run.y.device.type != "cpu":
        # What is sent together has one type.
        pieces = [x.to(run.y.dtype) for x in pieces]
    flat, at = run.norms.fetch(pieces, count), rows * run.norms.count * batch
    norms, rest, radii = run.norms.unpack(flat[:at], rows, batch), flat[at:], None
    rest = rest.reshape(-1, batch)
    if stepper.radius_rows:
        radii, rest = rest[:2], rest[2:]
    faulty = left = None
    if outside is not None:
        rest, left = rest[:-1], rest[-1] != 0
    if obs is not None and correct is not None:
        rest, faulty = rest[:-1], rest[-1] != 0
    return Flags(norms, radii, rest, faulty, left)
