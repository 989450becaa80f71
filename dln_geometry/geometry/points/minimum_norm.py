"""The balanced point of smallest norm on the fibre of given layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dln_geometry.geometry.points.balanced import is_balanced
from dln_geometry.geometry.points.layers import chain_from_frames, chain_svd, polar
from dln_geometry.geometry.points.network import Network


def balance(factors: Sequence[Any], *, sweeps: int = 100) -> Network:
    """Return the point of smallest norm on the fibre of the factors, in the nearest gauge.

    The minimisers of ``sum_p |W_p|_F^2`` with the product X held fixed are the balanced factors
    of X, minimum ``N sum_i s_i^{2/N}``. Among them the gauge nearest to the given factors is
    taken: one orthogonal Procrustes problem at depth 2; above, each hidden gauge solves its own
    against its neighbours, in sweeps that never increase the distance. Factors that are balanced
    (`is_balanced`) are returned as they are.

    At most `sweeps` sweeps are made.

    References
    ----------
    Lindsey, Menon, arXiv 2511.01137.
    """
    layers = Network(factors)
    depth = len(layers)
    # Balanced layers hold singular values of X that the product would lose to rounding.
    balanced = is_balanced(layers)[..., None, None]
    if bool(balanced.all()):
        return layers
    u, s, vh = chain_svd(layers)
    root = s ** (1.0 / depth)
    frames = [vh.mT, u]
    for w in layers[:-1]:
        # Exact where the factors are balanced, at every rank.
        frames.insert(-1, polar(w @ (frames[-2] * root.unsqueeze(-2))))
    eps = torch.finfo(s.dtype).eps
    for _ in range(sweeps if depth > 2 else 1):
        moved = torch.zeros((), dtype=s.dtype, device=s.device)
        for p in range(1, depth):
            target = layers[p - 1] @ frames[p - 1] + layers[p].mT @ frames[p + 1]
            frame = polar(target * root.unsqueeze(-2))
            # Columns of zero modes are arbitrary: do not count how they move.
            moved = torch.maximum(moved, ((frame - frames[p]) * root.unsqueeze(-2)).abs().max())
            frames[p] = frame
        if float(moved.detach()) <= 10 * eps * float(root.detach().max()):
            break
    return Network.from_layers(
        torch.where(balanced, w, new)
        for w, new in zip(layers, chain_from_frames(frames, s), strict=True)
    )
