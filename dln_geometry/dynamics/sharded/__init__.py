"""Flows of matrices that are larger than one device, on the processes of `torch.distributed`.

`distribute` cuts a point and a loss by rows; `gradient_flow` then runs in all processes, each on
its rows, and returns points of DTensors. Open `distributing` first. `ranks` holds every message
that processes exchange, `engine` a flow on own rows, `layout` whole states, `keeper` the store,
`model` what an evaluation costs.

DTensors are the doors alone: users give and get them. Inside, the engines of one process run on
plain tensors, with the few sums that they need: an operation on a DTensor of this size costs less
than its bookkeeping, and views of states, products into them and norms of blocks have none.
"""

from __future__ import annotations

from dln_geometry.dynamics.sharded.blocks import RowBlocks
from dln_geometry.dynamics.sharded.distributing import (
    alone,
    distribute,
    from_rows,
    gather,
    mesh,
    random,
)
from dln_geometry.dynamics.sharded.engine import ShardedEngine as ShardedEngine
from dln_geometry.dynamics.sharded.model import EvaluationCost, evaluation_cost
from dln_geometry.dynamics.sharded.options import shared_options as shared_options
from dln_geometry.dynamics.sharded.points import frames as frames
from dln_geometry.dynamics.sharded.points import own_rows as own_rows
from dln_geometry.dynamics.sharded.ranks import WorkerError
from dln_geometry.dynamics.sharded.rows import rows_of

__all__ = [
    "EvaluationCost",
    "RowBlocks",
    "WorkerError",
    "alone",
    "distribute",
    "evaluation_cost",
    "from_rows",
    "gather",
    "mesh",
    "random",
    "rows_of",
]
