"""The submersion from balanced networks to end-to-end matrices, ``phi(W) = W_N ... W_1``.

Open `projections` first: the differential of the product and its adjoint, the horizontal and the
vertical space with orthonormal frames of both. `second_form` holds their derivatives, and `frames`
the closed forms in the frames ``W_p = Q_p Lam Q_{p-1}^T`` that both use.
"""

from __future__ import annotations

from dln_geometry.geometry.submersion.frames import (
    complement,
    cores_of,
    jacobi_angles,
    jacobi_solve,
    transform,
)
from dln_geometry.geometry.submersion.projections import (
    as_ambient,
    as_ambient_pair,
    horizontal,
    horizontal_frame,
    horizontal_part,
    lift,
    lift_layers,
    push_layers,
    pushforward,
    tangent,
    vertical,
    vertical_frame,
    vertical_part,
)
from dln_geometry.geometry.submersion.second_form import (
    horizontal_lift,
    integrability,
    second_fundamental_form,
)

__all__ = [
    "as_ambient",
    "as_ambient_pair",
    "complement",
    "cores_of",
    "horizontal",
    "horizontal_frame",
    "horizontal_lift",
    "horizontal_part",
    "integrability",
    "jacobi_angles",
    "jacobi_solve",
    "lift",
    "lift_layers",
    "push_layers",
    "pushforward",
    "second_fundamental_form",
    "tangent",
    "transform",
    "vertical",
    "vertical_frame",
    "vertical_part",
]
