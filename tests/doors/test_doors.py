"""Wrong calls of every public function: each is refused by a message that names the argument.

A table holds one valid call of every function. Each argument in turn is replaced by values that
mean nothing: a `TypeError` or `ValueError` must name it. Other makes of an array must give the
same result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dln_geometry as dln
from dln_geometry import diagnostics, exact, laws, losses, ode, plot, testing, thermodynamics
from dln_geometry import landscape as landscape_room
from tests.doors import figures, geometry, landscape, motions, points, tools, wrong
from tests.doors import laws as laws_calls
from tests.doors import losses as losses_calls
from tests.doors.calls import faults_of

TABLES = points, geometry, losses_calls, laws_calls, motions, tools, figures, landscape
CALLS = {name: calls for table in TABLES for name, calls in table.CALLS.items()}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_values_are_refused_by_the_name_of_the_argument(name):
    faults = [fault for call in CALLS[name] for fault in faults_of(call)]
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def numbers_of(result: Any) -> list[torch.Tensor]:
    """Return all tensors in a result, in order."""
    if isinstance(result, dln.EndToEnd | dln.Collapsed | dln.Network):
        return [result.matrix.detach()]
    if isinstance(result, dln.Trajectory):
        result = [result.t, result.loss, result.singular_values, result.states, result.final]
    if isinstance(result, ode.Solution):
        result = [result.t, *result.saved.values(), result.y]
    if isinstance(result, torch.Tensor):
        return [result.detach() if result.layout == torch.strided else result.detach().to_dense()]
    if isinstance(result, list | tuple):
        return [number for part in result for number in numbers_of(part)]
    return []


def assert_same(result: Any, expected: Any, what: str, **options: Any) -> None:
    one, two = numbers_of(result), numbers_of(expected)
    assert len(one) == len(two), what
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text: f"{what}: {text}", **options)


@pytest.mark.parametrize("name", [name for name in CALLS if any(c.arrays for c in CALLS[name])])
def test_every_make_of_an_array_gives_the_same_result(name):
    for call in CALLS[name]:
        for argument in call.arrays:
            for make, value in wrong.makes(call.arguments[argument]):
                what = f"{argument} as {make}"
                assert_same(call(**{argument: value}), call(), what, check_dtype=False)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_default_device_and_dtype_move_nothing(name):
    """On the device "meta" nothing has a value: what is made there by default would be seen."""
    for k, call in enumerate(CALLS[name]):
        expected = call()
        with torch.device("meta"):
            found = call()
        assert_same(found, expected, f"call {k} on another default device", rtol=0, atol=0)
        usual = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float16)
            assert_same(call(), expected, f"call {k} in another default dtype", rtol=0, atol=0)
        finally:
            torch.set_default_dtype(usual)


# Errors are made by the library, and what has no argument of a user has no door.
ERRORS = {"FlowError", "GeodesicError", "SweepError"}
ROOMS = {"losses": losses, "laws": laws, "exact": exact, "diagnostics": diagnostics}
ROOMS |= {"testing": testing, "plot": plot, "landscape": landscape_room}
ROOMS |= {"thermodynamics": thermodynamics}
INSIDE = {"losses." + name for name in (
    "ElementwiseLoss", "LinkLoss", "Loss", "Pattern", "as_text", "contract", "evaluate",
    "fingerprint", "has_compressed_kernels", "prepared", "ranks_of",
)}  # fmt: skip
# Made by functions; and a function that two faces show.
INSIDE |= {"laws.ProbabilityLaw"}
INSIDE |= {"thermodynamics.BayesianRegression"}
INSIDE |= {f"thermodynamics.{n}" for n in ("MeanFieldPath", "PartitionFunction", "mean_field_flow")}


def test_every_public_name_has_a_call():
    names = {n for n in dln.__all__ if callable(getattr(dln, n))} - ERRORS
    names |= {f"{room}.{n}" for room, module in ROOMS.items() for n in module.__all__} - INSIDE
    assert names - CALLS.keys() == set()
