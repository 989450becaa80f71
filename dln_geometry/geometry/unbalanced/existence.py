"""Which moments have layers: the inequalities, and the error that names the one that fails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.unbalanced.chains import scalar_squares


def scalar_intervals(
    lam: Sequence[float], widths: Sequence[int], rank: int
) -> dict[tuple[int, int], int]:
    """Return how many chains over which intervals make moments ``lam_p I`` beside X of this rank.

    They must fill the directions of the hidden spaces that the `rank` chains through all layers
    leave, and fit into those of the ends. The matrix of the intervals is totally unimodular, so
    that the linear program has whole solutions, and so has its dual, which is the inequality that
    fails.

    References
    ----------
    King, Moduli of representations of finite dimensional algebras, 1994 (stability of quivers).
    """
    depth = len(widths) - 1
    spans = [(a, b) for a in range(depth + 1) for b in range(a, depth + 1)]
    spans = [s for s in spans if s not in ((0, 0), (depth, depth), (0, depth))]
    spans = [s for s in spans if scalar_squares(*s, lam) is not None]
    covers = np.array([[a <= p <= b for a, b in spans] for p in range(depth + 1)], dtype=float)
    covers = covers.reshape(depth + 1, len(spans))
    free = np.array([d - rank for d in widths], dtype=float)
    if free.min() < 0:
        raise ValueError(f"widths must all be at least the rank {rank} of x, got {tuple(widths)}")
    hidden, ends = slice(1, depth), [0, depth]
    slack = np.eye(depth - 1)
    from scipy.optimize import linprog

    found = linprog(
        np.concatenate([np.zeros(len(spans)), np.ones(2 * (depth - 1))]),
        A_ub=np.hstack([covers[ends], np.zeros((2, 2 * (depth - 1)))]),
        b_ub=free[ends],
        A_eq=np.hstack([covers[hidden], slack, -slack]),
        b_eq=free[hidden],
        method="highs-ds",
    )
    if found.fun > 0.5:
        weights = np.zeros(depth + 1)
        weights[hidden], weights[ends] = found.eqlin.marginals, found.ineqlin.marginals
        terms = [(round(w), p) for p, w in enumerate(weights) if round(w)]
        left = " ".join(
            f"{'-' if w < 0 else '+' if k else ''}{' ' if k else ''}"
            f"{'' if abs(w) == 1 else abs(w)}d_{p}"
            for k, (w, p) in enumerate(sorted(terms, reverse=True))
        )
        bound = rank * sum(w for w, _ in terms)
        value = sum(w * widths[p] for w, p in terms)
        raise ValueError(
            f"layers with moments lam = {tuple(lam)} and a product of rank {rank} need widths "
            f"with {left} <= {bound}, got {value} from widths {tuple(widths)}"
        )
    counts = np.rint(found.x[: len(spans)]).astype(int)
    return {span: int(k) for span, k in zip(spans, counts, strict=True) if k}


def check_moments(spectra: Sequence[Tensor], widths: Sequence[int], rounding: float) -> None:
    """Refuse eigenvalues of moments that no layers have, by Weyl's inequalities.

    ``W_{p+1}^T W_{p+1} = G_p + W_p W_p^T``, and W_p^T W_p has the eigenvalues of W_p W_p^T beside
    zeros: from the input to the output they bound the eigenvalues from below, which must leave
    those beyond the rank of W_{p+1} at zero; and likewise from the output to the input, with -G.
    At depth 2 these are all conditions: G_1 has at most d_2 positive and d_0 negative eigenvalues.
    """
    _climb(spectra, widths, rounding, up=True)
    turned = [-g.flip(-1) for g in reversed(spectra)]
    _climb(turned, widths[::-1], rounding, up=False)


def _climb(spectra: Sequence[Tensor], widths: Sequence[int], rounding: float, *, up: bool) -> None:
    """Bound eigenvalues from below along the layers, in descending order."""
    depth = len(widths) - 1
    below = torch.zeros(widths[1], dtype=torch.float64, device="cpu")
    for p, g in enumerate(spectra, start=1):
        d, after = widths[p], widths[p + 1]
        bound = torch.stack(
            [
                torch.stack([below[i] + g[k + d - 1 - i] for i in range(k, d)]).max()
                for k in range(d)
            ]
        )
        space, layer = (p, p + 1) if up else (depth - p, depth - p)
        if d > after and float(bound[after]) > rounding:
            square = f"W_{layer}^T W_{layer}" if up else f"W_{layer} W_{layer}^T"
            other = layer if up else layer - 1
            sign = "" if up else " after a change of sign"
            raise ValueError(
                f"moments must leave {square} at most d_{other} = {after} positive eigenvalues, "
                f"but those of moments[{space - 1}]{sign} force eigenvalue {after + 1} to be at "
                f"least {float(bound[after]):.3g}: no layers of widths "
                f"{tuple(widths if up else widths[::-1])} have these moments"
            )
        below = torch.zeros(after, dtype=torch.float64, device="cpu")
        kept = min(d, after)
        below[:kept] = bound[:kept].clamp_min(0.0)
