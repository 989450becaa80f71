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

import torch
from matplotlib import pyplot as plt
from scipy import stats

import dln_geometry as dln
from dln_geometry import gallery, laws

F64 = torch.float64
INDICES = (0.7, 2.0, 20.0, math.inf)


# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(6)
n, t_end, many, count = 10, 1.0, 300, 400 if run.quick else 4000
figure = plt.figure(figsize=(13, 3.2))
axes = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.5))
t = torch.linspace(0, t_end, 401, dtype=F64)
print("index   mean square: paths  exact samples   p-value of the largest particle")
for ax, index in zip(axes, INDICES, strict=False):
    path = dln.dyson(
        torch.zeros(n, dtype=F64), dyson_index=index, t_end=t_end, dt=1e-3, save_at=t,
        generator=generator,
    )  # fmt: skip
    assert (path.states.diff(dim=-1) >= 0).all(), "the order is kept"
    ax.plot(path.t, path.states, linewidth=0.8, color="C0")
    ax.set(title=f"index {index:g}", xlabel="time", ylim=(-9, 9), xlim=(0, t_end))
    for sign in (-1, 1):
        ax.plot(t, sign * laws.semicircle_radius(n, 1) * t.sqrt(), "k:", linewidth=0.8)
    if math.isinf(index):
        zeros = laws.hermite_zeros(n)
        ax.plot(torch.ones(n), zeros, "C3_", markersize=9, clip_on=False)
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

x = dln.dyson(
    torch.zeros(many, dtype=F64), dyson_index=3.3, t_end=t_end, dt=0.05, generator=generator
).final / math.sqrt(many * t_end)  # fmt: skip
grid = torch.linspace(-2.3, 2.3, 401, dtype=F64)
axes[4].hist(x.numpy(), bins=30, density=True, color="C0", alpha=0.4, label="300 particles")
axes[4].plot(grid, laws.semicircle_density(grid), "k", label="semicircle")
axes[4].set(title="index 3.3", xlabel=r"$x / \sqrt{n t}$", ylim=(0, 0.5))
axes[4].legend(loc="upper center", ncols=2, fontsize="small")
axes[0].set_ylabel("position")
run.save(figure)
rank = torch.arange(1, many + 1, dtype=F64)
deviation = (many * laws.semicircle_distribution(x) - rank).abs().max()
print(f"largest particle at {float(x[-1]):.3f} (2), particles out of place {deviation:.1f}")
# The counting function of repelling particles is off by a logarithm, not by a square root.
assert deviation < 3 * math.log(many)
assert abs(float(x[-1]) / 2 - 1) < 4 * many ** (-2 / 3)
