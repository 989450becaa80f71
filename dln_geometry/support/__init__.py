"""Shared by every room: checks of arguments, the depth, random numbers, files, progress.

Open `arguments` (numbers, flags, shapes), `tensors` (arrays and layers), `array_likes` (what counts
as an array) and `depth` first. A check
that two rooms need is written here, once; it says what was required and what came.
"""

from __future__ import annotations

from dln_geometry.support.archives import read_archive, write_archive
from dln_geometry.support.arguments import (
    as_choice,
    as_count,
    as_flag,
    as_matrix_shape,
    as_positive,
    as_rank,
    as_real,
    as_rtol,
    as_sides,
    as_size,
    as_width_sequence,
    as_widths,
    check_loss,
    shown,
)
from dln_geometry.support.array_likes import read_array, sparse_places
from dln_geometry.support.depth import Depth, as_depth, as_layer_count, as_normalized
from dln_geometry.support.derivatives import is_differentiated, refuse_derivatives
from dln_geometry.support.files import RUN_MARK, Lock, replaced, written_whole
from dln_geometry.support.forms import Growing, Numbers, check_form, merged
from dln_geometry.support.memory import shared_pair
from dln_geometry.support.progress import (
    EVERY,
    Every,
    Progress,
    ProgressCallback,
    Schedule,
    progress_bar,
)
from dln_geometry.support.random import (
    as_generator,
    as_index,
    as_module_generator,
    as_seed,
    chi,
    normal,
)
from dln_geometry.support.tensors import (
    FIELDS,
    Array,
    absolute_square,
    as_alike,
    as_covector,
    as_device,
    as_double,
    as_dtype,
    as_factors,
    as_float_tensor,
    as_matrix,
    broadcast_shapes,
    common_batch,
    entries_of_product,
    epsilon,
    field_dimension,
    least,
    namespace,
    on_device,
    phases,
    real_product,
    refuse_complex,
)
from dln_geometry.support.warning import warn

__all__ = [
    "EVERY",
    "FIELDS",
    "RUN_MARK",
    "Array",
    "Depth",
    "Every",
    "Growing",
    "Lock",
    "Numbers",
    "Progress",
    "ProgressCallback",
    "Schedule",
    "absolute_square",
    "as_alike",
    "as_choice",
    "as_count",
    "as_covector",
    "as_depth",
    "as_device",
    "as_double",
    "as_dtype",
    "as_factors",
    "as_flag",
    "as_float_tensor",
    "as_generator",
    "as_index",
    "as_layer_count",
    "as_matrix",
    "as_matrix_shape",
    "as_module_generator",
    "as_normalized",
    "as_positive",
    "as_rank",
    "as_real",
    "as_rtol",
    "as_seed",
    "as_sides",
    "as_size",
    "as_width_sequence",
    "as_widths",
    "broadcast_shapes",
    "check_form",
    "check_loss",
    "chi",
    "common_batch",
    "entries_of_product",
    "epsilon",
    "field_dimension",
    "is_differentiated",
    "least",
    "merged",
    "namespace",
    "normal",
    "on_device",
    "phases",
    "progress_bar",
    "read_archive",
    "read_array",
    "real_product",
    "refuse_complex",
    "refuse_derivatives",
    "replaced",
    "shared_pair",
    "shown",
    "sparse_places",
    "warn",
    "write_archive",
    "written_whole",
]
