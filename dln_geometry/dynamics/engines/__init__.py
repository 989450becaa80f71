"""The vector fields of the flows, one engine per way to hold the state.

The state is one row of numbers per sample; an engine views it as matrices, writes the velocity,
reports the loss and the norm of the Riemannian gradient, and turns rows back into points. Open
`engine` first. All but `MomentEngine` integrate ``dX/dt = -A_{N,X}(E'(X))``:

`PlainEngine`     depth 1, the matrix itself.
`SpectralEngine`  two matrices, any finite depth, by an ``eigh`` of the r x r matrix C.
`PairEngine`      two matrices of the depth-2 network, for depths above 100.
`EvenEngine`      two matrices, even depth, matrix products alone.
`ProductEngine`   three matrices, integer depth, matrix products alone.
`CoreEngine`      infinite depth: frozen frames, r x r core.
`LayeredEngine`   all factors, balanced or not.
`ThinEngine`      all factors of a balanced network, between frames of its rank.
`MomentEngine`    all factors, moved towards balanced ones; X stands still.
"""

from __future__ import annotations

from dln_geometry.dynamics.engines.engine import GRADIENT, LOSS, Engine
from dln_geometry.dynamics.engines.layered import (
    LayeredEngine,
    MomentEngine,
    PlainEngine,
    ThinEngine,
)
from dln_geometry.dynamics.engines.products import ProductEngine
from dln_geometry.dynamics.engines.spectral import (
    CoreEngine,
    EvenEngine,
    PairEngine,
    SpectralEngine,
)

__all__ = [
    "GRADIENT",
    "LOSS",
    "CoreEngine",
    "Engine",
    "EvenEngine",
    "LayeredEngine",
    "MomentEngine",
    "PairEngine",
    "PlainEngine",
    "ProductEngine",
    "SpectralEngine",
    "ThinEngine",
]
