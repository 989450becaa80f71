"""``dln complete``: a matrix from some of its entries, by the estimator or by the flow alone.

Open `completion` first: it reads the options and the file and chooses. `estimate` fits
`MatrixCompleter`, tells and draws it (`panels`); `entry_flow` follows the gradient flow of the
known entries; `split` holds what both share, `values` reads options that may be ``auto``.
"""

from __future__ import annotations

from dln_geometry.cli.completing.completion import complete_matrix

__all__ = ["complete_matrix"]
