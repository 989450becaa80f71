"""Functions of points and layers: how they scale, turn, batch and round, on cases drawn at random.

``--hypothesis-profile=night`` tries a hundred times as many.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

import dln_geometry as dln
from tests.properties import layers, points, quantities
from tests.properties.cases import F64, Law, layers_case, point_case

REFUSED = ValueError, dln.GeodesicError, dln.FlowError
DTYPES = some.sampled_from([F64, torch.float32, torch.complex128])
SEEDS = some.integers(0, 2**31)
DEPTHS = some.one_of(
    some.integers(1, 6).map(float), some.floats(1.0, 30.0), some.sampled_from([1e3, math.inf])
)


@some.composite
def cases_of_points(draw, dtypes=DTYPES):
    m, n = draw(some.integers(1, 4)), draw(some.integers(1, 4))
    g, dtype = torch.Generator().manual_seed(draw(SEEDS)), draw(dtypes)
    batch = draw(some.sampled_from([(), (2,)]))
    r, depth = draw(some.integers(1, min(m, n))), draw(DEPTHS)
    return point_case(g, (m, n), r, depth, dtype=dtype, batch=batch, equal=draw(some.booleans())), g


@some.composite
def cases_of_layers(draw, balanced, dtypes=DTYPES):
    widths = tuple(draw(some.lists(some.integers(1, 3), min_size=2, max_size=5)))
    g, dtype = torch.Generator().manual_seed(draw(SEEDS)), draw(dtypes)
    batch = draw(some.sampled_from([(), (2,)]))
    r = draw(some.integers(1, min(widths)))
    return layers_case(
        g, widths, r, balanced=balanced, dtype=dtype, batch=batch, equal=draw(some.booleans())
    ), g


def off(found: list, wanted: list, law: Law, case: Any, eps: float, size: float = 0.0) -> str:
    """Say by how much values are off, "" if by roundings alone."""
    bound = 1000 * eps * law.loose * case.condition**law.power
    for a, b in zip(found, wanted, strict=True):
        wide = torch.complex128 if a.is_complex() or b.is_complex() else F64
        a, b = a.detach().to(wide), b.detach().to(wide)
        scale = max(float(b.abs().max()), 1.0 if law.log else 1e-300, size)
        if not float((a - b).abs().max()) <= bound * scale:
            return f"{float((a - b).abs().max()) / scale:.1e} > {bound:.1e}"
    return ""


def faults(table: dict[str, Law], case: Any, g: torch.Generator, by: int) -> list[str]:
    """Try how functions scale by ``2^by``, turn, take batches, and round."""
    found, turns = [], case.turns(g)
    first = case.point.s if hasattr(case, "point") else case.layers[0].real
    eps, batch = torch.finfo(first.dtype).eps, first.ndim > (1 if hasattr(case, "point") else 2)
    is_complex = (case.covectors if hasattr(case, "point") else case.layers)[0].is_complex()
    for name, law in table.items():
        if (is_complex and not law.complex) or not law.allowed(case):
            continue
        try:
            values = law.values(case)
            shift = by * law.degree_at(case)
            scaled = law.values(case.scaled(2.0**by))
            wanted = [x + shift * math.log(2.0) if law.log else x * 2.0**shift for x in values]
            size = float(law.size(case))
            if text := off(scaled, wanted, law, case, eps, size * 2.0**shift):
                found.append(f"{name} scaled by 2^{by} is off by {text}")
            if law.turning:
                turned = law.values(case.turned(turns))
                if text := off(turned, law.turned(values, turns), law, case, eps, size):
                    found.append(f"{name} turned is off by {text}")
            if batch and law.batched:
                alone = law.values(case.item(1))
                size = max([size, *(float(x.detach().abs().max()) for x in values)])
                if text := off([x[1] for x in values], alone, law, case, eps, size):
                    found.append(f"{name} of a batch is off by {text}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def quiet(table: dict[str, Law], drawn: tuple[Any, torch.Generator], by: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = faults(table, *drawn, by)
    assert not wrong, "\n".join(wrong)


FEW = settings(max_examples=max(3, settings().max_examples // 6))
POWERS = some.integers(-8, 8)
ONE = some.sampled_from


@FEW
@given(cases_of_points(), POWERS)
def test_functions_of_points(drawn, by):
    quiet(points.CHEAP, drawn, by)


@FEW
@given(cases_of_points(), POWERS, ONE(sorted(points.DEAR)))
def test_motions_of_points(drawn, by, name):
    quiet({name: points.DEAR[name]}, drawn, by)


@given(cases_of_layers(False), POWERS, ONE(sorted(layers.ANY)))
def test_functions_of_any_layers(drawn, by, name):
    quiet({name: layers.ANY[name]}, drawn, by)


@FEW
@given(cases_of_layers(True), POWERS)
def test_functions_of_balanced_layers(drawn, by):
    quiet(layers.BALANCED, drawn, by)


@given(cases_of_layers(True), POWERS, ONE(sorted(layers.BALANCED_DEAR)))
def test_motions_of_balanced_layers(drawn, by, name):
    quiet({name: layers.BALANCED_DEAR[name]}, drawn, by)


@given(ONE(sorted(quantities.QUANTITIES)), POWERS)
def test_functions_of_quantities(name, by):
    if text := far_off(*quantities.QUANTITIES[name], by, 1e-7):
        raise AssertionError(f"{name} scaled by 2^{by} is off: {text}")


def far_off(call: Any, degree: float, by: int, bound: float) -> str:
    """Say how ``call(2^by)`` is off ``2^(by degree) call(1)``, "" if it is not, or out of range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = call(1.0)
        try:
            found = call(2.0**by)
        except (*REFUSED, OverflowError, ZeroDivisionError) as error:
            # Powers of c itself overflow as plain numbers.
            return "" if abs(by) > 30 else f"{type(error).__name__}: {error}"
    return beyond([found], [wanted], by * degree, False, bound, F64)


def beyond(
    found: list, wanted: list, shift: float, log: bool, bound: float, dtype: Any, size: float = 0.0
) -> str:
    """Say how values are off those at unit size times ``2^shift``, if that is in range."""
    info = torch.finfo(dtype)
    high, low = math.log2(info.max), math.log2(info.tiny) + math.log2(1.0 / info.eps)
    for a, b in zip(found, wanted, strict=True):
        wide = torch.complex128 if a.is_complex() or b.is_complex() else F64
        a, b = a.detach().to(wide), b.detach().to(wide)
        if bool(torch.isnan(a).any()):
            return "NaN"
        size = max(float(b.abs().max()), size)
        if log:
            b, size, by = b + shift * math.log(2.0), max(1.0, abs(shift)), 0.0
        elif size == 0.0 or not low < math.log2(size) + shift < high - 1:
            continue
        else:
            by = -shift / 4
        for _ in range(4):
            a = a * 2.0**by
        if not float((a - b).abs().max()) <= bound * size:
            return f"{float((a - b).abs().max()) / size:.1e} > {bound:.1e}"
    return ""


ENDS = {F64: (-1040, -990, -530, -300, 300, 500, 990), torch.float32: (-135, -118, -60, 60, 118)}


def extreme_faults(table: dict[str, Law], case: Any, by: int) -> list[str]:
    """Try functions at the ends of their type: right, infinite, zero or refused in words."""
    found = []
    dtype = (case.point.s if hasattr(case, "point") else case.z).dtype
    eps = torch.finfo(dtype).eps
    for name, law in table.items():
        if not (law.allowed(case) and law.extreme):
            continue
        bound = 5000 * eps * law.loose * case.condition**law.power * max(1.0, abs(by) / 30)
        if by in (-1040, -135):
            # Denormal singular values keep a part of their digits.
            bound = max(bound, 0.1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = law.values(case)
                try:
                    ends = law.values(case.scaled(2.0**by))
                except REFUSED:
                    continue
            shift = by * law.degree_at(case)
            text = beyond(ends, values, shift, law.log, bound, dtype, float(law.size(case)))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        if text:
            found.append(f"{name} at 2^{by} in {dtype}: {text}")
    return found


SHAPED = some.sampled_from([((2, 2), 2), ((3, 2), 2), ((3, 3), 2), ((1, 1), 1)])
LONG = some.sampled_from([1.0, 2.0, 2.5, 3.0, 10.0, 1000.0, math.inf])


@FEW
@given(some.data())
@pytest.mark.parametrize("dtype", ENDS, ids=str)
def test_ends_of_the_range(dtype, data):
    by, g = data.draw(some.sampled_from(ENDS[dtype])), torch.Generator()
    g.manual_seed(data.draw(SEEDS))
    case = point_case(g, *data.draw(SHAPED), data.draw(LONG), dtype=dtype)
    wrong = extreme_faults(points.CHEAP, case, by)
    n = data.draw(some.integers(1, 5))
    widths = data.draw(some.sampled_from([(2,) * (n + 1), (3,) * n + (2,)]))
    name = data.draw(ONE(sorted(layers.ANY)))
    loose = layers_case(g, widths, 2, balanced=False, dtype=dtype)
    wrong += extreme_faults({name: layers.ANY[name]}, loose, by)
    balanced = layers_case(g, widths, 2, balanced=True, dtype=dtype)
    wrong += extreme_faults(layers.BALANCED, balanced, by)
    table = data.draw(some.sampled_from([points.DEAR, layers.BALANCED_DEAR]))
    name = data.draw(ONE(sorted(table)))
    wrong += extreme_faults({name: table[name]}, case if table is points.DEAR else balanced, by)
    assert not wrong, "\n".join(wrong)


@given(ONE(sorted(quantities.QUANTITIES)), some.sampled_from([-1000, -490, -250, 250, 490, 1000]))
def test_ends_of_the_range_of_quantities(name, by):
    call, degree = quantities.QUANTITIES[name]
    if name not in quantities.SHORT and (text := far_off(call, degree, by, 1e-6)):
        raise AssertionError(f"{name} at 2^{by}: {text}")


ELSEWHERE = {
    "their values scale in no way: tests/dynamics/losses": (
        "losses.LinkLoss", "losses.Logistic", "losses.Poisson", "losses.Pattern",
    ),
    "a count or a number of the shape: tests/geometry, tests/landscape": (
        "balanced_dimension", "log_stiefel_volume", "landscape.fibre_dimension",
        "landscape.strata", "landscape.RankPattern", "landscape.learning_coefficient",
        "landscape.LearningCoefficient", "laws.hermite_zeros", "laws.laguerre_zeros",
        "laws.fuss_catalan", "laws.fuss_catalan_moment", "landscape.CriticalPoint",
        "laws.gaussian_product",
    ),
    "a statistic of a chain: tests/landscape, tests/dynamics/sampling": (
        "landscape.estimate_learning_coefficient", "sample_gibbs", "diagnostics.chains",
        "diagnostics.effective_sample_size", "diagnostics.split_rhat",
    ),
    "a grid of many of the others: tests/dynamics, tests/thermodynamics": (
        "ensemble", "sweep", "thermodynamics.phase_diagram", "mean_field_flow",
        "thermodynamics.mean_field_flow", "thermodynamics.MeanFieldPath",
        "thermodynamics.PartitionFunction", "thermodynamics.BayesianRegression",
        "thermodynamics.bayesian_regression", "thermodynamics.renormalized_scales",
        "thermodynamics.sample_exact",
    ),
    "a record or a part of a run: tests/dynamics": ("Trajectory", "Validation", "FreeEnergy"),
    "errors": ("FlowError", "GeodesicError", "SweepError"),
    "their answers are pictures, or yes and no: tests/plot, tests/test_testing.py": (
        *(f"plot.{name}" for name in dln.plot.__all__),
        *(f"testing.{name}" for name in dln.testing.__all__),
    ),
}  # fmt: skip
"""Names without a law of scales here, by the reason."""


def test_every_public_name_has_a_law_or_a_reason():
    tables = points.CHEAP, points.DEAR, layers.ANY, layers.BALANCED, layers.BALANCED_DEAR
    tried = {name for table in tables for name in table}
    tried |= {name.split(",")[0].split(" of ")[0] for name in quantities.QUANTITIES}
    told = {name for names in ELSEWHERE.values() for name in names}
    every = {name for name in dln.__all__ if callable(getattr(dln, name))}
    for room in ("losses", "laws", "exact", "diagnostics", "testing", "plot", "landscape"):
        every |= {f"{room}.{name}" for name in getattr(dln, room).__all__}
    every |= {f"thermodynamics.{name}" for name in dln.thermodynamics.__all__}
    # The inside of the losses, which no user calls.
    every -= {"laws.ProbabilityLaw", *(f"losses.{name}" for name in INSIDE)}
    assert every - tried - told == set()
    assert told & tried == set()


INSIDE = (
    "ElementwiseLoss", "Loss", "as_dense", "as_text", "contract", "evaluate", "fingerprint",
    "has_compressed_kernels", "narrowed_loss", "prepared", "ranks_of",
)  # fmt: skip
