"""The geometry of deep linear networks, on PyTorch.

A map by topic; every name below is `dln_geometry.<name>` and has an example of its own.

Points      `EndToEnd`, `Collapsed`, `Network`; `random_balanced`, `balanced_factors`, `balance`,
            `moments`, `is_balanced`, `balanced_dimension`; `effective_rank`. Not balanced:
            `with_moments`, `lambda_balanced`, `leaf_metric`, `orbit_log_volume`, `gauge_noise`.
Metric      `cometric`, `metric`, `inner`, `depth_kernel`, `log_volume_density`, `connection`;
            `entropy`, `entropy_gradient`, `free_energy`; curvatures (`sectional_curvature`, ...).
Submersion  `tangent`, `horizontal`, `vertical`, `lift`, `pushforward` and their frames.
Geodesics   `geodesic`, `exponential`, `logarithm`, `distance`, `parallel_transport`; upstairs
            `balanced_geodesic`, `balanced_logarithm`, `balanced_distance`, `balanced_transport`.
Losses      `losses`: Quadratic, Regression, Sensing, Completion, Logistic, Poisson, LpNorm, Huber,
            from_callable; `Validation` on held-out entries.
Flows       `gradient_flow`, `free_energy_flow`, `balancing_flow`, `kirwan_ness_flow`; `exact`
            solutions; their record is a `Trajectory` (``path.at(t)``, ``observe={"name": f}``).
Noise       `langevin`, `brownian_motion`, `sample_gibbs`, `diagnostics`; `dyson`,
            `singular_dyson`, `dln_dyson`, `isospectral_flow`; `laws`, exact ones.
Landscape   `landscape`: critical points and their kinds, strata of fibres, learning coefficients.
Heat        `thermodynamics`: partition functions, energies, heat capacities.
Models      `learning`: any torch module, its symmetries, charges, equation of motion, mirrors.
Large       `sharded`: the same flows on rows that several processes hold.
Tables      `dln_geometry.completion`: matrices with holes; `dln_geometry.tables`: their files.
Work        `sweep`: one run for many parameters; `plot`: figures in one style; `testing`: checks.

First steps: ``start = Collapsed.random((10, 10), 10, depth=3, scale=1e-2)``, then
``path = gradient_flow(losses.Quadratic(target), start, t_end=10.0)`` and
``plot.singular_values(path)``.
"""

from __future__ import annotations

# `_startup` first: imports after it take seconds.
from dln_geometry import _lazy, _startup  # noqa: F401
from dln_geometry.version import __version__ as __version__

# The names, and where each comes from, stand in `__init__.pyi`.
__getattr__, __dir__, __all__ = _lazy.on_demand(__name__, __file__)
