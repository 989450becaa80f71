"""Every run that takes a store, with its options and other values of them."""

from __future__ import annotations

from pathlib import Path

import torch

import dln_geometry as dln
from dln_geometry import losses
from tests.dynamics.routes import tensors

F64 = torch.float64
SEED = 5


def seeded(seed=SEED):
    return torch.Generator().manual_seed(seed)


def point(seed=1, dtype=F64, shape=(4, 3), depth=3, **options):
    g = seeded(seed)
    return dln.Collapsed.random(shape, 3, depth, scale=0.4, generator=g, dtype=dtype, **options)


def target(seed=2):
    return torch.randn(4, 3, generator=seeded(seed), dtype=F64)


def layers(seed=3):
    return dln.random_balanced((3, 4, 4), scale=0.7, generator=seeded(seed), dtype=F64)


def unbalanced(seed=3):
    g = seeded(seed)
    return [torch.randn(d, d, generator=g, dtype=F64) for d in (3, 3)]


# Every run with a store: its arguments, and for every argument another value. `FREE` ones may
# change when the run is continued.
FREE = {"progress", "store", "every"}


def sized(p):
    return torch.linalg.matrix_norm(p.matrix)


def spectral(s):
    return 0.5 * s.square().sum(-1)


PARTICLES = torch.tensor([0.3, 1.0, 2.2], dtype=F64)
STEPS = {"t_end": 1.0, "dt": 0.1, "generator": SEED}
OTHER_STEPS = {"t_end": 1.1, "dt": 0.09, "generator": SEED + 1, "save_at": [0.0, 0.7]}


RUNS = {
    "gradient_flow": (
        {"loss": losses.Quadratic(target()), "start": point(), "t_end": 0.2, "rtol": 1e-6,
         "monitor": dln.Validation([0], [0], [1.0], (4, 3)), "patience": 900},
        {
            "decay": 0.1,
            "monitor": dln.Validation([0], [0], [2.0], (4, 3)),
            "patience": 901,
            "improvement": 1e-9,
            "loss": losses.Quadratic(-target()),
            "start": point(7),
            "save_at": [0.0, 0.1, 0.2],
            "rtol": 1e-7,
            "atol": 1e-9,
            "method": "rk5",
            "engine": "products",
            "rebalance": 1e-3,
            "keep_points": True,
            "observe": {"size": sized},
            "dense": True,
        },
        # Of float32 alone: tried by itself.
        {"t_end", "until", "precision"},
    ),
    "kirwan_ness_flow": (
        {"factors": unbalanced(), "t_end": 0.05},
        {
            "factors": unbalanced(8),
            "save_at": [0.0, 0.05],
            "rtol": 1e-7,
            "atol": 1e-9,
            "method": "rk5",
            "keep_points": True,
            "observe": {"size": sized},
            "dense": True,
        },
        {"t_end", "until"},
    ),
    "langevin": (
        {"loss": losses.Quadratic(target()), "start": point(), "beta": 3.0, "t_end": 0.2, "dt": 0.1,
         "generator": SEED},
        {
            "loss": losses.Quadratic(-target()),
            "start": point(7),
            "beta": 3.1,
            "kappa": 0.9,
            "entropy": False,
            "t_end": 0.3,
            "dt": 0.05,
            "generator": SEED + 1,
            "increments": None,
            "save_at": [0.0, 0.2],
            "chains": 2,
            "widths": 5,
            "method": "splitting",
            "upstairs": True,
            "keep_points": True,
            "observe": {"size": sized},
        },
        set(),
    ),
    "sample_gibbs": (
        {"loss": losses.Quadratic(target()), "start": point(), "beta": 3.0, "draws": 2,
         "burn_in": 3, "generator": SEED},
        {
            "loss": losses.Quadratic(-target()),
            "start": point(7),
            "beta": 3.1,
            "kappa": 0.9,
            "entropy": False,
            "draws": 3,
            "thin": 2,
            "burn_in": 4,
            "dt": 0.01,
            "generator": SEED + 1,
            "widths": 5,
            "keep_points": True,
            "observe": {"size": sized},
        },
        set(),
    ),
    "dyson": (
        {"start": PARTICLES, "dyson_index": 2.5, "scheme": "implicit", **STEPS},
        {"start": PARTICLES + 1, "dyson_index": 2.6, "confinement": 0.5, "scheme": "isospectral",
         "rtol": 1e-8, "increments": None, **OTHER_STEPS},
        {"observe"},
    ),
    "singular_dyson": (
        {"start": PARTICLES, "shape": (4, 3), "dyson_index": 1.0, **STEPS},
        {"start": PARTICLES + 1, "shape": (3, 3), "dyson_index": 2.6, "confinement": 0.5,
         "signed": None, "rtol": 1e-8, **OTHER_STEPS},
        {"observe"},
    ),
    "dln_dyson": (
        {"start": PARTICLES, "depth": 3, "beta": 2.0, "loss": spectral, **STEPS},
        {"start": PARTICLES + 1, "depth": 4, "beta": 2.1, "kappa": 0.9, "entropy": False,
         "loss": lambda s: 2 * spectral(s), "shape": (4, 3), "normalized": True, "rtol": 1e-8,
         "field": "complex",
         **OTHER_STEPS},
        {"observe"},
    ),
    "isospectral_flow": (
        {"start": torch.diag(PARTICLES), "dyson_index": 2.5, **STEPS},
        {"start": torch.diag(PARTICLES + 1), "dyson_index": 2.6, "keep_points": True,
         "rtol": 1e-8, "observe": {"size": lambda m: m.diagonal(dim1=-2, dim2=-1).sum(-1)},
         **OTHER_STEPS},
        set(),
    ),
    "balancing_flow": (
        {"factors": unbalanced(), "t": [0.1, 0.3]},
        {"factors": unbalanced(8), "t": [0.1, 0.4]},
        {"observe"},
    ),
}  # fmt: skip


def made(options):
    fresh = isinstance(options.get("generator"), int)
    return {**options, "generator": seeded(options["generator"])} if fresh else options


def run(name, options, store=None):
    return getattr(dln, name)(**made(options), store=store)


def told(result):
    """Return the tensors of what a run returned."""
    if isinstance(result, dln.Trajectory):
        series = ("t", "loss", "singular_values", "states", "defect")
        found = [x for n in series if (x := getattr(result, n)) is not None]
        ends = [result.final, *(result.points or ())]
        return [*found, *result.observed.values(), *(x for end in ends for x in told(end))]
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, list):
        return [x for part in result for x in told(part)]
    return list(tensors(result))


def stored(folder, name="gradient_flow"):
    path = Path(folder) / "state"
    run(name, RUNS[name][0], path)
    return path


def files_of(path):
    return sorted(p for p in path.rglob("*") if p.is_file())
