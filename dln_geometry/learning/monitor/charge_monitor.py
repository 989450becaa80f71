"""Watch the charges of a training loop, and compare them with their exact laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.following import Follower, is_sgd, watched_groups
from dln_geometry.learning.monitor.ledger import Ledger
from dln_geometry.learning.monitor.products import Snapshot
from dln_geometry.learning.monitor.record import ChargeRecord, ChargeReport
from dln_geometry.learning.monitor.step_follower import StepFollower
from dln_geometry.learning.monitor.variances import AutocastWitness, Variances
from dln_geometry.support import as_count, as_flag, as_positive, shown

_STATE = {"labels", "units", "steps", "begun", "current", "laws", "records"}


class ChargeMonitor:
    """Record the charges of a training loop, and predict them exactly.

    If the loss of every batch has a symmetry, its charge moves by a law that each step of SGD obeys
    to rounding: with any momentum, weight decay and schedule (`learning.noether.momentum_law`). The
    monitor hooks into ``optimizer.step``, sums squares of the buffers or gradients, predicts the
    charges, and compares with the measured ones. A residual above rounding says that the loss lacks
    the symmetry, or that something besides the optimiser moved the parameters.

    By default it predicts one step in twenty, from the charges measured just before it, and sees
    nothing of the steps in between. With ``window=None`` one prediction runs through all steps;
    each then sums over all buffers. A step that is predicted and recorded takes about a hundred
    small operations, 1 to 3 ms on a processor: with the defaults 2 to 3 % of a training step of
    10 ms, 11 to 17 % of one of 1 ms and 20 % of one of half a millisecond, a third of that with
    ``every=100``: torch calls the hooks in every step (``benchmarks/learning.py``).

    Parameters
    ----------
    module : Module
        In training mode, without wrappers for parallel training.
    optimizer : torch.optim.Optimizer
        Over parameters of the module, in any number of groups with options of their own. Under any
        but SGD the monitor predicts charges from the steps taken, tests whether the gradients (of
        a closure those of its first call) are orthogonal to the orbits of the symmetry, and
        reports the drift of each cause that breaks it.
    groups : sequence of SymmetricGroup, optional
        The groups to watch; by default those that `symmetries_of` finds and the optimiser trains.
        Permutations have no charges and are left out.
    example_input, loss
        For `symmetries_of`: arguments of the module, and "cross_entropy" if that is the loss.
    every : int
        Number of steps between records.
    window : int, optional
        Number of steps predicted before each record, at most `every`; `None` predicts all.
    history : int, optional
        Keep the last so many records; `None` keeps all.
    units : bool
        Keep every single charge, too, and not only one number for each group.
    moments : int
        Largest width of a gauge whose whole matrix is watched (it takes a product of matrices);
        above it the diagonal is watched.
    on_break : "ignore", "warn" or "raise"
        How to react when a residual passes its tolerance.
    tolerance : float, optional
        The default is ``eps^(2/3)`` of the parameters' dtype for each step of a window, at most
        the square root of eps. Normalisations by ``sqrt(var + epsilon)`` break their symmetries by
        the share ``epsilon / (var + epsilon)``, and multiply rounding errors by the inverse root:
        the monitor looks at the variance in the last forward pass before a record, and allows 10
        times the share for each step, up to 100 times. Where the variance is not far above epsilon
        it therefore finds nothing; in compiled modules it takes the variance for 1. Under
        autocast, where gradients carry the rounding of the smaller type, its eps counts.
    writer, prefix : optional
        Anything with ``add_scalar(tag, value, step)``, such as TensorBoard's SummaryWriter, and
        the prefix of its tags.
    flush_every : int
        Number of records after which the host waits for the device, fetches values, writes them
        to the writer and checks tolerances.

    Raises
    ------
    ValueError
        If there is nothing to watch, or options that a group must share differ in it.
    RuntimeError
        In a predicted step, if a gradient is sparse, only some parameters of a group have one
        (others were frozen), or a gradient scaler works with a fused optimiser.

    Notes
    -----
    Steps that a gradient scaler skips do not count. Gradients may be clipped by norm, scaled or
    accumulated before the step; clipping by value breaks symmetries. If weight decays differ inside
    a group, the monitor copies that group's gradients for a moment.

    Examples
    --------
    >>> from torch import nn
    >>> from torch.optim.sgd import SGD
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    >>> optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> x, y = torch.ones(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
    >>> with dln.learning.ChargeMonitor(net, optimizer, loss="cross_entropy", every=5) as monitor:
    ...     for _ in range(10):
    ...         optimizer.zero_grad()
    ...         nn.functional.cross_entropy(net(x), y).backward()
    ...         optimizer.step()
    >>> for line in monitor.report():
    ...     print(line.label, line.worst < 1e-12)
    rescale(0.weight, 0.bias, 2.weight) True
    translation(2.weight, 2.bias) True
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        groups: Sequence[SymmetricGroup] | None = None,
        *,
        example_input: Any = None,
        loss: str | None = None,
        every: int = 20,
        window: int | None = 1,
        history: int | None = None,
        units: bool = False,
        moments: int = 64,
        on_break: str = "ignore",
        tolerance: float | None = None,
        writer: Any = None,
        prefix: str = "charges",
        flush_every: int = 64,
    ) -> None:
        exact = is_sgd(optimizer)
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        self.every = as_count(every, "every")
        self.window = None if window is None else as_count(window, "window")
        if (self.window or 0) > self.every:
            raise ValueError(f"window must be None or at most every = {every}, got {window}")
        self.units, self.steps = as_flag(units, "units"), 0
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, got {shown(prefix)}")
        moments = as_count(moments, "moments", 0)
        watched = watched_groups(module, optimizer, groups, example_input, loss, moments)
        if tolerance is not None:
            tolerance = as_positive(tolerance, "tolerance")
        named = dict(module.named_parameters())
        self._laws = (Follower if exact else StepFollower)(optimizer, watched, named)
        self.groups, self.labels = self._laws.groups, self._laws.labels
        self._ledger = Ledger(self.labels, history, on_break, writer, prefix, flush_every)
        self._rounding, self._epsilons, self._factor = self._laws.allowances(self.window)
        self._variances: Variances | None = None
        if tolerance is None:
            self._variances = Variances(module, self.groups, self._precedes_record)
            self._autocast = AutocastWitness(module)
        else:
            self._rounding, self._factor = torch.full_like(self._rounding, tolerance), 0.0
        # Whether the first record is made; whether the predictions are those of this moment.
        self._begun = self._current = False
        # Still True in the next step if a prepared step failed: then the prediction restarts.
        self._prepared = False
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *(self._variances.handles if self._variances is not None else ()),
        ]
        if self._variances is not None:
            self._handles.append(self._autocast)

    def _is_followed(self) -> bool:
        """Tell whether the next step belongs to a window."""
        return self.window is None or self.steps % self.every >= self.every - self.window

    def _precedes_record(self) -> bool:
        """Tell whether a record follows the next step, whose variances set its tolerances."""
        return (self.steps + 1) % self.every == 0

    def _add(self, snapshot: Snapshot) -> None:
        """Add a record of this moment."""
        allowed = self._rounding
        if self._variances is not None:
            allowed = allowed.clamp_min(self._autocast.eps ** (2 / 3))
            share, gain = self._variances.take(self._epsilons)
            allowed = torch.maximum(allowed * gain, self._factor * share)
        self._ledger.add(self.steps, self._laws.figures(snapshot, allowed, units=self.units))

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Prepare a step: at once, or after its closure has made the gradients."""
        if self._begun and not self._is_followed():
            self._current = self._prepared = False
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._prepare()
            return None
        waits = [self._prepare]

        def evaluated() -> Any:
            loss = closure()
            # Later evaluations are made inside the step, at other parameters.
            if waits:
                waits.pop()()
            return loss

        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    @torch.no_grad()
    def _prepare(self) -> None:
        held = self._laws.held()
        snapshot = self._laws.snapshot()
        begins = self.window is not None and (self.steps + self.window) % self.every == 0
        if begins or self._prepared or not self._current:
            self._laws.begin(snapshot)
        if not self._begun:
            self._add(snapshot)
            self._begun = True
        self._prepared = self._current = self._is_followed()
        if self._current:
            self._laws.before(snapshot, held)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        if not self._prepared:
            return
        self._prepared = False
        snapshot = self._laws.snapshot()
        self._laws.after(snapshot)
        if self.steps % self.every == 0:
            self._add(snapshot)

    def flush(self) -> None:
        """Fetch the new records, write them to the writer, and check the tolerances.

        If a symmetry is broken, `on_break` decides: ignore it, warn once, or raise a
        `SymmetryError` with the `residual`.
        """
        self._ledger.flush()

    def report(self) -> list[ChargeReport]:
        """Return one line for every group."""
        lines = self._ledger.report(self.record(), self.groups)
        return [replace(line, drift=self._laws.drift_of(k)) for k, line in enumerate(lines)]

    def record(self) -> ChargeRecord:
        """Return all records that are kept, on the host; a RuntimeError before the first step."""
        return self._ledger.record(self._laws.owners() if self.units else None)

    def to_xarray(self) -> Any:
        """Return the records as an `xarray.Dataset`; see `ChargeRecord`."""
        return self.record().to_xarray()

    def save(self, path: Any) -> Any:
        """Write the records to one ``.npz`` file, to be read by `ChargeRecord.load`."""
        return self.record().save(path)

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the predictions, after other code than the optimiser moved the parameters."""
        self._laws.begin(self._laws.snapshot())
        self._begun = self._current = True
        self._ledger.warned = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the monitor: tensors, numbers and lists."""
        return {
            "labels": list(self.labels),
            "units": self.units,
            "steps": self.steps,
            "begun": self._begun,
            "current": self._current,
            "records": self._ledger.state(),
            "laws": self._laws.state(),
            "format": 2,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` of a monitor of the same groups returned.

        Load the module and the optimiser, too: the laws read their parameters and buffers.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, got {type(state).__name__}")
        if missing := sorted(_STATE.difference(state)):
            raise ValueError(f"state must be what state_dict returns, got one without {missing}")
        own = list(self.labels)
        if (labels := list(state["labels"])) != own:
            raise ValueError(f"state must be of the groups {own}, got {labels}")
        if state["units"] != self.units:
            raise ValueError(f"state must be of units={self.units}, got units={state['units']}")
        self._laws.load(state["laws"])
        self.steps, self._prepared, rows = state["steps"], False, state["records"]
        self._begun, self._current = state["begun"], state["current"]
        if "format" not in state:
            # Version 0.1 kept no tolerances: those of a variance of 1.
            allowed = torch.maximum(self._rounding, self._factor * self._epsilons).cpu()
            g = 3 * len(own)
            rows = [(step, torch.cat([row[:g], allowed, row[g:]])) for step, row in rows]
        self._ledger.load(rows)

    def close(self) -> None:
        """Remove the hooks from the optimiser and fetch the last records; they stay readable."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None:
            # Do not hide the error that ended the loop.
            self._ledger.on_break = "ignore"
        self.close()
