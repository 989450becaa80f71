"""
Means in the metric of a depth by geomstats
===========================================

Means in the metric of depth N: geodesics and Frechet means of matrices, by geomstats.

The same matrices have another middle in the metric of every depth (Menon, arXiv 2411.09004;
Cohen, Menon, Veraszto, arXiv 2210.12497). At depth 1 it is the arithmetic mean. Where singular
vectors agree, depth N takes the power mean of exponent 1/N of the singular values, and infinite
depth the geometric mean; where they do not, the determinant of the mean is at depth 1 that of the
arithmetic mean and at infinite depth still the geometric mean of the determinants. Between them it
is larger for the matrices here. Left: the smaller singular value along a geodesic, which dips at
depth 1, where the path is straight.
"""

from __future__ import annotations

import math

import geomstats.backend as gs
import numpy as np
from geomstats.learning.frechet_mean import FrechetMean

from dln_geometry import gallery, plot
from manifolds.geomstats_dln import DepthMetric, FullRankEndToEnd

SPECTRA = [(3.0, 0.5), (2.0, 0.8), (2.5, 0.4), (1.0, 0.6)]
ANGLES = [(0.0, 0.4), (0.4, 0.0), (-0.3, -0.3), (0.2, -0.4)]


def turned(spectrum, angles):
    """Return the 2 x 2 matrix of these singular values with vectors turned by two angles."""
    u, v = (np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles)
    return gs.array(u * spectrum @ v.T)


def frechet_mean(space, points):
    mean = FrechetMean(space).set(epsilon=1e-15, max_iter=100, init_point=points.mean(0))
    return mean.fit(points).estimate_


def power_mean(depth):
    """Return the mean of depth N of matrices with the same singular vectors."""
    s = np.array(SPECTRA)
    if math.isinf(depth):
        return np.exp(np.log(s).mean(0))
    return (s ** (1.0 / depth)).mean(0) ** depth


# %%
run = gallery.begin(__doc__)
depths = (1, 2, math.inf) if run.quick else (1, 1.5, 2, 3, 5, 10, math.inf)
points = gs.stack([turned(s, a) for s, a in zip(SPECTRA, ANGLES, strict=True)])
aligned = gs.stack([turned(s, (0.3, -0.2)) for s in SPECTRA])
times = np.linspace(0.0, 1.0, 41)

figure, (left, middle, right) = run.figure(1, 3, width_ratios=(1, 1.3, 1), aspect=1.05)
determinants = []
for depth in depths:
    space = FullRankEndToEnd(2, 2, positive_det=True)
    metric = space.equip_with_metric(DepthMetric, depth=depth).metric
    style = {"color": plot.depth_color(depth), "ls": "-"}
    path = metric.geodesic(points[0], end_point=points[3])(times)
    name = plot.depth_label(depth)
    left.plot(times, np.linalg.svd(path, compute_uv=False)[:, 1], **style)
    halves = metric.dist(path[20], points[0]), metric.dist(path[20], points[3])
    whole = metric.dist(points[0], points[3])
    assert np.allclose(halves, 0.5 * whole, rtol=1e-7), "the middle of a shortest path"

    mean = frechet_mean(space, points)
    logs = metric.log(points, mean)
    assert np.abs(logs.mean(0)).max() < 1e-6 * np.abs(logs).max(), "a mean balances logarithms"
    determinants.append(np.linalg.det(mean))
    s = np.linalg.svd(mean, compute_uv=False)
    middle.plot(s[1], s[0], "o", color=style["color"], label=name)
    right.plot(1 / depth, determinants[-1], "o", color=style["color"])

    found = np.linalg.svd(frechet_mean(space, aligned), compute_uv=False)
    assert np.allclose(found, power_mean(depth), rtol=1e-6), "a power mean"

# %%
# Determinants of the means: arithmetic at one end, geometric at the other, larger between.
assert min(determinants[1:-1]) > max(determinants[0], determinants[-1])
assert np.allclose(determinants[0], np.linalg.det(points.mean(0)))
geometric = np.exp(np.log(np.linalg.det(points)).mean())
assert np.allclose(determinants[-1], geometric, rtol=1e-6)

left.set(xlabel="time along the geodesic", ylabel="smallest singular value", xlim=(0, 1))
figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=7)
middle.set(xlabel="$s_2$ of the mean", ylabel="$s_1$ of the mean")
right.plot([1 / d for d in depths], determinants, "0.6", ls="-", lw=0.8, zorder=0)
right.axhline(geometric, color="k", ls=":", label="geometric mean")
right.plot([], [], "o", color="0.4", label="mean, by depth")
right.legend(loc="upper center")
right.set(xlabel="1 / depth", ylabel="determinant of the mean", xlim=(-0.05, 1.05))
low, high = min(determinants), max(determinants)
right.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
run.save(figure)
