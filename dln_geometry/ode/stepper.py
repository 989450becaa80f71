"""One trial step of a batch, each sample with its own step size; the explicit methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.runge_kutta import RungeKutta, tableau

Field = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""``field(t, y, out)`` writes dy/dt at ``t (B,)``, ``y (B, n)`` into ``out (B, n)`` and returns
observables ``(B, k)`` or None."""


class BlockNorms:
    """Take 2-norms over consecutive blocks of the last axis, blocks of equal size together."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.count = len(sizes)
        self._runs: list[tuple[int, int, int]] = []
        start = 0
        for size in sizes:
            if self._runs and self._runs[-1][2] == size:
                first, number, _ = self._runs[-1]
                self._runs[-1] = (first, number + 1, size)
            else:
                self._runs.append((start, 1, size))
            start += size

    def views(self, x: Tensor) -> list[Tensor]:
        """Return views of shape (..., number, size), one per run of equal blocks."""
        return [x[..., a : a + k * size].unflatten(-1, (k, size)) for a, k, size in self._runs]

    @staticmethod
    def of(views: list[Tensor]) -> list[Tensor]:
        """Return the norms of such views, (..., number) each."""
        return [torch.linalg.vector_norm(view, dim=-1) for view in views]

    def unpack(self, flat: np.ndarray, rows: int, batch: int) -> np.ndarray:
        """Return norms of shape (rows, blocks, B) from the flattened, concatenated ones."""
        parts, at = [], 0
        for _, k, _ in self._runs:
            part = flat[at : at + rows * batch * k].reshape(rows, batch, k)
            parts.append(part.transpose(0, 2, 1))
            at += rows * batch * k
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def upload(x: np.ndarray, like: Tensor) -> Tensor:
    """Copy a host array to the dtype and device of a tensor without waiting for the device."""
    return torch.from_numpy(x).to(like.device, like.dtype, non_blocking=True)


def fetch(pieces: list[Tensor]) -> np.ndarray:
    """Bring figures to the host: the one place where the host waits for the device."""
    flat = pieces[0].reshape(-1) if len(pieces) == 1 else torch.cat([x.reshape(-1) for x in pieces])
    return flat.cpu().numpy().astype(np.float64)


class ExplicitStepper:
    """Step with an explicit Runge-Kutta method.

    All stages, the error estimates and the new state lie in one buffer, so that every stage is one
    matrix-vector product and the norms the controller needs are one reduction per run of blocks.
    A trial leaves its proposal in `y_new`, `f_new` and `obs_new`, and never touches `f` or the
    state that it started from.
    """

    def __init__(self, method: RungeKutta, field: Field, y: Tensor, norms: BlockNorms) -> None:
        self.method, self.field = method, field
        self.name, self.error_order = method.name, method.error_order
        self._tableau = tableau(method, y.dtype, y.device)
        stages, estimates = len(self._tableau.nodes), len(self._tableau.weights)
        self.evaluations = stages - 1
        buffer = y.new_zeros((stages + estimates + 1, *y.shape))
        flat = buffer.view(len(buffer), -1)
        self.f, self.f_new, self.y_new = buffer[0], buffer[stages - 1], buffer[-1]
        self.obs_new: Tensor | None = None
        argument = torch.empty_like(y)
        sum_ = y.new_empty(y.numel())
        self._sum, self._sum_wide = sum_, sum_.view(y.shape)
        self._stages = [
            (flat[:i].T, self._tableau.rows[i - 1], argument, buffer[i]) for i in range(1, stages)
        ]
        self._stages[-1] = (*self._stages[-1][:2], self.y_new, self.f_new)
        self._all_stages = flat[:stages]
        self._estimates = flat[stages:-1]
        self._errors = len(method.e)
        self.df = buffer[-2]
        self.rows = estimates + 2
        self._views = norms.views(buffer[stages - 1 :])
        self._nodes = np.append(np.array(self._tableau.nodes), 0.0)[:, None]

    def step(self, t: np.ndarray, h: np.ndarray, y: Tensor) -> list[Tensor]:
        """Try a step of sizes h (B,) from (t, y); rows: f_new, estimates, y_new."""
        times = t + self._nodes * h
        times[-1] = h
        *nodes, step = upload(times, y).unbind(0)
        step = step.unsqueeze(-1)
        for i, (before, weights, argument, out) in enumerate(self._stages, start=1):
            torch.mv(before, weights, out=self._sum)
            torch.addcmul(y, self._sum_wide, step, out=argument)
            self.obs_new = self.field(nodes[i], argument, out)
        torch.mm(self._tableau.weights, self._all_stages, out=self._estimates)
        return BlockNorms.of(self._views)

    def error(self, h: np.ndarray, norms: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return the largest over the blocks of the error estimate over its tolerance."""
        error = h * norms[1] / scale
        if self._errors == 2:
            other = h * norms[2] / scale
            total = np.hypot(error, 0.1 * other)
            error = np.divide(error * error, total, out=np.zeros_like(total), where=total != 0)
        return error.max(axis=0)

    def stiffness(self, norms: np.ndarray) -> np.ndarray | None:
        """Return an estimate (B,) of h times the spectral radius, None if the method has none.

        ``|f(Y_s) - f(Y_{s-1})| / |(Y_s - Y_{s-1})/h|`` of the last two stages, 0 at rest.
        """
        if not self._tableau.has_stiffness_rows:
            return None
        dy, df = np.linalg.norm(norms[-3], axis=0), np.linalg.norm(norms[-2], axis=0)
        return np.divide(df, dy, out=np.zeros_like(df), where=dy > 0)

    def state(self) -> dict[str, Any]:
        """Return a copy of what the next step depends on."""
        return {"f": self.f.clone()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self.f.copy_(state["f"])
