"""The orbit of the factors under hidden changes of basis: its tangent space, and moving along it.

A tangent vector is ``dW_k = c_k W_k - W_k c_{k-1}`` with any matrices ``c_1, ..., c_{N-1}`` and
``c_0 = c_N = 0``. With the operator L of the normal equations, ``L c = G`` in `balancing_velocity`,
``<c, L c> = sum_k |c_k W_k - W_k c_{k-1}|^2``, and the moments move by ``-(L c + (L c)^T)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.flows.balancing_system import correction_generator, solved
from dln_geometry.dynamics.store import Store
from dln_geometry.geometry.kernel import small_svd
from dln_geometry.geometry.points import chain_from_frames, chain_svd
from dln_geometry.ode import Keeper, integrate
from dln_geometry.support import (
    Growing,
    Numbers,
    ProgressCallback,
    absolute_square,
    as_double,
    matrix_exponential,
    merged,
)

# Residual of the balancing velocity's equation, in units of c and relative to the right side.
TOLERANCE = 1e-12
# Tolerance of the integration; its errors only move the layers along the orbit.
RTOL = 2e-9
# Times after which e^{-t} and e^{-2t} are below the rounding of one.
LATE, SNAP = 40.0, 19.0
# Distance of the modes of X from their limit at which the limit is computed directly. Hidden modes
# that vanish still turn the frames: errors of up to a fifth of it were seen, none without them.
NEAR = 1e-7
# Singular values of a layer below this fraction of the largest are set to 0: roundings grow.
ROUNDING = 1e-14
# Bounds on evaluations (a few hundred to a few thousand are made) and on Newton steps (one or two).
MOST_EVALUATIONS, NEWTON = 20_000, 10
# Evaluations of a step that a saved time shortens, with one that is rejected.
MOST_OF_A_STOP = 24


class Stack:
    """Layers (B, d_p, d_{p-1}) of any widths as one tensor (B, N, d, d), padded by zeros, N >= 2.

    An outer layer that is wider outside is a square triangular core times orthonormal rows or
    columns; the stack holds the core, because the flow does not move the rest. Layers are divided
    by a power of two, `unit`, near their largest entry: their squares stay in the range of numbers.
    """

    def __init__(self, layers: Sequence[Tensor]) -> None:
        largest = torch.stack([w.abs().amax((-2, -1)) for w in layers]).amax(0)
        self.unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
        self.unit = self.unit[:, None, None]
        cores, self.inner, self.outer = [w / self.unit for w in layers], None, None
        if cores[0].shape[-1] > cores[0].shape[-2]:
            q, r = torch.linalg.qr(cores[0].mH)
            cores[0], self.inner = r.mH, q.mH
        if cores[-1].shape[-2] > cores[-1].shape[-1]:
            self.outer, cores[-1] = torch.linalg.qr(cores[-1])
        self.shapes = [(core.shape[-2], core.shape[-1]) for core in cores]
        d = max(max(shape) for shape in self.shapes)
        self.tensor = cores[0].new_zeros((cores[0].shape[0], len(cores), d, d))
        for p, (core, (a, b)) in enumerate(zip(cores, self.shapes, strict=True)):
            self.tensor[:, p, :a, :b] = core

    def layers(self, tensor: Tensor) -> list[Tensor]:
        """Return the layers of a stack that moved along the orbit."""
        cores = [tensor[:, p, :a, :b] for p, (a, b) in enumerate(self.shapes)]
        if self.inner is not None:
            cores[0] = cores[0] @ self.inner
        if self.outer is not None:
            cores[-1] = self.outer @ cores[-1]
        return [core * self.unit for core in cores]


def transformed(w: Tensor, g: Tensor) -> Tensor:
    """Return ``W_k -> g_k W_k g_{k-1}^{-1}`` of a stack (B, N, d, d), g of (B, N-1, d, d)."""
    moved = w.clone()
    moved[:, :-1] = g @ moved[:, :-1]
    moved[:, 1:] = torch.linalg.solve_ex(g, moved[:, 1:], left=False).result
    return moved


def moments_of(w: Tensor) -> Tensor:
    """Return ``G_k = W_{k+1}^T W_{k+1} - W_k W_k^T`` of a stack, shape (B, N-1, d, d)."""
    before, after = w[:, :-1], w[:, 1:]
    return after.mH @ after - before @ before.mH


class FibreChart:
    """Coordinates of changes of basis near one that measure errors by their effect on the layers.

    ``g_k = 1 + V_{k+1} (y_k / e) U_k^T`` with ``W_k = U_k S_k V_k^T`` of a `Stack`, and
    ``e_ij^2 = s_{k+1,i}^2 + s_{k,j}^2``. Weights e are at least 1e-8 of the largest, because the
    velocity of a vanishing mode has an error of rounding over the mode's size.
    """

    def __init__(self, w: Tensor) -> None:
        u, s, vh = small_svd(w)
        self.left, self.right = vh[:, 1:].mH, u[:, :-1]
        weight = s[:, 1:, :, None].square() + s[:, :-1, None, :].square()
        largest = weight.amax((1, 2, 3), keepdim=True)
        self.weight = (weight + torch.where(largest > 0, 1e-16 * largest, 1.0)).sqrt()
        self.one = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)

    def basis(self, y: Tensor) -> Tensor:
        """Return g of coordinates y, both of shape (B, N-1, d, d)."""
        return self.one + self.left @ (y / self.weight) @ self.right.mH

    def rate(self, g: Tensor, c: Tensor) -> Tensor:
        """Return dy/dt of ``dg/dt = c g``."""
        return self.weight * (self.left.mH @ c @ g @ self.right)


def layer_svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of the layers of a stack, without the singular values that are rounding."""
    u, s, vh = small_svd(w)
    return u, torch.where(s > ROUNDING * s[..., :1], s, 0.0), vh


def balancing_generator(w: Tensor, alive: Tensor | None = None) -> Tensor:
    """Return c with ``L c = G``, shape (B, N-1, d, d), for a stack w of (B, N, d, d).

    `alive`, (B, N, d), tells which singular values of the layers are not zero. A change of basis
    between two zeros moves no layer, and is left out: roundings in their place would turn it fast.
    """
    u, s, vh = layer_svd(w)
    s = s if alive is None else torch.where(alive, s, 0.0)
    # c_k = V_{k+1} z_k U_k^T: the diagonal blocks of L are s_{k+1,i}^2 + s_{k,j}^2.
    left, right = vh[:, 1:].mH, u[:, :-1]
    after, before = s[:, 1:, :, None].square(), s[:, :-1, None, :].square()
    diagonal = after + before
    # Singular values below 1e-13 of the largest are rounding. Their directions are slowed to a
    # halt smoothly, because the integrator needs a smooth velocity.
    floor = diagonal + 1e-26 * diagonal.amax((1, 2, 3), keepdim=True)
    scale = torch.where(floor > 0, floor.rsqrt(), 0.0)
    overlap = left.mH @ right
    rows = overlap[:, 1:] * s[:, 1:-1].unsqueeze(-2)
    columns = s[:, 1:-1].unsqueeze(-1) * overlap[:, :-1]
    # G from the differences of squares: differences of sums would lose small singular values.
    y = solved(scale * (after - before) * overlap, scale, rows, columns, TOLERANCE)
    return left @ (scale * y) @ right.mH


class BalancingPath(Keeper):
    """The balancing flow of layers (B, d_p, d_{p-1}), N >= 2; progress is relative to `until`."""

    def __init__(
        self,
        layers: Sequence[Tensor],
        progress: ProgressCallback | None = None,
        store: Store | None = None,
    ) -> None:
        self.progress, self.until, self.time, self.store = progress, 1.0, 0.0, store
        self.evaluations, self.bound = 0, MOST_EVALUATIONS
        self.stack = Stack([as_double(w) for w in layers])
        self.w = self.stack.tensor
        self.start = moments_of(self.w)
        self.met: list[Tensor] = []
        """The stacks at those times, in their order, that were passed."""
        self._piece_state: dict[str, Any] | None = None
        if store is not None:
            self._take_up(store)

    def layers_at(self, times: Sequence[float]) -> Iterator[list[Tensor]]:
        """Yield the layers at positive finite times, which do not decrease, of one pass.

        The moments are restored at each time; the pass itself goes on without that.
        """
        stops = sorted({min(time, LATE) for time in times})
        self.bound = MOST_EVALUATIONS + MOST_OF_A_STOP * len(stops[1:])
        if self.store is not None:
            self.store.times = torch.tensor(stops, dtype=torch.float64, device="cpu")
        for time in times:
            place = stops.index(min(time, LATE))
            while place >= len(self.met):
                self._piece(stops[-1], stops[len(self.met) :])
            yield self.stack.layers(self._restored(self.met[place], math.exp(-2.0 * time)))

    def balanced(self) -> tuple[Tensor, ...]:
        """Move on to infinite time and return the layers."""
        while self._piece_state is not None or (self.time < SNAP and not self._is_near()):
            self._piece(SNAP)
        # The rest of the way is short and orthogonal to the balanced factors, so the limit has the
        # frames of the present layers, without the modes that vanish.
        frames, u, s = self._frames([w / self.stack.unit for w in self.stack.layers(self.w)])
        return tuple(w * self.stack.unit for w in chain_from_frames([*frames, u], s))

    def _is_near(self) -> bool:
        """Tell whether the modes of X are within NEAR/2 of the limit; their speed is e^{-2t}."""
        frames, _, s = self._frames(list(self.w.unbind(1)))
        moves = balancing_generator(self.w) @ torch.stack(frames[1:], 1)
        moves = moves * (s > 0).to(moves)[:, None, None, :]
        return float(torch.linalg.matrix_norm(moves).amax()) < NEAR

    @staticmethod
    def _frames(layers: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return orthonormal frames of the modes of X before each layer, and after the last."""
        u, s, vh = chain_svd(layers)
        frames = [vh.mH]
        for w in layers[:-1]:
            image = w @ (frames[-1] * (s > 0).to(w).unsqueeze(-2))
            a, _, bh = torch.linalg.svd(image, full_matrices=False)
            frames.append(a @ bh)
        return frames, u, s

    def _take_up(self, store: Store) -> None:
        """Go on where a stored pass has come to."""
        whole, rows = Numbers.like(self.w, finite=True), Numbers.like(self.w, rows=True)
        form = {"w": whole, "time": float, "evaluations": int, "rows": ({}, {"stack": rows})}
        held = store.load({**form, "piece": object})
        if held is not None:
            self.w, met = held["w"].to(self.w), held["rows"].get("stack", self.w[:0])
            self.met, self.time = list(met.to(self.w).unbind(0)), held["time"]
            self.evaluations, self._piece_state = held["evaluations"], held["piece"]

    def keep(self, state: dict[str, Any], rows: dict[tuple[str, ...], Growing]) -> None:
        """Save the pass together with the state of the piece that is being integrated."""
        assert self.store is not None
        now = {"w": self._before, "time": self.time, "evaluations": self.evaluations, "rows": {}}
        inner = {("piece", *place): x.part(0, len(x.rows)) for place, x in rows.items()}
        count = len(self.met)
        met = {("rows", "stack"): Growing(self.met, count)} if count else {}
        self.store.keep(merged({**now, "piece": state}, inner), met)

    def _piece(self, time: float, stops: Sequence[float] = ()) -> None:
        """Integrate the changes of basis, no further than they stay well conditioned.

        Keep the stacks at those of the `stops`, increasing up to `time`, that were passed.
        """
        self._before = self.w
        u, s, vh = layer_svd(self.w)
        # Remove roundings, which would have grown by the next piece.
        alive = s > 0
        full = alive.all(-1)[..., None, None]
        w = self.w = torch.where(full, self.w, (u * s[..., None, :]) @ vh)
        speed = float(torch.linalg.matrix_norm(balancing_generator(w, alive), ord=2).amax())
        span = min(time - self.time, 2.0 / max(speed, 1e-12))
        last = time if span == time - self.time else self.time + span
        passed = {s: min(s - self.time, span) for s in stops if s <= last}
        spans = sorted({*passed.values(), span})
        chart, like = FibreChart(w), self.start
        start = like.real.new_zeros(len(like), (1 + like.is_complex()) * like[0].numel())

        def coordinates(y: Tensor) -> Tensor:
            # Complex numbers are integrated as two real ones.
            pairs = like.is_complex()
            return torch.view_as_complex(y.view(*like.shape, 2)) if pairs else y.view_as(like)

        def field(t: Tensor, y: Tensor, out: Tensor) -> Tensor:
            g = chart.basis(coordinates(y))
            moved = transformed(w, g)
            coordinates(out).copy_(chart.rate(g, balancing_generator(moved, alive)))
            return 0.5 * absolute_square(moved).sum((1, 2, 3)).unsqueeze(-1)

        kept: dict[str, Any] = {}
        if self.store is not None:
            kept = {"checkpoint": self, "checkpoint_every": self.store.schedule}
            kept["resume"], self._piece_state = self._piece_state, None
        end = integrate(
            field,
            start,
            t_end=span,
            rtol=RTOL,
            atol=RTOL * chart.weight.flatten(1).amax(1),
            blocks=[start[0].numel() // like.shape[1]] * like.shape[1],
            method="rk8",
            save_at=spans,
            max_evaluations=max(1, self.bound - self.evaluations),
            progress=None if self.progress is None else self._report(span),
            **kept,
        )
        self.evaluations += int(end.stats["evaluations"])
        if any(status != "t_end" for status in end.status):
            raise ValueError(
                f"factors must be such that the flow is followed with {self.bound} "
                f"evaluations, got no further than time {self.time:.3g}"
            )
        moved = [transformed(w, chart.basis(coordinates(y))) for y in end.saved["y"]]
        self.w, self.time = moved[-1], last
        self.met += [moved[spans.index(after)] for after in passed.values()]

    def _report(self, span: float) -> ProgressCallback:
        begun = self.time

        def report(fraction: float, info: dict[str, Any]) -> None:
            time = begun + fraction * span
            assert self.progress is not None
            self.progress(min(time / self.until, 1.0), {**info, "t": time})

        return report

    def _restored(self, w: Tensor, decay: float) -> Tensor:
        """Return a stack with moments ``decay`` times those of the start, by Newton's method."""
        goal = decay * self.start
        excess = moments_of(w) - goal
        for _ in range(NEWTON):
            x = correction_generator(w, excess)
            new = w.clone()
            new[:, :-1] = matrix_exponential(x) @ new[:, :-1]
            new[:, 1:] = new[:, 1:] @ matrix_exponential(-x)
            left = moments_of(new) - goal
            better = (_total_square(left) < 0.25 * _total_square(excess))[:, None, None, None]
            if not bool(better.any()):
                break
            w, excess = torch.where(better, new, w), torch.where(better, left, excess)
        return w


def _total_square(a: Tensor) -> Tensor:
    """Return the squared norm of every sample, shape (B,)."""
    return absolute_square(a).flatten(1).sum(1)
