"""The adaptive loop of `integrate`: every sample has its own time and its own step size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.control import (
    RESERVED,
    TINY,
    Options,
    StepControl,
    TimeIsUp,
    first_step,
    give_time,
    with_deadline,
)
from dln_geometry.ode.flags import Flags, wait_for
from dln_geometry.ode.methods import (
    BlockNorms,
    ChebyshevStepper,
    KnownField,
    MethodChoice,
    RosenbrockStepper,
    Stepper,
    upload,
)
from dln_geometry.ode.narrowing import let_leave, whole_run
from dln_geometry.ode.recording import IntegrationError, Recorder, Solution
from dln_geometry.ode.watch import Watch, look_for_rest


class Integration:
    """Advance a batch. States live on the device; the numbers that steps depend on, on the host."""

    COUNTS = ("trials", "steps", "rejected", "corrections")

    def __init__(
        self,
        system: KnownField,
        y0: Tensor,
        norms: BlockNorms,
        recorder: Recorder,
        options: Options,
    ) -> None:
        system = with_deadline(system, options.limits)
        self.system, self.field, self.norms, self.recorder = system, system.field, norms, recorder
        self.options = options
        self.y = y0.detach().contiguous()
        self.obs: Tensor | None = None
        self.names = ["t_end", *options.rules, *RESERVED[1:]]
        self.t, self.code = np.zeros(len(y0)), np.full(len(y0), -1)
        self.trials = self.steps = self.rejected = self.corrections = 0
        self.by_method, self.seconds = dict[str, int](), 0.0
        self.committing = False
        """True while the state is between two steps, when it must not be stored."""
        self.resting, self.noisy = np.zeros((2, len(y0)), dtype=bool)
        """Samples with a velocity of exactly zero, or of rounding alone, at the start."""
        self.moves = np.ones(len(y0), dtype=bool)
        self.watch = Watch(len(y0)) if options.autonomous else None
        self.live: np.ndarray | None = None
        """The samples that the arrays are of, where others have stopped and left; None: all."""
        self.away: Any = None
        self.choice = MethodChoice(options.methods, system, self.y, norms)
        # Round-off grows with the square of the number of stages; limits end no trial before it.
        eps = torch.finfo(y0.dtype).eps
        self._most_stages = min(max(10, round((options.rtol / (10 * eps)) ** 0.5)), 10_000)

    def start(self) -> None:
        """Evaluate the field, check it, save the start and choose the first step sizes."""
        opt, y, f, batch = self.options, self.y, self.stepper.f, len(self.y)
        obs = self.field(y.new_zeros(batch), y, f)
        self.count(1)
        self.obs = None if obs is None else obs.detach().clone()
        columns = 0 if self.obs is None else self.obs.shape[-1]
        if any(column >= columns for column, _ in opt.rules.values()):
            known = f"columns of the field's observables, which are {columns}"
            raise ValueError(f"stop must name {known}, got {opt.rules}")
        pieces = [x for row in (y, f) for x in BlockNorms.of(self.norms.views(row[None]))]
        count = len(pieces)
        if self.obs is not None:
            pieces.append(self.obs.T.to(y.dtype))
        flat, at = self.norms.fetch(pieces, count), 2 * self.norms.count * batch
        halves = [self.norms.unpack(x, 1, batch) for x in np.split(flat[:at], 2)]
        norms, self.obs_first = np.concatenate(halves), flat[at:].reshape(-1, batch)
        self.obs_host = self.obs_first
        for name, wrong in zip(("y0", "field"), ~np.isfinite(norms.sum(axis=1)), strict=True):
            if wrong.any():
                got = f"sample {int(wrong.argmax())} not finite"
                raise ValueError(f"{name} must be finite at the start, got {got}")
        self.y_norms = norms[0]
        whole = np.linalg.norm(norms[0], axis=0)
        default = np.where(whole > 0, 1e-3 * opt.rtol * whole, opt.rtol)
        self.atol = default if opt.atol is None else opt.atol
        everywhere = np.ones(batch, dtype=bool)
        self.recorder.save(self.t, everywhere, y, self.obs)
        if opt.monitor is not None:
            opt.monitor.start(y)
        self.stop(everywhere)
        if opt.autonomous:
            look_for_rest(self, norms)
        self.control = StepControl(self._first_step(norms))
        if isinstance(self.stepper, ChebyshevStepper) and self.unfinished:
            self.count(self.choice.first_radius(self.code < 0))

    def _first_step(self, norms: np.ndarray) -> np.ndarray:
        y, span = self.y, min(self.options.t_end, 1e300)
        if not self.unfinished:
            return np.ones(len(y))
        scale = np.maximum(self.atol + self.options.rtol * norms[0], TINY)
        d0, d1 = ((row / scale).max(axis=0) for row in norms)
        # At y = 0 the first derivative alone sets the scale.
        d0 = np.where(d0 > 0, d0, 1.0)
        rest = span if span < 1e300 else 1.0
        h0 = np.divide(0.01 * d0, d1, out=np.full_like(d0, rest), where=d1 > 0).clip(TINY, span)
        h, f, slope, moved = upload(h0, y), self.stepper.f, self.stepper.f_new, self.stepper.y_new
        torch.mul(f, h[:, None], out=moved).add_(y)
        self.field(h, moved, slope)
        self.count(1)
        flat = self.norms.fetch(BlockNorms.of(self.norms.views(slope.sub_(f)[None])))
        d2 = (self.norms.unpack(flat, 1, len(y))[0] / scale).max(axis=0) / h0
        d2 = np.where(np.isfinite(d2), d2, 0.0)
        return first_step(d0, h0, d1, d2, self.stepper.error_order + 1)

    @property
    def stepper(self) -> Stepper:
        """The stepper of the next trial."""
        return self.choice.stepper

    @property
    def unfinished(self) -> bool:
        """Whether a sample has not stopped."""
        return bool(np.count_nonzero(self.code < 0))

    def advance(self, begun: float, before: float) -> None:
        """Try one step; stop in it if seconds are limited and, with those before, are over."""
        give_time(self.field, self.options.limits, begun, before)
        try:
            self._try()
        except TimeIsUp:
            self.close("seconds")

    def _try(self) -> None:
        """Try one step of every running sample and keep the accepted ones."""
        control, stepper, opt = self.control, self.stepper, self.options
        free = isinstance(stepper, RosenbrockStepper) and np.isinf(opt.t_end)
        if self.watch is not None and self.watch.is_due(self.trials, self.evaluations, free):
            self.watch.look(self)
            if not self.unfinished:
                return
        running = self.code < 0
        stop = np.minimum(self.recorder.next, opt.t_end)
        if isinstance(stepper, ChebyshevStepper):
            control.h = np.minimum(control.h, stepper.longest(self.choice.rho, self._most_stages))
        elif free:
            # No stability bounds the steps of a flow at rest: end it before time overflows.
            control.h = np.minimum(control.h, np.maximum(self.t, control.first))
        trial, hits = control.propose(self.t, stop, running)
        if isinstance(stepper, ChebyshevStepper):
            stepper.prepare(float((trial * self.choice.rho).max()))
        flags = wait_for(self, stepper.step(self.t, trial, self.y))
        t_new = np.where(hits, stop, self.t + trial)
        with np.errstate(all="ignore"):
            scale = self.atol + opt.rtol * np.maximum(self.y_norms, flags.norms[-1])
            err = stepper.error(trial, flags.norms, np.maximum(scale, TINY))
            # Becomes NaN where the new state or its derivative is not finite.
            err = err + 0 * np.add.reduce(flags.norms[0] + flags.norms[-1])
        # A state is not accepted if one of its observables (a loss) is NaN.
        err = np.where(np.logical_or.reduce(np.isnan(flags.obs)), np.nan, err)
        accepted, evaluations = running & (err <= 1), stepper.evaluations
        corrected = 0
        for wrong, change in ((flags.faulty, self._fix), (flags.outside, self._project)):
            if wrong is not None and (count := int(np.count_nonzero(wrong & accepted))):
                change(wrong & accepted)
                corrected += count
        if corrected:
            stepper.obs_new = self.field(upload(t_new, self.y), stepper.y_new, stepper.f_new)
            evaluations += 1

        # An interrupt before this line leaves the state from before the trial.
        self.committing = True
        h_before = control.h
        control.update(err, accepted, trial, hits, running, stepper.error_order)
        self.count(evaluations)
        # count_nonzero: any() and all() cost several times as much on arrays this small.
        moved, alive = int(np.count_nonzero(accepted)), int(np.count_nonzero(running))
        self.trials += 1
        self.steps += moved > 0
        self.rejected += alive - moved
        self.corrections += corrected
        if moved:
            self._accept(accepted, moved == len(running), t_new, flags)
            self.recorder.save(self.t, accepted, self.y, self.obs)
            if opt.monitor is not None:
                opt.monitor.update(self.t, accepted, self.y)
            self.stop(accepted)
        if np.isinf(opt.t_end):
            # Without an end, samples at rest or zero, up to tolerance, need no longer steps.
            size, speed = (np.linalg.norm(flags.norms[k], axis=0) for k in (-1, 0))
            # A trial from time 0 may have overflown: it does not rest, and inf * 0 is no news.
            with np.errstate(invalid="ignore"):
                rests = speed * self.t <= self.atol + opt.rtol * size
            self.moves = ~rests & (size > 1e3 * self.atol)
        turns = moved > 0, alive > moved
        self.choice.update(trial, flags.norms, flags.radii, *turns, self._work, control)
        self.committing = False
        if alive > moved:
            lost = running & ~accepted & control.underflow(self.t)
            if lost.any():
                self._fail(int(lost.argmax()), float(h_before[lost.argmax()]))
        if moved:
            let_leave(self)

    def _fix(self, samples: np.ndarray) -> None:
        """Replace the new states of some samples by their correction."""
        assert self.options.correct is not None
        where = torch.from_numpy(np.flatnonzero(samples)).to(self.y.device, non_blocking=True)
        self.stepper.y_new[where] = self.options.correct[1](self.stepper.y_new[where])

    def _project(self, samples: np.ndarray) -> None:
        """Bring the new states of some samples back into the set that the flow never leaves."""
        project, y = self.choice.system.project, self.stepper.y_new
        assert project is not None
        where = torch.from_numpy(samples[:, None]).to(self.y.device, non_blocking=True)
        y.copy_(torch.where(where, project(self.y, y), y))

    def _accept(self, accepted: np.ndarray, all_: bool, t_new: np.ndarray, flags: Flags) -> None:
        stepper = self.stepper
        pairs = [(self.y, stepper.y_new), (stepper.f, stepper.f_new)]
        if self.obs is not None and stepper.obs_new is not None:
            pairs.append((self.obs, stepper.obs_new))
        if all_:
            for old, new in pairs:
                old.copy_(new)
            self.t, self.y_norms, self.obs_host = t_new, flags.norms[-1], flags.obs
            return
        mask = torch.from_numpy(accepted).to(self.y.device, non_blocking=True)[:, None]
        for old, new in pairs:
            torch.where(mask, new, old, out=old)
        self.t = np.where(accepted, t_new, self.t)
        self.y_norms = np.where(accepted, flags.norms[-1], self.y_norms)
        self.obs_host = np.where(accepted, flags.obs, self.obs_host)

    def stop(self, advanced: np.ndarray) -> None:
        """Mark the samples that a rule or the end of time stops."""
        for number, (column, threshold) in enumerate(self.options.rules.values(), start=1):
            self.code[(self.obs_host[column] <= threshold) & advanced & (self.code < 0)] = number
        self.code[(self.t >= self.options.t_end) & (self.code < 0)] = 0
        if (monitor := self.options.monitor) is not None:
            self.code[monitor.exhausted & (self.code < 0)] = self.names.index("patience")

    def _fail(self, sample: int, h: float) -> None:
        self.close("unfinished")
        self.code[sample] = self.names.index("failed")
        number = sample if self.live is None else int(self.live[sample])
        where = f" in sample {number}" if len(whole_run(self).y) > 1 else ""
        size = float(np.linalg.norm(self.y_norms[:, sample]))
        message = (
            f"step size must stay above the rounding of time, got {h:.3g} at "
            f"t = {self.t[sample]:.9g}{where}, where the state has norm {size:.3g}: the solution "
            "blows up or the field is not smooth there; end earlier, start smaller or loosen rtol"
        )
        raise IntegrationError(message, whole_run(self).solution())

    def _work(self) -> np.ndarray:
        """Return the steps that each sample has still to take, up to a factor."""
        running = self.code < 0
        if not np.isfinite(self.options.t_end):
            return (running & self.moves).astype(np.float64)
        return np.where(running, (self.options.t_end - self.t) / self.control.h, 0.0)

    def count(self, evaluations: int) -> None:
        """Count evaluations of the field."""
        name = self.stepper.name
        self.by_method[name] = self.by_method.get(name, 0) + evaluations

    def limit(self) -> str | None:
        """Return the limit that has been met, if any."""
        for name, most in self.options.limits.items():
            if (self.trials if name == "steps" else getattr(self, name)) >= most:
                return name
        return None

    def close(self, status: str) -> None:
        """Stop the running samples with a status."""
        self.code[self.code < 0] = self.names.index(status)

    @property
    def evaluations(self) -> int:
        """Evaluations of the field so far."""
        return sum(self.by_method.values())

    def solution(self) -> Solution:
        """Return the rows and last states so far, of a whole run."""
        times, saved = self.recorder.result(self.t, self.y, self.obs)
        stats = {n: getattr(self, n) for n in ("evaluations", *self.COUNTS[1:], "seconds")}
        stats |= {"switches": self.choice.switches, "by_method": dict(self.by_method)}
        status, obs = [self.names[i] for i in self.code], self.obs
        obs = None if obs is None else obs.clone()
        t, t_final = (upload(x, self.y) for x in (times, self.t.copy()))
        start = torch.from_numpy(np.stack([self.resting, self.noisy]))
        seen = None if self.options.monitor is None else self.options.monitor.result()
        steps = self.recorder.steps
        bound = torch.from_numpy(self.choice.bound & (self.t < self.options.t_end))
        ends = t_final, status, stats, start, bound
        return Solution(t, saved, self.y, obs, *ends, seen, steps)

    def fraction(self) -> float:
        """Return how far the samples are, by time or by the logarithm of a watched observable."""
        with np.errstate(all="ignore"):
            done = self.t / self.options.t_end
            for column, threshold in self.options.rules.values():
                first, now = self.obs_first[column], self.obs_host[column]
                done = np.fmax(done, np.log(first / now) / np.log(first / threshold))
        done = np.where(self.code >= 0, 1.0, np.nan_to_num(done))
        return float(np.clip(done, 0.0, 1.0).mean())
