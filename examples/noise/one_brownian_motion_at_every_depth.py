"""
One Brownian motion at every depth
==================================

One Brownian motion at every depth: in ``rho = sqrt(N) s^{1/N}`` the depth cannot be seen.

Noise that is isotropic in the geometry of depth N, ``dX = U (sqrt(a_ij) dB_ij) V^T`` with its
drift, moves end-to-end matrices in very different ways: the deeper, the stiller singular values
stand near zero and the farther they jump away from it. But the volume of the metric is ``prod
d rho_k prod |rho_i^2 - rho_j^2|`` up to a constant, and the radial directions are flat: in rho the
singular values are those of a plain matrix Brownian motion, whatever the depth, and at infinite
depth ``log s`` are the eigenvalues of one of symmetric matrices. One sees paths at depths 1, 3 and
10, in s and in rho, and laws at the end against exact samples.

The table has p-values of Kolmogorov-Smirnov tests of each singular value against the exact sample,
the least of the three times three (Bonferroni). Splitting steps are exact in this law, however
long: they pass. Product steps are biased at depth 10, and as many chains reject them.

Sources: Menon, arXiv 2411.09004; Cohen, Menon, Veraszto, arXiv 2210.12497, for infinite depth.
"""

from __future__ import annotations

import math

import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry import gallery, plot

F64 = torch.float64
RHO = torch.tensor([1.5, 0.9, 0.4], dtype=F64)
DEPTHS = (1, 3, 10)
COLORS = {depth: plot.depth_color(depth) for depth in (*DEPTHS, math.inf)}


def moved(depth, generator, **options):
    """Return singular values of Brownian motion to time 1 in flat coordinates, rho or log s."""
    deep = math.isinf(depth)
    start = dln.EndToEnd.of(torch.diag(RHO if deep else (RHO / depth**0.5) ** depth), depth)
    path = dln.brownian_motion(start, t_end=1.0, generator=generator, **options)
    s = path.singular_values
    return path.t, s, s.log() if deep else depth**0.5 * s ** (1 / depth)


def p_value(sample, exact):
    """Return the p-value of equal laws: the least of one test per singular value, times three."""
    pairs = zip(sample.T.numpy(), exact.T.numpy(), strict=True)
    return min(1.0, len(RHO) * min(stats.ks_2samp(a, b).pvalue for a, b in pairs))


def draw(ax, sample, color, style, label):
    """Draw the distribution function of every singular value."""
    share = torch.linspace(0, 1, len(sample), dtype=F64)
    for k, values in enumerate(sample.T):
        label = label if k == 0 else None
        ax.plot(values.sort().values, share, style, color=color, linewidth=1.2, label=label)


# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(7)
chains, size = (3000, 10_000) if run.quick else (20_000, 50_000)
figure, panels = run.figure(2, 3, aspect=0.8)
*axes, flat_paths, law, last = panels.flat
for ax, depth in zip(axes, DEPTHS, strict=True):
    t, s, rho = moved(depth, generator, dt=0.01, method="splitting")
    ax.semilogy(t, s, color=COLORS[depth], ls="-")
    ax.set(title=plot.depth_label(depth), xlabel="time", ylabel="singular values s", xlim=(0, 1))
    lines = flat_paths.plot(t, rho, color=COLORS[depth], ls="-")
    lines[0].set_label(plot.depth_label(depth))

# %%
# Laws at time 1 against exact samples.
noise = torch.randn(size, 3, 3, generator=generator, dtype=F64)
plain = torch.linalg.svdvals(torch.diag(RHO) + noise)
symmetric = torch.diag(RHO.log()) + 0.5 * (noise + noise.mT)
logs = torch.linalg.eigvalsh(symmetric).flip(-1)
print("depth  steps       median of the largest: s  flat  (exact)    p-value")
for depth, method, dt in (*((n, "splitting", 0.25) for n in COLORS), (10, "product", 0.05)):
    options = {"chains": chains, "save_at": [1.0], "dt": dt, "method": method}
    s, flat = (x[-1] for x in moved(depth, generator, **options)[1:])
    ax, exact = (last, logs) if math.isinf(depth) else (law, plain)
    p = p_value(flat, exact)
    middle = [float(x[:, 0].median()) for x in (s, flat, exact)]
    print(f"{depth:<6} {method:<22} {middle[0]:>11.3f} {middle[1]:.3f} ({middle[2]:.3f})", end="")
    print(f" {p:>10.2g}")
    assert p > 1e-3 if method == "splitting" else p < 1e-3
    if method == "splitting":
        draw(ax, flat, COLORS[depth], "-", plot.depth_label(depth))
print(f"{chains} chains against exact samples of {size}")
for ax, exact in ((law, plain), (last, logs)):
    draw(ax, exact, "k", ":", "exact")
    ax.legend(loc="lower right")
flat_paths.set(
    title=r"$\rho = \sqrt{N} s^{1/N}$",
    xlabel="time",
    ylabel=r"$\rho$, same paths",
    xlim=(0, 1),
)
flat_paths.set_ylim(0, 5.5)
flat_paths.legend(loc="upper left", ncols=3, columnspacing=0.6, handlelength=0.8, handletextpad=0.4)
law.set(title=r"law of $\rho$", xlabel=r"$\rho$ at time 1", ylabel="distribution function")
last.set(title=r"law of $\log s$", xlabel=r"$\log s$ at time 1", xlim=(-6, 8))
last.set_ylabel("distribution function")
run.save(figure)
