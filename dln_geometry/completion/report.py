"""What a search tried and chose, as lists for programs and as a table for people."""

from __future__ import annotations

import math
from typing import Any

from dln_geometry.completion.fitting import Choice, Problem


def trials_of(choice: Choice) -> dict[str, list[Any]]:
    """Return what was tried, one list entry for each setting, as scikit-learn's searches do."""
    tried = list(choice.tried)
    scores = [-error for _, error, _ in tried]
    order = sorted(range(len(tried)), key=lambda k: -scores[k])
    ranks = [0] * len(tried)
    for place, k in enumerate(order, start=1):
        ranks[k] = place
    params = [
        {
            "depth": s.depth,
            "rank": s.rank,
            "decay": s.decay,
            "scale": s.scale,
            "side_means": s.sides,
        }
        for s, _, _ in tried
    ]
    return {
        "params": params,
        **{f"param_{name}": [p[name] for p in params] for name in ("depth", "rank", "decay")},
        "mean_test_score": scores,
        "rank_test_score": ranks,
        "mean_train_score": [-fit.train for _, _, fit in tried],
        "evaluations": [fit.evaluations for _, _, fit in tried],
        "mean_fit_time": [fit.seconds for _, _, fit in tried],
        "status": [fit.status for _, _, fit in tried],
    }


def table_of(choice: Choice, problem: Problem, coverage: float) -> str:
    """Return a table of errors at the best and the last point, and of the choices."""
    depths, decays = ([f"{getattr(s, n):.3g}" for s in choice.settings] for n in ("depth", "decay"))
    what = "rms error" if problem.link is None else "log loss"
    m, n = problem.shape
    lines = [
        f"{m} x {n} table, {len(problem)} entries ({len(problem) / (m * n):.3%})",
        f"depth {', '.join(depths)}, rank <= {choice.settings[0].rank}, decay {', '.join(decays)}, "
        f"{len(choice.fits)} model{'s' if len(choice.fits) > 1 else ''}",
    ]
    if choice.validated:
        first = choice.validated[0]
        lines += [
            f"{what:<12} {'train':>12} {'validation':>12}",
            f"{'side means':<12} {'':>12} {choice.side_means:>12.6g}",
            f"{'best':<12} {first.train:>12.6g} {choice.best:>12.6g}",
            f"{'last':<12} {'':>12} {first.last:>12.6g}",
        ]
    for final in choice.fits[:1]:
        end = ", ended by its limit" if final.status in ("evaluations", "seconds") else ""
        lines.append(f"final model: {what} of training {final.train:.6g}{end}")
    if math.isfinite(coverage):
        lines.append(f"coverage of 90 % intervals: {coverage:.3f}")
    return "\n".join(lines)
