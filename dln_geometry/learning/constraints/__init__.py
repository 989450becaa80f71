"""Weight decay that imposes constraints (`dcs_`), or that breaks symmetries (`syre_`).

Open `dcs` first; `weight_decay` holds its decay for optimisers, `control` sets it by the sparsity
that is wanted. A new kind of sparse norm is a
class in `redundancy` and a choice in `dcs`.
"""

from __future__ import annotations

from dln_geometry.learning.constraints.control import SparsityControl
from dln_geometry.learning.constraints.dcs import dcs_
from dln_geometry.learning.constraints.syre import syre_
from dln_geometry.learning.constraints.weight_decay import (
    dcs_norm,
    dcs_parameter_groups,
    dcs_penalty,
)

__all__ = ["SparsityControl", "dcs_", "dcs_norm", "dcs_parameter_groups", "dcs_penalty", "syre_"]
