"""Remove units that are off from a model, into a smaller one.

`channels` follows the units through a forward pass, by the rules of `passing`, and joins
those of `nodes` that go together; `silencing` finds
those that are off and sets all their weights to zero; `removal` cuts them, `cutting` the tensors.
`grouped` writes grouped convolutions as dense ones in between, and says which units let the groups
stay alike.
"""

from __future__ import annotations

from dln_geometry.learning.collapse.pruning.removal import pruned
from dln_geometry.learning.collapse.pruning.silencing import MIXED, outputs_of

__all__ = ["MIXED", "outputs_of", "pruned"]
