"""How often the host waits for a device: a table of what every function may."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses
from tests.devices.moves import moved
from tests.devices.pretended import Counts, pretended, there

F64 = torch.float64
G = torch.Generator().manual_seed(11)
SHAPE, RANK = (4, 3), 2
X, Z, W = (torch.randn(*SHAPE, generator=G, dtype=F64) for _ in range(3))
LOSS = losses.Quadratic(X)
SQUARE = torch.randn(3, 3, generator=G, dtype=F64)
PARTICLES = torch.randn(2, 4, generator=G, dtype=F64)
# Checks of arguments, the making of points, and the last look: once a run, whatever its length.
ONCE = 22


def start(depth: float, rank: int = RANK) -> dln.Collapsed:
    s = torch.linspace(1.2, 0.5, rank, dtype=F64)
    return dln.Collapsed.random(SHAPE, rank, depth, spectrum=s, generator=G)


def counted(function: Any, **arguments: Any) -> tuple[Any, Counts]:
    with warnings.catch_warnings(), pretended() as counts:
        warnings.simplefilter("ignore")
        there_now = moved(arguments, there)
        counts.reset()
        return function(**there_now), counts


@pytest.mark.parametrize(
    "depth",
    [1, 2, 3, 4, 5, *(pytest.param(d, marks=pytest.mark.slow) for d in (2.7, 150, math.inf))],
)
def test_flows_wait_once_a_step(depth):
    t_end = 0.1 if depth < 100 else 0.001
    path, counts = counted(
        dln.gradient_flow, loss=LOSS, start=start(depth), t_end=t_end, save_at=[0.0, t_end]
    )
    trials = path.stats["steps"] + path.stats["rejected"]
    assert counts.total <= trials + ONCE, str(counts)
    # Those of the start, the saved rows and the end; beyond N = 100 the middle of the start too.
    assert counts.factorisations.total() <= (9 if depth == 150 else 8), str(counts)
    # No factorisation inside of a step: more steps make no more of them.
    late = 200 * t_end if math.isinf(depth) else 20 * t_end
    more, longer = counted(
        dln.gradient_flow, loss=LOSS, start=start(depth), t_end=late, save_at=[0, late]
    )
    assert more.stats["steps"] > path.stats["steps"]
    assert longer.factorisations.total() == counts.factorisations.total(), str(longer)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("method", ["product", "splitting"])
@pytest.mark.parametrize("depth", [1, 3, 4, math.inf])
def test_langevin_steps_wait_for_saved_rows_alone(depth, method, rank):
    options: dict[str, Any] = {"save_at": [0.0, 0.03], "generator": 3, "method": method}
    _, counts = counted(
        dln.langevin, loss=LOSS, start=start(depth, rank), beta=5.0, t_end=0.03, dt=0.01, **options
    )
    assert counts.total <= 8, str(counts)
    assert not any("svd" in line or "eigh" in line for line in decompositions(counts, "noise")), (
        str(counts)
    )


def decompositions(counts: Counts, room: str) -> list[str]:
    """Return the lines of a room, but for those that read saved rows."""
    return [line for line in counts.factorisations if room in line and "product_steps" not in line]


def test_network_steps_wait_for_saved_rows_alone():
    options: dict[str, Any] = {"save_at": [0.0, 0.03], "generator": 3, "upstairs": True}
    _, counts = counted(
        dln.langevin, loss=LOSS, start=start(3), beta=5.0, t_end=0.03, dt=0.01, **options
    )
    assert counts.total <= 8, str(counts)


@pytest.mark.parametrize("scheme", ["isospectral", "exact", "tridiagonal", "implicit"])
def test_dyson_steps_wait_for_saved_rows_alone(scheme):
    _, counts = counted(
        dln.dyson, start=PARTICLES, dyson_index=2.0, t_end=0.03, dt=0.01, save_at=[0.0, 0.03],
        generator=3, scheme=scheme,
    )  # fmt: skip
    assert counts.total <= 2, str(counts)


@pytest.mark.parametrize("index", [0.5, 1.0, 2.0])
def test_singular_dyson_steps_wait_for_saved_rows_alone(index):
    _, counts = counted(
        dln.singular_dyson, start=PARTICLES.abs(), shape=(6, 4), dyson_index=index, t_end=0.03,
        dt=0.01, save_at=[0.0, 0.03], generator=3,
    )  # fmt: skip
    assert counts.total <= 3, str(counts)


def test_steps_of_network_singular_values_and_isospectral_steps():
    common: dict[str, Any] = {"t_end": 0.03, "dt": 0.01, "save_at": [0.0, 0.03], "generator": 3}
    _, counts = counted(
        dln.dln_dyson, start=PARTICLES.abs()[:, :3], shape=(4, 3), depth=3, beta=2.0, **common
    )
    assert counts.total <= 4, str(counts)
    _, counts = counted(
        dln.isospectral_flow, start=torch.eye(4, dtype=F64), dyson_index=2.0, **common
    )
    assert counts.total <= 8, str(counts)


POINT = dln.EndToEnd.of(X, 3, rank=3)
# Checks of the point and of every tangent vector, none in the formulas.
DOOR, VECTOR = 6, 4


@pytest.mark.parametrize(
    ("name", "vectors"),
    [
        ("entropy", {}),
        ("log_volume_density", {}),
        ("entropy_gradient", {}),
        ("cometric", {"g": Z}),
        ("metric", {"z": Z}),
        ("connection", {"z": Z, "w": W}),
        ("scalar_curvature", {}),
        ("ricci_curvature", {"z": Z}),
        ("sectional_curvature", {"z": Z, "w": W}),
        ("riemann_curvature", {"x": Z, "y": W, "z": X, "w": Z + W}),
    ],
)
def test_tensors_wait_for_the_checks_of_arguments_alone(name, vectors):
    _, counts = counted(getattr(dln, name), point=POINT, **vectors)
    assert counts.total <= DOOR + VECTOR * len(vectors), str(counts)


def test_a_step_that_fails_is_named_after_the_fact():
    """Steps are looked at when a row is saved; the one that failed is found again."""
    wild = losses.from_callable(lambda x: 1e3 * x.square().sum((-2, -1)) ** 3)
    options: dict[str, Any] = {"beta": 0.1, "t_end": 1.0, "dt": 0.1, "save_at": [0.0, 1.0]}
    given = {"loss": wild, "start": start(1, 3), "generator": 3, **options}
    with pytest.raises(dln.FlowError) as here:
        dln.langevin(**given)
    with pytest.raises(dln.FlowError) as far:
        counted(dln.langevin, **given)
    assert str(here.value) == str(far.value)
