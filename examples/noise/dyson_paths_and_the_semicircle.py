"""
Dyson Brownian motion and the semicircle
========================================

Dyson Brownian motion of any index, and the semicircle it fills.

Particles repel each other like charges, ``dx_i = sum_{j != i} dt/(x_i - x_j) + sqrt(2/b) dW_i``:
the eigenvalues of a matrix whose entries are Brownian motions for the index b = 1, 2, 4, but the
equation makes sense for every b, and without noise at b = inf. Ten particles leave the origin
together and never change their order. One sees the noise fade with the index, down to the zeros of
a Hermite polynomial times sqrt(t); and that 300 particles of index 3.3 fill the semicircle of
radius ``2 sqrt(n t)``, with the law that the tridiagonal model gives exactly.

Source: Huang, Inauen, Menon, Motion by mean curvature and Dyson Brownian motion, arXiv 2210.11347.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry import gallery, laws

F64 = torch.float64
INDICES = (0.7, 2.0, 20.0, math.inf)

# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(6)
n, t_end, many, count = 10, 1.0, 300, 400 if run.quick else 4000
figure, axes = run.figure(2, 3, aspect=0.8)
*paths, law, largest = axes.flat
t = torch.linspace(0, t_end, 401, dtype=F64)
print("index   mean square: paths  exact samples   p-value of the largest particle")
for ax, index in zip(paths, INDICES, strict=True):
    path = dln.dyson(
        torch.zeros(n, dtype=F64), dyson_index=index, t_end=t_end, dt=1e-3, save_at=t,
        generator=generator,
    )  # fmt: skip
    assert (path.states.diff(dim=-1) >= 0).all(), "the order is kept"
    ax.plot(path.t, path.states, linewidth=0.8, color="C0", ls="-")
    ax.set(
        title=f"index {index:g}".replace("inf", "∞"), xlabel="time", ylim=(-9, 9), xlim=(0, t_end)
    )
    for sign in (-1, 1):
        ax.plot(
            t,
            sign * laws.semicircle_radius(n, 1) * t.sqrt(),
            "k:",
            label=r"$\pm 2\sqrt{nt}$" if sign > 0 else None,
        )
    if math.isinf(index):
        zeros = laws.hermite_zeros(n)
        ax.plot(
            torch.ones(n), zeros, "C2_", ms=9, mew=1.5, clip_on=False, label="zeros of $H_{10}$"
        )
        ax.legend(handles=[ax.lines[-1]], loc="upper left")
        assert (path.final - zeros).abs().max() < 1e-12
        continue
    start = torch.zeros(count, n, dtype=F64)
    ends = dln.dyson(
        start, dyson_index=index, t_end=t_end, dt=0.05, save_at=[t_end], generator=generator
    ).final
    exact = laws.beta_hermite(n, index, t=t_end, size=count, generator=generator)
    p = stats.ks_2samp(ends[:, -1].numpy(), exact[:, -1].numpy()).pvalue
    means = [float(x.square().mean()) for x in (ends, exact)]
    print(f"{index:<7g} {means[0]:>19.3f} {means[1]:>14.3f} {p:>20.2f}")
    assert p > 1e-4
    for shift, sample, mark, name in ((0.94, ends, "C0o", "paths"), (1.06, exact, "ks", "exact")):
        tops = sample[:, -1]
        label = name if index == INDICES[0] else None
        error = float(tops.std()) / (2 * count) ** 0.5
        look = {"capsize": 2, "ms": 3, "label": label}
        largest.errorbar(index * shift, float(tops.std()), 2 * error, fmt=mark, **look)

# %%
# Three hundred particles of index 3.3 in their bulk.
x = dln.dyson(
    torch.zeros(many, dtype=F64), dyson_index=3.3, t_end=t_end, dt=0.05, generator=generator
).final / math.sqrt(many * t_end)  # fmt: skip
grid = torch.linspace(-2.3, 2.3, 401, dtype=F64)
mean, edges = np.histogram(x.numpy(), bins=16, density=True)
error = np.sqrt(mean / (many * np.diff(edges)))
centre = (edges[1:] + edges[:-1]) / 2
law.errorbar(centre, mean, error, fmt="o", ms=2.5, capsize=1.5, lw=0.8, label="300 particles")
law.plot(grid, laws.semicircle_density(grid), "k", ls="-", label="semicircle")
law.set(title="index 3.3, one s.e.", xlabel=r"$x / \sqrt{n t}$", ylabel="density", ylim=(0, 0.5))
law.legend(loc="lower center")
for ax in paths:
    ax.set_ylabel("position")
paths[0].legend(loc="lower left")
largest.set(xscale="log", yscale="log", xlabel="index", title="largest particle at time 1")
largest.set_ylabel("standard deviation")
largest.legend(title="with 2 s.e.")
run.save(figure)

# %%
# The counting function of repelling particles is off by a logarithm, not by a square root.
rank = torch.arange(1, many + 1, dtype=F64)
deviation = (many * laws.semicircle_distribution(x) - rank).abs().max()
print(f"largest particle at {float(x[-1]):.3f} (2), particles out of place {deviation:.1f}")
assert deviation < 3 * math.log(many)
assert abs(float(x[-1]) / 2 - 1) < 4 * many ** (-2 / 3)
