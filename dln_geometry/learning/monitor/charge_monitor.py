"""Watch the charges of a training loop, and what the exact laws say that they must be."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.search import symmetries_of
from dln_geometry.learning.monitor.assembly import (
    check_optimizer,
    check_options,
    labels_of,
    laws_of,
    narrowed,
    trained_part,
)
from dln_geometry.learning.monitor.products import Snapshot, StepOptions
from dln_geometry.learning.monitor.record import ChargeRecord
from dln_geometry.learning.symmetry.symmetries import SymmetryError

__all__ = ["ChargeMonitor", "ChargeReport"]


_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ChargeReport:
    """How one symmetric group fares.

    Attributes
    ----------
    label : str
        Kind and names of the parameters.
    group : SymmetricGroup
        The group.
    charge, predicted : float
        At the last record; see `ChargeRecord`.
    residual, worst : float
        At the last record, and the largest of all that are kept.
    tolerance : float
        Above it the symmetry counts as broken.
    """

    label: str
    group: SymmetricGroup
    charge: float
    predicted: float
    residual: float
    worst: float
    tolerance: float

    @property
    def is_broken(self) -> bool:
        """Whether the loss does not have the symmetry, or something else moved parameters."""
        return not self.worst <= self.tolerance


class ChargeMonitor:
    """Record the charges of a training loop with SGD, and predict them exactly.

    Where the loss of every batch has a symmetry, the charge of the symmetry moves by a law that
    holds for each step of SGD to the last digit: with momentum, dampening or Nesterov's momentum,
    weight decay and any schedule (see `dln_geometry.learning.monitor.laws`). The monitor hooks into
    ``optimizer.step``, so that the loop stays as it is; it takes squares of the buffers or
    gradients, predicts, and compares with what it measures. A residual above rounding says that
    the loss lacks the symmetry, or that something else than the optimiser moved the parameters.

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
        Measure and record after every so many steps. Predictions take every step into account.
    history : int, optional
        Keep the last so many records; `None` keeps all.
    units : bool
        Keep every single charge, too, and not only one number for each group.
    moments : int
        Largest width of a gauge whose whole matrix is watched: it takes a product of matrices in
        each step. Wider ones are watched by their diagonal.
    on_break : "ignore", "warn" or "raise"
        What happens when a residual passes its tolerance.
    tolerance : float, optional
        The default is the square root of eps of the parameters' dtype, and with normalisations 100
        times their epsilon, by which they break their symmetries themselves.
    writer : optional
        Anything with ``add_scalar(tag, value, step)``, such as TensorBoard's SummaryWriter.
    prefix : str
        Of the writer's tags.
    flush_every : int
        Fetch values from the device after so many records: only then does the host wait for it,
        write to the writer, and check tolerances.

    Raises
    ------
    TypeError
        If `module` is not a Module, or the optimiser not ``torch.optim.SGD``.
    ValueError
        If there is nothing to watch, a given group has parameters that the optimiser does not
        train, or parameters of one group have different momenta; if an option is out of range.

    Notes
    -----
    Steps that are skipped (by a gradient scaler) are no steps. Gradients may be clipped, scaled
    or accumulated at will before the step: the laws hold for any gradient of a symmetric
    function, and clipping by norm keeps it one up to a factor. Clipping by value breaks
    symmetries, and is seen. Memory is that of the charges and their records; weight decay with
    different rates inside a group takes a copy of its gradients in passing.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    >>> optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> x, y = torch.ones(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
    >>> with ChargeMonitor(net, optimizer, loss="cross_entropy") as monitor:
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
        every: int = 1,
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
        self.every = _as_count(every, "every")
        self.moments = _as_count(moments, "moments", least=0)
        self.flush_every = _as_count(flush_every, "flush_every")
        history = None if history is None else _as_count(history, "history")
        if on_break not in ("ignore", "warn", "raise"):
            raise ValueError(f'on_break must be "ignore", "warn" or "raise", got {on_break!r}')
        if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
            raise ValueError(f"tolerance must be positive and finite, got {tolerance}")
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer must have a method add_scalar, got {type(writer).__name__}")
        self.on_break, self.writer, self.prefix, self.units = on_break, writer, prefix, units
        self.optimizer = optimizer
        self.steps = 0
        number_of = {
            id(p): number for number, g in enumerate(optimizer.param_groups) for p in g["params"]
        }
        named = dict(module.named_parameters())
        trained = {n for n, p in named.items() if id(p) in number_of and p.requires_grad}
        if groups is None:
            found = symmetries_of(module, example_input, loss=loss)
            groups = [g for group in found for g in trained_part(group, trained)]
        watched = [narrowed(group, self.moments) for group in groups if group.kind != "permutation"]
        for group in watched:
            group.check(named)
            missing = sorted(set(group.names) - trained)
            if missing:
                raise ValueError(
                    f"groups must hold parameters that the optimizer trains, got {missing}"
                )
        if not watched:
            raise ValueError(
                "module must have symmetric groups that the optimizer trains, got none: give "
                "groups, or an example_input and a loss to find more"
            )
        self._params = {n: named[n] for n in dict.fromkeys(n for g in watched for n in g.names)}
        self._group_of = {n: number_of[id(p)] for n, p in self._params.items()}
        self._last_options: list[StepOptions] = []
        self._options_of: dict[str, StepOptions] = {}
        self._products, self._laws = laws_of(watched, self._params, self._group_of)
        self.groups = tuple(g for law in self._laws for g in law.groups)
        self.labels = labels_of(self.groups)
        self._tolerances = [
            tolerance if tolerance is not None else self._default_tolerance(g) for g in self.groups
        ]
        self._begun = self._warned = False
        self._waiting: list[tuple[int, Tensor]] = []
        self._kept: deque[tuple[int, Tensor]] = deque(maxlen=history)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        for options in self._options().values():
            check_options(options)
        for law in self._laws:
            law.check(self._options())

    def _default_tolerance(self, group: SymmetricGroup) -> float:
        eps = max(torch.finfo(self._params[n].dtype).eps for n in group.names)
        return max(math.sqrt(eps), 100 * group.epsilon)

    def _options(self) -> dict[str, StepOptions]:
        options = [StepOptions.of(group) for group in self.optimizer.param_groups]
        if options != self._last_options:
            self._last_options = options
            self._options_of = {name: options[k] for name, k in self._group_of.items()}
        return self._options_of

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._products, self._params, self.optimizer.state, self._options())

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Prepare a step; a closure makes the gradients only when the step calls it."""
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
        if getattr(self.optimizer, "found_inf", None) is not None:
            raise RuntimeError(
                "a gradient scaler must decide on the host whether to step, but a fused optimizer "
                "decides on the device: use fused=False"
            )
        without = []
        for name, p in self._params.items():
            gradient = p.grad
            if gradient is None:
                without.append(name)
            elif gradient.is_sparse:
                raise RuntimeError(f"gradients must be dense, got {gradient.layout} for {name!r}")
        held = frozenset(without)
        if held:
            self._check_held(held)
        snapshot = self._snapshot()
        if not self._begun:
            self._begin(snapshot)
        fresh = _NONE
        if any(options.dampening for options in self._last_options):
            fresh = frozenset(n for n, v in snapshot.tensors("v").items() if v is None)
        for law in self._laws:
            law.before(snapshot, held, fresh)

    def _check_held(self, held: frozenset[str]) -> None:
        """Refuse a step that moves a part of a group only."""
        for label, group in zip(self.labels, self.groups, strict=True):
            without = [n for n in group.names if n in held]
            if group.kind != "translation" and 0 < len(without) < len(group.names):
                raise RuntimeError(
                    f"all parameters of {label} must have gradients or none of them, got none for "
                    f"{without}"
                )

    def _begin(self, snapshot: Snapshot) -> None:
        for law in self._laws:
            law.begin(snapshot)
        self._begun = True
        self._record(snapshot)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        snapshot = self._snapshot()
        for law in self._laws:
            law.after(snapshot)
        self.steps += 1
        if self.steps % self.every == 0:
            self._record(snapshot)

    def _record(self, snapshot: Snapshot) -> None:
        """Measure, and keep the figures on the device."""
        for law in self._laws:
            law.settle()
        measured = [law.measured(snapshot) for law in self._laws]
        figures: list[Tensor] = []
        for kind in ("charge", "predicted", "residual"):
            for law, charges in zip(self._laws, measured, strict=True):
                assert law.charges is not None
                if kind == "charge":
                    figures.append(law.summary(charges))
                elif kind == "predicted":
                    figures.append(law.summary(law.charges))
                else:
                    off = law.largest((charges - law.charges).abs())
                    size = law.largest(law.sizes(snapshot))
                    # Nothing against nothing is no deviation.
                    figures.append(torch.where(off == 0, off, off / size))
        if self.units:
            figures += [c.reshape(-1) for c in measured]
            figures += [law.charges.reshape(-1) for law in self._laws if law.charges is not None]
        self._waiting.append((self.steps, torch.cat(figures)))
        if len(self._waiting) >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """Fetch what was recorded, write it to the writer, and check the tolerances.

        Raises
        ------
        SymmetryError
            If a symmetry is broken and ``on_break="raise"``; `residual` says by how much.

        Warns
        -----
        UserWarning
            The first time that a symmetry is broken, with ``on_break="warn"``.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        values = torch.stack([figures for _, figures in waiting]).cpu()
        rows = [(step, row) for (step, _), row in zip(waiting, values, strict=True)]
        self._kept.extend(rows)
        count = len(self.labels)
        if self.writer is not None:
            for step, row in rows:
                for k, label in enumerate(self.labels):
                    self.writer.add_scalar(f"{self.prefix}/{label}", float(row[k]), step)
                    self.writer.add_scalar(
                        f"{self.prefix}_residual/{label}", float(row[2 * count + k]), step
                    )
        if self.on_break != "ignore" and not self._warned:
            self._check(rows)

    def _check(self, rows: Sequence[tuple[int, Tensor]]) -> None:
        count = len(self.labels)
        allowed = torch.tensor(self._tolerances, dtype=rows[0][1].dtype)
        for step, row in rows:
            residual = row[2 * count : 3 * count]
            broken = ~(residual <= allowed)
            if bool(broken.any()):
                k = int(torch.where(broken, residual / allowed, -1.0).nan_to_num(math.inf).argmax())
                message = (
                    f"{self.labels[k]} must be a symmetry within {self._tolerances[k]:.1e}, got a "
                    f"residual of {float(residual[k]):.3e} after {step} steps"
                )
                if self.on_break == "raise":
                    raise SymmetryError(message, float(residual[k]))
                self._warned = True
                warnings.warn(message, UserWarning, stacklevel=2)
                return

    def report(self) -> list[ChargeReport]:
        """Return how every group fares, the worst of all records that are kept included.

        Raises
        ------
        SymmetryError
            As `flush`.
        RuntimeError
            If no step was made yet.
        """
        record = self.record()
        worst = record.residual.nan_to_num(math.inf).amax(0)
        return [
            ChargeReport(
                label,
                group,
                float(record.charge[-1, k]),
                float(record.predicted[-1, k]),
                float(record.residual[-1, k]),
                float(worst[k]),
                self._tolerances[k],
            )
            for k, (label, group) in enumerate(zip(self.labels, self.groups, strict=True))
        ]

    def record(self) -> ChargeRecord:
        """Return all records that are kept, on the host.

        Raises
        ------
        SymmetryError
            As `flush`.
        RuntimeError
            If no step was made yet.
        """
        self.flush()
        if not self._kept:
            raise RuntimeError("nothing is recorded yet: the first step of the optimizer begins")
        values = torch.stack([row for _, row in self._kept])
        g = len(self.labels)
        charge, predicted, residual, rest = values.split([g, g, g, values.shape[1] - 3 * g], dim=1)
        steps = torch.tensor([step for step, _ in self._kept])
        if not self.units:
            return ChargeRecord(steps, self.labels, charge, predicted, residual)
        unit_charge, unit_predicted = rest.chunk(2, dim=1)
        owners: list[int] = []
        before = 0
        for law in self._laws:
            owners += [before + k for k in law.owners().tolist()]
            before += len(law.groups)
        return ChargeRecord(
            steps, self.labels, charge, predicted, residual, unit_charge, unit_predicted,
            tuple(owners),
        )  # fmt: skip

    def to_xarray(self) -> Any:
        """Return the records as an `xarray.Dataset`; see `ChargeRecord`."""
        return self.record().to_xarray()

    def save(self, path: Any) -> Any:
        """Write the records to one ``.npz`` file, to be read by `ChargeRecord.load`."""
        return self.record().save(path)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin the predictions anew from the charges as they are.

        After something else than the optimiser has moved parameters or buffers.
        """
        snapshot = self._snapshot()
        for law in self._laws:
            law.begin(snapshot)
        self._begun, self._warned = True, False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from: tensors, numbers and lists."""
        self.flush()
        return {
            "labels": list(self.labels),
            "steps": self.steps,
            "begun": self._begun,
            "laws": [law.state() for law in self._laws],
            "records": [(step, row.clone()) for step, row in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Load the module and the optimiser as well: the laws go on from their parameters and
        buffers.

        Raises
        ------
        ValueError
            If it belongs to other groups, or other options of the records.
        """
        if tuple(state["labels"]) != self.labels:
            raise ValueError(
                f"state must be of the groups {list(self.labels)}, got {list(state['labels'])}"
            )
        for law, saved in zip(self._laws, state["laws"], strict=True):
            law.load(saved)
        self.steps, self._begun = state["steps"], state["begun"]
        self._waiting = []
        self._kept.clear()
        self._kept.extend((step, row.clone()) for step, row in state["records"])

    def close(self) -> None:
        """Take the hooks out of the optimiser and fetch the last records; they stay readable."""
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
        # The error that ended the loop is the one to be seen.
        self.on_break = "ignore"
        self.close()


def _as_count(value: Any, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value
