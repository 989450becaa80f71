"""Points that several tests of the metric share."""

from __future__ import annotations

import torch

import dln_geometry as dln


def diagonal_point(spectrum, depth, shape=None, normalized=None):
    """Return a point with the given spectrum and canonical singular vectors."""
    s = torch.as_tensor(spectrum, dtype=torch.float64)
    r = s.shape[-1]
    m, n = shape or (r, r)
    u, vh = torch.eye(m, r, dtype=torch.float64), torch.eye(r, n, dtype=torch.float64)
    return dln.EndToEnd(u, s, vh, depth, normalized, check=False)
