"""The symmetric groups of parameters that a module has by its architecture.

Open `search` first: `symmetries_of` follows every layer to all operations that read its channels.

- `tracing`: the graph of a module, and how often each parameter is used;
- `layers`: which calls are layers (their output channels are rows of a weight), and what
  normalisations take away from their channels; `attention` the same for ``MultiheadAttention``;
- `passages`: what an operation between layers lets pass, and where the channels are afterwards;
- `walks`: from a layer along the graph to its readers, by layers and passages;
- `groups`: `SymmetricGroup`, the value that comes out, and its `Part`;
- `confirmation`: each group is tried on an example.

An operator is added where it is recognised: an operation in the tables of `passages`, a layer as a
function in `MAKERS` of `layers`. A symmetry is added as a generator of groups in `search`, and if
it moves parameters in a new way as a kind in `groups`; ``tests/learning/networks.py`` gets a
network that has it, on which all claims are tested.
"""

from __future__ import annotations

from dln_geometry.learning.architecture.groups import Part, SymmetricGroup
from dln_geometry.learning.architecture.search import symmetries_of

__all__ = [
    "Part",
    "SymmetricGroup",
    "symmetries_of",
]
