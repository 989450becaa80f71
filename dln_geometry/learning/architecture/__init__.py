"""The symmetric groups of parameters that a module has by its architecture.

Open `search` first: it follows every layer to all operations that read its channels. Then
`probing`, which goes on from the Jacobian of the outputs: `symmetries_of`, `symmetry_coverage`.

- `tracing`: the graph of a module, and how often each parameter is used;
- `layers`: which calls are layers, and which changes of their channels a normalisation undoes;
  `attention` the same for ``MultiheadAttention``;
- `passages`: which changes of the channels pass through an operation between layers;
- `walks`: from a layer along the graph to its readers, by layers and passages;
- `groups`: the result, `SymmetricGroup`; `parts`: its `Part`;
- `trials`: tells whether a change of parameters, wherever it comes from, changes the outputs of a
  module; `subject` calls a copy of the module, `shaking` draws its parameters and inputs;
- `sampling`: probes of modules that are too large for the rank of a Jacobian;
- `confirmation`: keeps the groups that pass the trials, and tells of the others.

Add an operation to the tables of `passages`, a layer to `MAKERS` of `layers`, a symmetry as a
generator of groups to `search` (with a new kind in `groups` if it moves parameters in a new way),
and a network that has it to ``tests/learning/networks.py``, where all claims are tested.
"""

from __future__ import annotations

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.probing import (
    Family,
    SymmetryCoverage,
    register_operator,
    symmetries_by_graph,
    symmetries_of,
    symmetry_coverage,
)
from dln_geometry.learning.architecture.trials import Trial, trials

__all__ = [
    "Family",
    "Part",
    "SymmetricGroup",
    "SymmetryCoverage",
    "Trial",
    "register_operator",
    "symmetries_by_graph",
    "symmetries_of",
    "symmetry_coverage",
    "trials",
]
