"""The geometry of deep linear networks, on PyTorch.

Points      `EndToEnd`, `Collapsed`, `Network`; `random_balanced`, `balanced_factors`, `balance`.
Metric      `cometric`, `metric`, `inner`, `entropy`, `free_energy`, `connection`, curvatures.
Submersion  `tangent`, `horizontal`, `vertical`, `lift`, `pushforward` and their frames.
Geodesics   `exponential`, `logarithm`, `distance`, `parallel_transport`; `balanced_geodesic`, ...
Flows       `gradient_flow`, `free_energy_flow`, `balancing_flow`, `kirwan_ness_flow`; `losses`,
            `exact`, `Trajectory`, `Validation`.
Noise       `langevin`, `brownian_motion`, `sample_gibbs`; `dyson`, `singular_dyson`, `dln_dyson`,
            `isospectral_flow`; `laws`, `diagnostics`.
Models      `learning`: any torch module, its symmetries, charges, equation of motion, mirrors.
Figures     `plot`.
"""

from __future__ import annotations

# `_startup` first: imports after it take seconds.
from dln_geometry import _lazy, _startup  # noqa: F401
from dln_geometry.version import __version__ as __version__

# The names, and where each comes from, stand in `__init__.pyi`.
__getattr__, __dir__, __all__ = _lazy.on_demand(__name__, __file__)
