"""Rows completed from their own entries, by a trained model of the columns."""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.completion.problem import Problem
from dln_geometry.completion.training import Model

NEWTON_STEPS = 8


def folded(problem: Problem, model: Model, noise: float, known: Tensor, values: Tensor) -> Tensor:
    """Return predictions of whole rows (c, n), of which some entries are known.

    Each row is ``mean + b + cols_j + z . V_j`` with the right singular vectors V of X. Its b and z
    minimise its squares (or the log loss) with the ridge ``noise^2 m b^2 / |rows|^2`` and ``noise^2
    m z_i^2 / s_i^2``: the prior is the spread of the trained rows. `known` (c, n) is a mask,
    `values` holds anything where it is False.
    """
    o = model.offsets
    base = o.mean + o.cols
    # Of rows that have no means, or all the same, new ones have none.
    design = torch.ones_like(base).unsqueeze(1)
    scale = o.rows.square().sum().clamp_min(torch.finfo(base.dtype).tiny)
    ridge = (noise**2 * problem.shape[0] / scale).clamp_max(1.0 / torch.finfo(base.dtype).eps)[None]
    if model.point is not None:
        p = model.decomposed()
        kept = p.s > 1e-4 * p.s.max()
        spread = (noise**2 * problem.shape[0]) / p.s[kept].square()
        design = torch.cat((design, p.vh[kept].mT), dim=1)
        ridge = torch.cat((ridge, spread))
    # Without noise the equations may be singular: roundings are a noise, too.
    ridge = ridge.clamp_min(100 * torch.finfo(base.dtype).eps * problem.shape[1])
    rows = [
        _completed_row(problem, design, ridge, base, known[i], values[i])
        for i in range(known.shape[0])
    ]
    return torch.stack(rows)


def _completed_row(
    problem: Problem, design: Tensor, ridge: Tensor, base: Tensor, known: Tensor, values: Tensor
) -> Tensor:
    """Return the prediction of one row, shape (n,)."""
    seen = known.nonzero().squeeze(1)
    if len(seen) == 0:
        return problem.predicted(base)
    a, y, link = design[seen], values[seen], problem.link
    if link is None:
        z = torch.linalg.solve(a.mT @ a + torch.diag(ridge), a.mT @ (y - base[seen]))
        return problem.predicted(base + design @ z)
    z = torch.zeros_like(ridge)
    for _ in range(NEWTON_STEPS):
        at = base[seen] + a @ z
        slope = a.mT @ (link.mean(at) - y) + ridge * z
        curvature = (a * link.curvature(at).unsqueeze(1)).mT @ a + torch.diag(ridge)
        step = torch.linalg.solve(curvature, slope)
        z = z - step * min(1.0, 2.0 / max(float((a @ step).abs().max()), 1e-30))
    return problem.predicted(base + design @ z)
