"""Every public function on a device that is pretended: nothing there meets the CPU.

Each call of the tables of valid calls is made twice, with everything on the CPU and on the
device. The results must agree, generators included, and lie on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from itertools import zip_longest
from typing import Any

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from tests.devices.moves import moved, tensors_of
from tests.devices.pretended import NAME, MixedDevices, PretendedTensor, pretended, there
from tests.doors import figures, geometry, landscape, motions, points, tools
from tests.doors import laws as law_calls
from tests.doors import losses as loss_calls
from tests.doors.shared import X, normal
from tests.learning.wrong_calls import closed, layers, motion, networks, rules

DOORS = {
    name: calls
    for table in (points, geometry, landscape, loss_calls, law_calls, motions, tools, figures)
    for name, calls in table.CALLS.items()
    if name not in ("plot.panel_letters", "plot.save")  # they take figures, which hold no tensors
}
LEARNING = {
    **layers.LAYERS,
    **rules.RULES,
    **motion.MOTION,
    **closed.CLOSED,
    **networks.NETWORKS,
}

# Results that lie on the CPU by intention.
ON_THE_CPU = {
    "Trajectory": "files are read to the CPU",
    "mean_field_flow": "quantiles of a density are moved on the host",
    "ode.integrate": "flags of the start are for the host",
    "Mirror.permutation": "indices and frames of a mirror are small, and follow the parameters",
    "thermodynamics.sample_exact": "values are drawn one after the other, on the host",
    "mirrors_of": "indices and frames of a mirror are small, and follow the parameters",
}
# What this device cannot show: storages of parameters are compared or replaced there.
UNSEEN = {"noether_residual", "ChargeMonitor"}
# Of equal eigenvalues of the start any frame may be taken: the law is the same, the path is not.
ANY_FRAME = {
    "isospectral_flow": {".final"},
    "landscape.critical_factors": {".0", ".1", ".2"},
}
# Points far apart take minutes of operations: near ones, and a loose tolerance, take the same ones.
CLOSE: dict[str, list[dict[str, Any]]] = {
    "distance": [
        {"rtol": 1e-5},
        {"rtol": 1e-5, "p": dln.EndToEnd.of(X + 0.02 * normal(2, 3, 2), 3)},
    ]
}
# Thousands of operations: the rest of the table shows the kinds.
LONG = {
    "distance", "dln_dyson", "parallel_transport", "balancing_flow", "balanced_geodesic",
    "balanced_transport", "singular_dyson", "riemann_curvature", "kirwan_ness_flow",
    "free_energy_flow", "dyson", "langevin", "brownian_motion", "sample_gibbs", "isospectral_flow",
    "diagnostics.effective_sample_size", "gradient_flow",
}  # fmt: skip


def faults_of(
    here: Any, far: Any, on_the_cpu: bool = False, free: Collection[str] = ()
) -> list[str]:
    """Return what is on the CPU, or has other values, in the result of the device.

    Values of the names in `free` may differ.
    """
    one, two = tensors_of(here), tensors_of(far)
    faults = [] if one.keys() == two.keys() else [f"{sorted(one.keys() ^ two.keys())} in one only"]
    for name in one.keys() & two.keys():
        a, b = one[name].detach(), two[name].detach()
        if isinstance(b, PretendedTensor):
            b = b.held
        elif not on_the_cpu:
            faults.append(f"{name} is on the CPU")
            continue
        a, b = (x if x.layout == torch.strided else x.to_dense() for x in (a, b))
        if a.shape != b.shape or a.dtype != b.dtype:
            faults.append(f"{name}: {tuple(a.shape)} {a.dtype} here, {tuple(b.shape)} {b.dtype}")
        elif (
            name not in free
            and a.is_floating_point()
            and not torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        ):
            faults.append(f"{name} differs by {float((a - b).abs().max()):.2g}")
    return faults


def placed(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments, with a device where the function takes one and is given none."""
    code = getattr(function, "__code__", None)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if code else ()
    return {"device": torch.device("cpu"), **arguments} if "device" in names else arguments


def both(function: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Return the results on the CPU and on the device, with moved arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, given = moved((function, placed(function, arguments)), torch.clone)
        torch.manual_seed(1)
        expected = here(**given)
        with pretended():
            far, given = moved((function, placed(function, arguments)), there)
            torch.manual_seed(1)
            return expected, far(**given)


def both_by_default(call: Any) -> tuple[Any, Any]:
    """Return the results of a call whose data are made on the default device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        expected = call.function(**call.arguments())
        with pretended(), torch.device(NAME, 0):
            torch.manual_seed(1)
            given = moved(
                call.arguments(), lambda x: x if isinstance(x, PretendedTensor) else there(x)
            )
            return expected, call.function(**given)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in DOORS]
)
def test_public_functions_stay_on_the_device(name):
    for call, nearer in zip_longest(DOORS[name], CLOSE.get(name, []), fillvalue={}):
        arguments = {**call.arguments, **{n: make() for n, make in call.fresh.items()}, **nearer}
        results, free = both(call.function, arguments), ANY_FRAME.get(name, ())
        assert not faults_of(*results, name in ON_THE_CPU, free)


COMPLEX = [
    torch.randn(3, 2, generator=torch.Generator().manual_seed(k), dtype=torch.complex128)
    for k in (5, 6)
]
AT = dln.EndToEnd.of(COMPLEX[0], 3)
FLOW: dict[str, Any] = {
    "loss": losses.Quadratic(COMPLEX[1]), "start": dln.Collapsed.of(AT), "t_end": 0.05,
    "save_at": [0.0, 0.05],
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (dln.metric, {"point": AT, "z": COMPLEX[1]}),
        (dln.connection, {"point": AT, "z": COMPLEX[1], "w": COMPLEX[0]}),
        (dln.balanced_factors, {"point": AT}),
        (dln.gradient_flow, {**FLOW, "decay": 0.1}),
        (dln.brownian_motion, {"start": AT, "t_end": 0.02, "dt": 0.01, "generator": 3}),
    ],
)
def test_complex_matrices_stay_on_the_device(function, arguments):
    assert not faults_of(*both(function, arguments))


def faults_of_learning(call: Any, on_the_cpu: bool) -> list[str]:
    try:
        faults = faults_of(*both(call.function, call.arguments()), on_the_cpu)
    except (MixedDevices, ValueError):
        faults = ["data made by the call itself"]
    # Data that calls make of plain numbers follow the default device alone.
    return faults and faults_of(*both_by_default(call), on_the_cpu)


@pytest.mark.parametrize("name", sorted(LEARNING.keys() - UNSEEN))
def test_learning_stays_on_the_device(name):
    assert not faults_of_learning(LEARNING[name], name in ON_THE_CPU)


def test_devices_that_meet_are_seen():
    with pretended() as counts:
        x = torch.ones(2, 2, device=torch.device(NAME, 0))
        with pytest.raises(MixedDevices, match="add"):
            x + torch.ones(2, 2)
        with pytest.raises(MixedDevices, match="generator"):
            torch.randn(2, generator=torch.Generator(), device=x.device)
        assert counts.total == 0
        assert bool((x > 0).all())
        x.tolist(), x.cpu(), x[x > 0]
        assert counts.total == 4


F64 = torch.float64
FAR = torch.randn(3, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
FREE = [torch.randn(2, 2, generator=torch.Generator().manual_seed(k), dtype=F64) for k in (1, 2)]


@pytest.mark.parametrize(
    "name",
    [
        "gradient_flow",
        "kirwan_ness_flow",
        pytest.param("free_energy_flow", marks=pytest.mark.slow),
        pytest.param("langevin", marks=pytest.mark.slow),
    ],
)
def test_stored_runs_continue_on_the_device(name, tmp_path):
    """A run that is killed and taken up again has the same bits as one that is not."""
    start = dln.Collapsed.of(dln.EndToEnd.of(FAR + 1.0, 3))
    given: dict[str, Any] = {"loss": losses.Quadratic(FAR), "start": start}
    ends: dict[str, Any] = {"t_end": 0.4, "save_at": [0.0, 0.2, 0.4]}
    if name == "free_energy_flow":
        given["beta"] = 5.0
    if name == "kirwan_ness_flow":
        given = {"factors": FREE}
    if name == "langevin":
        given |= {"beta": 5.0, "method": "splitting", "dt": 0.05}
    run = getattr(dln, name)
    with pretended():
        given = moved(given, there)
        seeds = {"generator": 3} if name == "langevin" else {}
        whole = run(**given, **ends, **seeds)
        calls = 0

        def stop(fraction: float, info: Any) -> None:
            nonlocal calls
            calls += 1
            if fraction > 0.4:
                raise KeyboardInterrupt

        options = {**given, **ends, **seeds, "store": tmp_path / "run"}
        with pytest.raises(KeyboardInterrupt):
            run(**options, progress=stop)
        again = run(**options)
        assert calls
        for a, b in zip(tensors_of(whole).values(), tensors_of(again).values(), strict=True):
            assert isinstance(b, PretendedTensor)
            assert torch.equal(a.held, b.held)
