"""Find the symmetric groups of a module, and report what they leave unexplained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dln_geometry.learning.architecture.confirmation import confirmed, not_refuted
from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.probing.counting import (
    MOST_FOR_RANK,
    by_probes,
    dimensions,
)  # fmt: skip
from dln_geometry.learning.architecture.probing.finding import Finder
from dln_geometry.learning.architecture.probing.jacobian import Prober
from dln_geometry.learning.architecture.probing.operators import Proposals, recorded
from dln_geometry.learning.architecture.probing.translations import opposed_pairs
from dln_geometry.learning.architecture.search import copied, groups_by_graph
from dln_geometry.learning.architecture.subject import Call, Subject
from dln_geometry.learning.architecture.trials import trials_on
from dln_geometry.learning.functional import as_arguments, parameters_of
from dln_geometry.support import shown

# Some hundred rows of the Jacobian of a module with more parameters are not held, but a few are.
_MOST_PARAMETERS, _LOOKS = 20_000, 3


@dataclass(frozen=True)
class SymmetryCoverage:
    """How many of the directions that change no output the groups of a module explain.

    Attributes
    ----------
    found : int
        Dimension of the span of all generators of the groups, at random parameters.
    true : int or None
        Number of parameters minus the rank of the Jacobian of the outputs over many inputs, at
        random parameters. It is the least of several points: units that are on for all inputs, or
        for none, hide directions, and where they stay so the number depends on the data. Above
        5,000 parameters the rank is out of reach (it needs a gradient for each), and random
        probes stand for it: all linear maps between two or three units of each axis of each
        parameter, shifts of these units, and multiples of whole parameters. `true` is then `found`
        if none of the flat directions among them is missing in the groups: a direction that moves
        many units in another way may still be. `None` if it is not known, for the `reason` given:
        probes that found flat directions in no group (at least so many are missing), entries that
        no input reaches, too few outputs, a rank that is not clear, gradients that take too long,
        or a module that fails at other parameters.
    groups : tuple of SymmetricGroup
        The groups, as `symmetries_of` returns them.
    missing : tuple of str
        Parameters that no group moves.
    stops : tuple of str
        Operators without a rule, with the line that calls them: what may pass there is not known
        (see `register_operator`). Only if there are none, a parameter in `missing` means that the
        search had everything to go by.
    parameters : int
        Number of real parameters.
    gap : float
        Quotient of the singular values of the Jacobian on both sides of the rank: the larger, the
        more certain is `true`.
    reason : str
        Why `true` is `None` or probed, and what was done; empty if it is the rank.
    bounds : tuple of int
        Between which `true` is certain to lie, as far as a rank of numbers is: equal if it is the
        rank. Above 5,000 parameters the upper one is of little use, the number of parameters minus
        that of the probes that do change the outputs.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> report = dln.learning.symmetry_coverage(net, torch.randn(8, 4))
    >>> report.found, report.true, report.missing, report.stops
    (6, 6, ('2.bias',), ())
    """

    found: int
    true: int | None
    groups: tuple[SymmetricGroup, ...]
    missing: tuple[str, ...]
    stops: tuple[str, ...]
    parameters: int
    gap: float = float("nan")
    reason: str = ""
    bounds: tuple[int, int] = (0, 0)

    @property
    def is_complete(self) -> bool:
        """Whether the groups explain all directions that change no output, or all probed."""
        return self.true is not None and self.found >= self.true

    def __str__(self) -> str:
        true = "an unknown number" if self.true is None else str(self.true)
        lines = [f"{self.found} of {true} flat directions in {len(self.groups)} groups"]
        for what, names in (("in no group", self.missing), ("not understood", self.stops)):
            lines += [f"{what}: {', '.join(names)}"] if names else []
        lines += [f"dimension: {self.reason}"] if self.reason else []
        return "\n".join(lines)


def symmetries_of(
    module: nn.Module, *inputs: Any, loss: str | None = None, **keyword_inputs: Any
) -> list[SymmetricGroup]:
    """Return the symmetric groups of parameters of a module.

    It traces the module by ``torch.fx`` and follows every layer to all operations that read it:

    - scale: weights before batch, instance, layer, group and RMS normalisation, through positively
      homogeneous operations (ReLU, pooling, dropout), and the directions of a weight norm;
    - translation: shifts that a normalisation subtracts again, or that do not change a softmax
      (of the output, if `loss` says so), and the bias of the keys of an attention;
    - rescale: hidden units between two layers, through positively homogeneous operations;
      weights and biases of normalisations count as layers;
    - gauge: two layers with nothing nonlinear between them, also keys and queries and values and
      outputs of each head of ``nn.MultiheadAttention``, and the layers of a `DeepLinear`;
    - permutation: hidden units between two layers, through operations that act on each alike, and
      the heads of an attention.

    A gauge contains rescalings and permutations of its indices (`SymmetricGroup.diagonal`), which
    are not listed beside it.

    With example inputs it goes on from what the module computes, whatever its modules are called:
    the operators of one call propose groups (see `register_operator`), and linear algebra decides
    which combinations of them change no output to first order, at several random parameters and on
    many inputs. So it finds the groups of hand-written normalisations and attentions (grouped,
    rotary), gates, recurrent cells, message passing and tied weights, of layers that are joined or
    stand beside each other (adapters, modulation) and of chains of narrow layers, and three kinds
    more: rotation, commutant and shift (see `Family`). They also pass weight norms, exponentials,
    and gains that are written ``1 + g``; maps that one parameter holds in a stack (experts, heads)
    have groups of their own. Not found are directions that only the sizes of layers explain, such
    as those of a product of two forms or of a convolution into a linear layer on few pixels:
    `symmetry_coverage` counts them.
    A claim holds at all parameters: groups that only units without effect have are left out.
    This goes up to 20,000 parameters, and takes seconds for a thousand, minutes for ten thousand;
    in larger modules the graph is followed, and shifts of two parameters with the same gradients
    are found (the two biases of a sum, tables of tokens and of positions).

    Parameters
    ----------
    module : Module
        In the mode in which it is trained: batch normalisation is symmetric in training mode only.
    *inputs, **keyword_inputs : optional
        The arguments of the module; one tuple stands for all arguments, one mapping for all keyword
        arguments, as the `inputs` of `functionalize`. They tell the numbers of dimensions, and
        groups that change the output are left out: each is tried at random parameters, buffers and
        inputs like those given, also in batches of 4 to 16 rows if the module takes them, and must
        change the outputs by rounding only (the epsilon of a normalisation, which
        `SymmetricGroup.epsilon` states, is negligible there). Without them, inputs are taken to be
        batches (matrices for linear layers before ``BatchNorm1d``, ``GroupNorm``, ``Flatten`` or
        a softmax with ``dim=1``).
    loss : "cross_entropy" or None
        The loss of the output. A common shift of all logits does not change cross entropy; the
        classes must be the channels of the last layer.

    Returns
    -------
    list of SymmetricGroup
        Those of the graph in the order of the layers, then the others, with the names that the
        parameters have in `module`, which may be wrapped (``DataParallel``,
        ``DistributedDataParallel``, ``AveragedModel``, ``torch.compile``). Without inputs,
        parameters that are used twice (tied, or in a module that is called twice) or under hooks
        are in none.

    Raises
    ------
    TypeError
        If `module` is no module, or cannot be copied.
    ValueError
        If it has no parameters, or lazy ones, or cannot be called on the inputs.

    Warns
    -----
    UserWarning
        If a module inside cannot be traced by ``torch.fx``, since its path depends on values; the
        reason is told. With inputs, its children are traced on their own, and their groups that
        pass it are kept. If groups of the graph change the output on the example, or groups or
        units in them could not be tried since no output depends on them.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> for group in dln.learning.symmetries_of(net, loss="cross_entropy"):
    ...     print(group.kind, group.units, group.names)
    rescale 8 ('0.weight', '0.bias', '2.weight')
    permutation 8 ('0.weight', '0.bias', '2.weight')
    translation 1 ('2.weight', '2.bias')
    """
    return _search(module, _call_of(inputs, keyword_inputs), loss)[0]


def symmetries_by_graph(
    module: nn.Module, example_input: Any = None, *, loss: str | None = None
) -> list[SymmetricGroup]:
    """Return the groups of `symmetries_of` that follow from the graph, and pass the trials."""
    call = None if example_input is None else as_arguments(example_input)
    return _search(module, call, loss, probe=False)[0]


def symmetry_coverage(
    module: nn.Module, *inputs: Any, loss: str | None = None, **keyword_inputs: Any
) -> SymmetryCoverage:
    """Report which directions that change no output the groups of `symmetries_of` explain.

    Parameters, errors and warnings as there; inputs are required, a ValueError otherwise.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    >>> print(dln.learning.symmetry_coverage(net, torch.randn(8, 4)))
    31 of 31 flat directions in 7 groups
    """
    call = _call_of(inputs, keyword_inputs)
    if call is None:
        raise ValueError("inputs must be the arguments of the module, got none")
    groups, prober, proposals, reason = _search(module, call, loss)
    named = parameters_of(module)
    moved = {name for group in groups for name in _names_moved(group)}
    missing = tuple(name for name in named if name not in moved)
    count = sum(p.numel() for p in named.values() if p.is_floating_point())
    found, true = sum(_generators(group, named) for group in groups), None
    bounds, gap = (0, count), float("nan")
    if prober is not None:
        subject = prober.subject
        with torch.random.fork_rng(devices=subject.devices), _on_device(subject):
            if isinstance(prober, Finder):
                found, true = dimensions(prober, groups)
                gap, reason = prober.gap, prober.reason
                bounds = (found, count) if true is None else (true, true)
            if count > MOST_FOR_RANK:
                found, true, bounds, reason = by_probes(prober, groups, found)
    own = (tuple(groups), missing, tuple(proposals.stops), count)
    return SymmetryCoverage(found, true, *own, gap, reason, bounds)


def _generators(group: SymmetricGroup, params: Mapping[str, Any]) -> int:
    """Return the number of generators of a group, none of a permutation."""
    if group.kind == "permutation":
        return 0
    return math.prod(group.symmetry(dict(params)).shape(dict(params)))


def _names_moved(group: SymmetricGroup) -> set[str]:
    """Return the names of the parameters that a group moves, also by what it folds."""
    return {*group.names, *(n for fold in getattr(group, "folds", ()) for n in fold.names)}


def _call_of(inputs: tuple[Any, ...], keyword_inputs: Mapping[str, Any]) -> Call | None:
    """Return the call that some inputs stand for, `None` if there are none."""
    if set(keyword_inputs) == {"example_input"} and not inputs:
        inputs, keyword_inputs = (keyword_inputs["example_input"],), {}
    alone = len(inputs) == 1 and not keyword_inputs
    if not (inputs or keyword_inputs) or (alone and inputs[0] is None):
        return None
    if alone:
        return as_arguments(inputs[0])
    return as_arguments(inputs)[0], as_arguments(keyword_inputs)[1]


def _search(
    module: nn.Module, call: Call | None, loss: str | None, *, probe: bool = True
) -> tuple[list[SymmetricGroup], Finder | Prober | None, Proposals, str]:
    """Return the groups, the search by linear algebra, the proposals, and why there was no search.

    Of a large module only the Jacobian is returned in place of the search.
    """
    if not parameters_of(module):
        raise ValueError(f"module must have parameters, got a {type(module).__name__} without any")
    if loss is not None and not (isinstance(loss, str) and loss == "cross_entropy"):
        raise ValueError(f'loss must be "cross_entropy" or None, got {shown(loss)}')
    logits = loss == "cross_entropy"
    twin = copied(module, call)
    subject = None if call is None else Subject(twin, call, logits=logits)
    groups, guesses = groups_by_graph(twin, call, logits=logits)
    if subject is None:
        return groups, None, Proposals(), "no inputs were given"
    groups = confirmed(groups, guesses, trials_on(subject))
    if not probe:
        return groups, None, Proposals(), "only the graph was followed"
    proposals = recorded(subject)
    own = subject.own().params.values()
    total = sum(p.numel() for p in own)
    only = "only the graph was followed:"
    if any(p.is_complex() for p in own):
        return groups, None, proposals, f"{only} some parameters are complex"
    subject.class_axis = proposals.class_axis
    try:
        with torch.random.fork_rng(devices=subject.devices), _on_device(subject):
            if total > _MOST_PARAMETERS:
                prober = Prober(subject)
                drawn = prober.gradients(prober.point(0.5), tuple(prober.shapes))
                looks = [g for _, g in zip(range(_LOOKS), drawn, strict=False)]
                found = list(opposed_pairs(looks)) if looks else []
                return [*groups, *not_refuted(found, trials_on(subject))], prober, proposals, ""
            finder = Finder(subject, proposals)
            for group in groups:
                finder.add(group, sure=True)
            before = len(finder.groups)
            if not finder.is_done:
                finder.search()
    except RuntimeError as error:
        # A module may fail, or not end, at parameters that are not its own.
        reason = f"{only} the module fails at other parameters ({error})"
        return groups, None, proposals, reason
    groups += not_refuted(finder.groups[before:], trials_on(subject))
    return groups, finder, proposals, ""


def _on_device(subject: Subject) -> AbstractContextManager[Any]:
    """Make tensors on the device of a module; on that of torch's default they are anyway."""
    device = subject.generator.device
    return nullcontext() if device == torch.get_default_device() else device
