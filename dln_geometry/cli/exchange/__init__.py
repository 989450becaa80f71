"""Files: what commands read, and results as they are named and written.

`reading` takes matrices from files of every kind, `weights` tensors by name (nothing in a file is
run); `names` refuses names of results before the work begins, `writing` writes them.
"""

from __future__ import annotations

from dln_geometry.cli.exchange.names import (
    ARRAYS,
    FIGURES,
    MATRICES,
    RUNS,
    check_outputs,
    check_results,
    check_store,
    is_ours,
)
from dln_geometry.cli.exchange.reading import array_of, read_input
from dln_geometry.cli.exchange.weights import WEIGHTS, read_weights
from dln_geometry.cli.exchange.writing import (
    save_array,
    save_figure,
    write_arrays,
    write_matrix,
    write_run,
)

__all__ = [
    "ARRAYS",
    "FIGURES",
    "MATRICES",
    "RUNS",
    "WEIGHTS",
    "array_of",
    "check_outputs",
    "check_results",
    "check_store",
    "is_ours",
    "read_input",
    "read_weights",
    "save_array",
    "save_figure",
    "write_arrays",
    "write_matrix",
    "write_run",
]
