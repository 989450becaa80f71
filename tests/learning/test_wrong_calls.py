"""Wrong calls of every public name: each is refused in words, or has a meaning written down."""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path

import pytest

from dln_geometry import learning
from tests.learning.wrong_calls.closed import CLOSED
from tests.learning.wrong_calls.layers import LAYERS
from tests.learning.wrong_calls.motion import MOTION
from tests.learning.wrong_calls.networks import NETWORKS
from tests.learning.wrong_calls.rules import RULES
from tests.learning.wrong_calls.values import WRONG

CALLS = {**LAYERS, **RULES, **MOTION, **CLOSED, **NETWORKS}

# Values that functions return, and modules.
RETURNED = {
    "CentralFlow", "CentralPath", "ChargeRecord", "ChargeReport", "Charges", "Collapse",
    "CollapseReport", "DeadUnit", "Lyapunov", "MirrorFamily", "ModuleLoss", "NoiseEquilibrium",
    "RMSPropState", "Sparsified", "Stability", "SymmetryError", "bridge", "closed_forms",
    "Family", "HessianSpectrum", "SymmetryCoverage", "TrainingRegime",
}  # fmt: skip

# Functions that users write raise their own errors.
_FUNCTIONS = {"loss", "losses", "loss_fn", "step", "action", "potential"}
_MODULES = {"no parameters", "frozen", "lazy", "meta module", "twice"}


def _verdict(call, argument, wrong):
    """Return what is amiss with one wrong call, `None` if it is refused or has a meaning."""
    arguments = call.arguments()
    arguments[argument] = WRONG[wrong]()
    right = wrong in call.right.get(argument, ())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call.function(**arguments)
    except Exception as error:
        if "wrong_calls" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts:
            return None
        text = f"{type(error).__name__}: {error}"
        if right:
            return f"refused though right, {text}"
        named = re.search(call.words.get(argument, re.escape(argument)), str(error))
        if type(error) not in (TypeError, ValueError, learning.SymmetryError):
            return f"raised a raw {text}"
        return None if "must" in str(error) and named else f"not refused in words, {text}"
    return None if right else "accepted"


def _failures(name, chosen):
    call = CALLS[name]
    call.function(**call.arguments())
    found = []
    for k, argument in enumerate(call.arguments()):
        for n, wrong in enumerate(WRONG):
            if argument in _FUNCTIONS and wrong in _MODULES:
                continue
            if chosen(k + n) and (verdict := _verdict(call, argument, wrong)) is not None:
                found.append(f"{name}({argument}={wrong}): {verdict}"[:240])
    return found


def test_every_public_name_has_a_call():
    names = {name.split(".")[0].split(" ")[0] for name in CALLS}
    assert names | RETURNED >= set(learning.__all__)
    assert set(learning.__all__) >= RETURNED
    closed = {name.split(".")[1] for name in CALLS if name.startswith("closed_forms.")}
    shared = {"balance_step", "momentum_balance_step", "PeriodTwoOrbit"}
    assert closed | shared == set(learning.closed_forms.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_are_refused(name):
    """A fifth of them; the test below makes all."""
    found = _failures(name, lambda k: k % 5 == 0)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_all_wrong_calls_are_refused(name):
    found = _failures(name, lambda k: True)
    assert not found, "\n".join(found)
