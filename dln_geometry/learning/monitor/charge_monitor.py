"""Watch the charges of a training loop, and compare them with their exact laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from dln_geometry.learning.architecture import SymmetricGroup
from dln_geometry.learning.monitor.following import Follower, check_optimizer, watched_groups
from dln_geometry.learning.monitor.ledger import Ledger
from dln_geometry.learning.monitor.record import ChargeRecord, ChargeReport
from dln_geometry.support import as_count

_STATE = {"labels", "units", "steps", "begun", "current", "laws", "records"}


class ChargeMonitor:
    """Record the charges of a training loop with SGD, and predict them exactly.

    If the loss of every batch has a symmetry, its charge moves by a law that holds for each step of
    SGD to the last digit: with momentum, dampening or Nesterov's momentum, weight decay and any
    schedule (see `learning.noether.momentum_law`). The monitor hooks into ``optimizer.step``, so
    that the loop stays as it is; it sums squares of the buffers or gradients, predicts, and
    compares with the charges that it measures. A residual above rounding says that the loss lacks
    the symmetry, or that something besides the optimiser moved the parameters.

    By default one step in twenty is predicted, from the charges measured just before it: the
    residual is that of one step, and the monitor sees nothing of the steps in between. With
    ``window=None`` one prediction runs through all steps from the first on; each step then sums
    over all buffers, which costs more (``benchmarks/bench_monitor.py`` measures both).

    Parameters
    ----------
    module : Module
        In training mode, without wrappers for parallel training.
    optimizer : torch.optim.SGD
        Over parameters of the module, in any number of groups with options of their own.
    groups : sequence of SymmetricGroup, optional
        What to watch; `None` is what `symmetries_of` finds and the optimiser trains. Permutations
        have no charges and are left out.
    example_input, loss
        For `symmetries_of`: arguments of the module, and "cross_entropy" if that is the loss.
    every : int
        Measure and record after every so many steps.
    window : int, optional
        How many steps before each record are predicted, at most `every`, from the charges as they
        were measured then. `None` predicts all steps from the first one on.
    history : int, optional
        Keep the last so many records; `None` keeps all.
    units : bool
        Keep every single charge, too, and not only one number for each group.
    moments : int
        Largest width of a gauge whose whole matrix is watched: it takes a product of matrices.
        Of wider ones the diagonal is watched.
    on_break : "ignore", "warn" or "raise"
        What happens when a residual passes its tolerance.
    tolerance : float, optional
        The default is ``eps^(2/3)`` of the parameters' dtype for each step of a window, at most
        the square root of eps. Normalisations break their symmetries by their epsilon: for them it
        is not below 10 times that for each step, at most 100 times. Under autocast the gradients
        carry the rounding of the smaller type: give a tolerance then.
    writer : optional
        Anything with ``add_scalar(tag, value, step)``, such as TensorBoard's SummaryWriter.
    prefix : str
        Of the writer's tags.
    flush_every : int
        Fetch values from the device after so many records: only then does the host wait for it,
        write to the writer, and check tolerances.

    Raises
    ------
    ValueError
        If there is nothing to watch, a given group has parameters that the optimiser does not
        train, or parameters of one group have different momenta.
    RuntimeError
        In a step that is predicted, if a gradient is sparse, only some parameters of a group have
        one (others were frozen), or a gradient scaler works with a fused optimiser.

    Notes
    -----
    Steps that a gradient scaler skips are no steps. Gradients may be clipped by norm, scaled or
    accumulated before the step: the laws hold for any gradient of a symmetric function. Clipping
    by value breaks symmetries, and shows. The monitor stores the charges and their records; with
    different weight decays inside a group it copies that group's gradients for a moment.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    >>> optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> x, y = torch.ones(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
    >>> with ChargeMonitor(net, optimizer, loss="cross_entropy", every=5) as monitor:
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
        optimizer: SGD,
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
        check_optimizer(optimizer)
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        self.every = as_count(every, "every")
        self.window = None if window is None else as_count(window, "window")
        if self.window is not None and self.window > self.every:
            raise ValueError(
                f"window must be None or at most every = {self.every}, got {self.window}"
            )
        self.units, self.steps = units, 0
        watched = watched_groups(
            module, optimizer, groups, example_input, loss, as_count(moments, "moments", 0)
        )
        self._laws = Follower(optimizer, watched, dict(module.named_parameters()))
        self.groups, self.labels = self._laws.groups, self._laws.labels
        self._ledger = Ledger(
            self.labels,
            self._laws.tolerances(self.window) if tolerance is None else [tolerance],
            history=history,
            on_break=on_break,
            writer=writer,
            prefix=prefix,
            flush_every=flush_every,
        )
        # Whether the first record is made; whether the predictions are those of this moment.
        self._begun = self._current = False
        # Still True in the next step if a prepared step failed: then the prediction starts anew.
        self._prepared = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def _is_followed(self) -> bool:
        """Tell whether the next step belongs to a window."""
        return self.window is None or self.steps % self.every >= self.every - self.window

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Prepare a step; a closure makes the gradients only when the step calls it."""
        if self._begun and not self._is_followed():
            self._current = self._prepared = False
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._prepare()
            return None

        def evaluated() -> Any:
            loss = closure()
            self._prepare()
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
            self._ledger.add(self.steps, self._laws.figures(snapshot, units=self.units))
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
            self._ledger.add(self.steps, self._laws.figures(snapshot, units=self.units))

    def flush(self) -> None:
        """Fetch the new records, write them to the writer, and check the tolerances.

        If a symmetry is broken, it warns (once) or raises a `SymmetryError`, whose `residual` says
        by how much, as `on_break` says.
        """
        self._ledger.flush()

    def report(self) -> list[ChargeReport]:
        """Return one line for every group; errors as in `record`."""
        return self._ledger.report(self.record(), self.groups)

    def record(self) -> ChargeRecord:
        """Return all records that are kept, on the host.

        Errors as in `flush`, and a RuntimeError if no step was made yet.
        """
        return self._ledger.record(self._laws.owners() if self.units else None)

    def to_xarray(self) -> Any:
        """Return the records as an `xarray.Dataset`; see `ChargeRecord`."""
        return self.record().to_xarray()

    def save(self, path: Any) -> Any:
        """Write the records to one ``.npz`` file, to be read by `ChargeRecord.load`."""
        return self.record().save(path)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin the predictions anew from the charges as they are.

        To be called after something besides the optimiser has moved parameters or buffers.
        """
        self._laws.begin(self._laws.snapshot())
        self._begun = self._current = True
        self._ledger.warned = False

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run continues from: tensors, numbers and lists."""
        return {
            "labels": list(self.labels),
            "units": self.units,
            "steps": self.steps,
            "begun": self._begun,
            "current": self._current,
            "records": self._ledger.state(),
            "laws": self._laws.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, of a monitor of the same groups.

        Load the module and the optimiser as well: the laws continue from their parameters and
        buffers.
        """
        missing = sorted(_STATE.difference(state))
        if missing:
            raise ValueError(f"state must be what state_dict returns, got one without {missing}")
        if tuple(state["labels"]) != self.labels:
            raise ValueError(
                f"state must be of the groups {list(self.labels)}, got {list(state['labels'])}"
            )
        if state["units"] != self.units:
            raise ValueError(f"state must be of units={self.units}, got units={state['units']}")
        self._laws.load(state["laws"])
        self.steps = state["steps"]
        self._begun, self._current = state["begun"], state["current"]
        self._prepared = False
        self._ledger.load(state["records"])

    def close(self) -> None:
        """Remove the hooks from the optimiser and fetch the last records; they stay readable."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            self.close()
            return
        # Do not hide the error that ended the loop.
        self._ledger.on_break = "ignore"
        self.close()
