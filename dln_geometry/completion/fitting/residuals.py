"""What residuals of training tell of the decay where no entry is held out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from dln_geometry.completion.fitting.comparison import DECAY, LOWER
from dln_geometry.completion.fitting.errors import noise_of
from dln_geometry.completion.fitting.problem import Problem
from dln_geometry.completion.fitting.training import Fit, Setting
from dln_geometry.support import warn

NOISE_ROUNDS = 4
"""How often the decay may follow the residuals."""
NOISE_ALONE, THRESHOLD = 0.95, 1.0
"""Share of the residuals of the side means from which on noise explains them, and the decay that is
chosen then: of noise alone, it leaves next to nothing at depth 2."""


def by_the_noise(
    problem: Problem,
    setting: Setting,
    fits: tuple[Fit, ...],
    anew: Callable[[Setting], tuple[Fit, ...]],
    further: Callable[[Setting, Sequence[Fit]], tuple[Fit, ...]],
    least: float,
    moves: bool,
    end: float,
) -> tuple[Setting, tuple[Fit, ...]]:
    """Lower the decay while the residuals of training are less than what it takes for noise.

    Of noise alone nothing is learned: the depth `least` and a large decay, where they are free.
    `moves` tells whether the decay is; `anew` trains a setting, `further` goes on from fits with
    it; after `end`, a time of the clock, nothing more is tried.
    """
    first = problem.error(fits[0].alone.at(problem.rows, problem.cols))
    share = noise_of(fits[0], problem) / max(float(first), 1e-300)
    # Fewer entries than a mode of X has numbers leave no residuals to tell noise by.
    told = fits[0].model.point is not None and len(problem) > sum(problem.shape)
    chosen = moves or least < setting.depth  # else depth and decay are the user's
    if told and chosen and share > NOISE_ALONE:
        warn(
            "noise explains the entries as well as the model does, beside the side means: "
            "validation would tell what to trust",
            UserWarning,
        )
        decay = THRESHOLD if moves else setting.decay
        setting = replace(setting, depth=least).with_decay(decay)
        return setting, anew(setting)
    for _ in range(NOISE_ROUNDS if moves else 0):
        decay = DECAY * share
        if not decay < LOWER * setting.decay or time.perf_counter() > end:
            break
        setting = replace(setting, decay=decay)
        fits = further(setting, fits)
        share = noise_of(fits[0], problem) / max(float(first), 1e-300)
    return setting, fits
