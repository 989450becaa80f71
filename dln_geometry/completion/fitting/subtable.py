"""A part of a large table on which settings are compared."""

from __future__ import annotations

from dataclasses import replace

import torch

from dln_geometry.completion.fitting.problem import Problem


def dense_part(problem: Problem, count: int, seed: int) -> Problem:
    """Return a table of about `count` entries that has as many for each row and column.

    How much decay a table needs depends on the number of entries a row and a column, which a random
    part of the entries would lower. So the busiest rows and columns are taken, of both the same
    share, and of their entries as many at random as leave each row the number it has on average.

    Examples
    --------
    >>> rows, cols = torch.arange(40).repeat_interleave(20), torch.arange(20).repeat(40)
    >>> problem = dln.completion.Problem(rows, cols, torch.randn(800), (40, 20))
    >>> part = dln.completion.dense_part(problem, 200, seed=0)
    >>> part.shape, len(part)
    ((20, 10), 200)
    """
    busy = []
    for places, size in zip((problem.rows, problem.cols), problem.shape, strict=True):
        order = torch.argsort(torch.bincount(places, minlength=size), descending=True, stable=True)
        position = torch.empty_like(order)
        position[order] = torch.arange(size, device=order.device)
        busy.append(((position + 1.0) / size)[places])
    # An entry is in the part with this share of the rows and columns.
    share = torch.maximum(*busy)
    least = max(count / len(problem), float(share.kthvalue(min(count, len(problem))).values))
    inside = (share <= least).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(inside), generator=generator)[:count].sort().values
    part = problem.select(inside[kept.to(inside.device)])
    sides = [places.unique(return_inverse=True) for places in (part.rows, part.cols)]
    features = tuple(
        None if x is None else x[names]
        for x, (names, _) in zip(problem.features, sides, strict=True)
    )
    (row_names, rows), (col_names, cols) = sides
    shape = len(row_names), len(col_names)
    return replace(part, rows=rows, cols=cols, shape=shape, features=features)
