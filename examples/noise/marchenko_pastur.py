"""
Singular values fill the Marchenko-Pastur law
=============================================

The singular values of an m x n matrix of independent Brownian motions repel each other,
``ds_i = dB_i + [(m-n)/s_i + sum_{j != i} (1/(s_i-s_j) + 1/(s_i+s_j))]/2 dt``, and so do those of
any index. Statements: from zero, at any time, they are a beta-Laguerre ensemble (Dumitriu and
Edelman, arXiv math-ph/0206043); and many of them fill the law of Marchenko and Pastur between the
edges ``(sqrt(m) +- sqrt(n)) sqrt(t)``, whatever the index.
"""

from __future__ import annotations

import math

import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry import gallery, laws

run = gallery.begin(__doc__)
F64 = torch.float64
SHAPES, INDEX = ((120, 120), (240, 120), (480, 120)), 2.5
COPIES, BINS = (6, 18) if run.quick else (24, 30)

# %%
# Twelve paths from zero with the edges, and all at time 1 in exact samples' company.
generator = torch.Generator().manual_seed(15)
figure, axes = run.figure(1, 4, aspect=1.3)
t = torch.linspace(0, 1, 201, dtype=F64)
path = dln.singular_dyson(
    torch.zeros(12, dtype=F64), (24, 12), dyson_index=INDEX, t_end=1.0, dt=2e-3, save_at=t,
    generator=generator,
)  # fmt: skip
axes[0].plot(path.t, path.states, color="C0", ls="-", lw=0.7)
axes[0].plot([], [], color="C0", ls="-", lw=0.7, label="12 paths")
for k, edge in enumerate(laws.marchenko_pastur_edges((24, 12))):
    axes[0].plot(t, edge * t.sqrt(), "k:", label=None if k else "edges")
axes[0].set(xlabel="time", ylabel="singular values", title="24 × 12", xlim=(0, 1), ylim=(0, None))
axes[0].legend(loc="upper left")

# %%
# Histograms with standard errors over independent copies, against the density.
print("shape        p-value of the largest value   largest deviation of the counting function")
for ax, shape in zip(axes[1:], SHAPES, strict=True):
    n = min(shape)
    ends = dln.singular_dyson(
        torch.zeros(COPIES, n, dtype=F64), shape, dyson_index=INDEX, t_end=1.0, dt=0.1,
        save_at=[1.0], generator=generator,
    ).final  # fmt: skip
    low, high = laws.marchenko_pastur_edges(shape)
    edges = torch.linspace(0.97 * low, 1.03 * high, BINS + 1, dtype=F64)
    counts = torch.stack([torch.histogram(row, edges).hist for row in ends])
    density = counts / (n * edges.diff())
    middle = (edges[1:] + edges[:-1]) / 2
    mean, error = density.mean(0), density.std(0) / COPIES**0.5
    ax.errorbar(
        middle, mean, error, fmt="o", color="C0", ms=2.5, capsize=1.5, lw=0.8, label="mean, s.e."
    )
    grid = torch.linspace(float(low), float(high), 400, dtype=F64)
    ax.plot(grid, laws.marchenko_pastur_density(grid, shape), "k-", label="law")
    ax.set(
        title=f"{shape[0]} × {shape[1]}", xlabel="value at time 1", ylabel="density", ylim=(0, None)
    )
    exact = laws.beta_laguerre(shape, INDEX, size=20 * COPIES, generator=generator)
    p = stats.ks_2samp(ends.max(-1).values.numpy(), exact.max(-1).values.numpy()).pvalue
    rank = torch.arange(1, n + 1, dtype=F64)
    law = laws.marchenko_pastur_distribution(ends.sort(-1).values, shape)
    deviation = float((n * law - rank).abs().max())
    print(f"{shape[0]} x {shape[1]:<6} {p:>20.2f} {deviation:>28.2f} of {n}")
    assert p > 1e-4, "the exact ensemble"
    # Repelling particles keep their places up to a logarithm.
    assert deviation < 3 * math.log(n)
axes[1].set_ylabel("density")
axes[1].legend(loc="lower left")
run.save(figure)
