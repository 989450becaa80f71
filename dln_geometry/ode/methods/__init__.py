"""What the methods of integration share: norms of blocks, and sums over stages."""

from __future__ import annotations

from dln_geometry.ode.methods.norms import BlockNorms, move_pieces, norms_by_pieces, pieces_of

__all__ = ["BlockNorms", "move_pieces", "norms_by_pieces", "pieces_of"]
