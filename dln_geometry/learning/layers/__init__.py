"""Deep linear layers: the module, its balanced initialisation, and the optimiser of one matrix.

Open `deep_linear` first. `filling` writes balanced factors into weights for `DeepLinear` and
`balanced_`; `end_to_end_sgd` trains a plain matrix as if it were N layers, with momentum by
`kept_layers`; `deepening` puts deep layers in the place of linear ones in any model, and
`deep_convolution` in that of convolutions; `adapters`
starts those of LoRA.
"""

from __future__ import annotations

from dln_geometry.learning.layers.adapters import balanced_adapter_
from dln_geometry.learning.layers.deep_convolution import CONVOLUTIONS
from dln_geometry.learning.layers.deep_linear import DeepLinear
from dln_geometry.learning.layers.deepening import deepen, flatten_depth, is_transposed_linear
from dln_geometry.learning.layers.end_to_end_sgd import EndToEndSGD
from dln_geometry.learning.layers.initialisation import balanced_

__all__ = [
    "CONVOLUTIONS",
    "DeepLinear",
    "EndToEndSGD",
    "balanced_",
    "balanced_adapter_",
    "deepen",
    "flatten_depth",
    "is_transposed_linear",
]
