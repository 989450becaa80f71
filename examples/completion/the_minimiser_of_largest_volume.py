"""
Among minimisers of rank 2, the one of largest volume
=====================================================

Statement of Cohen, Menon and Veraszto, arXiv 2210.12497: where the completions of least rank form a
whole curve, the flow from small random starts does not scatter over it, but clusters at the point
where the volume of the metric of depth N is largest. Here a 3 x 3 matrix lacks two corners, ``w13``
and ``w31``. Its completions have rank 2 on a hyperbola with two vertices, (1, 1) and (0.28, 0.28),
whose matrices have the same nuclear norm, 3; the volume is larger at the first, and most of the
runs end there.
"""

from __future__ import annotations

import numpy as np
import torch

import dln_geometry as dln
from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS, STARTS, SCALE, A = (3, 5), 60 if run.quick else 500, 1e-3, 0.8
VERTICES = torch.tensor([[1.0, 1.0], [2 * A**2 - 1, 2 * A**2 - 1]], dtype=F64)


def completion(w13, w31):
    x = torch.tensor([[1.0, A, 0.0], [A, 1.0, A], [0.0, A, 1.0]], dtype=F64)
    x = x.expand(*w13.shape, 3, 3).clone()
    x[..., 0, 2], x[..., 2, 0] = w13, w31
    return x


# %%
# The volume of the metric, ``prod a_ij^{-1/2}`` over all pairs, is infinite at rank 2; divided by
# the power of the smallest singular value it compares the points of the hyperbola.
def log_volume(x, depth):
    s = torch.linalg.svdvals(x)[..., :2]
    inside = dln.log_depth_kernel(s, depth).sum((-1, -2))
    return -0.5 * (inside + 2 * (2 - 2 / depth) * s.log().sum(-1))


centre, radius = A**2, 1 - A**2
turn = torch.linspace(-2.5, 2.5, 801, dtype=F64).exp()
curve = {sign: torch.stack([centre + sign * radius * turn, centre + sign * radius / turn], -1)
         for sign in (1, -1)}  # fmt: skip
for branch in curve.values():
    assert torch.linalg.det(completion(*branch.T)).abs().max() < 1e-12

# %%
# The runs, and where they end.
generator = torch.Generator().manual_seed(8)
known = completion(torch.zeros((), dtype=F64), torch.zeros((), dtype=F64)) != 0
rows, cols = known.nonzero(as_tuple=True)
loss = dln.losses.Completion(rows, cols, completion(*torch.zeros(2, dtype=F64))[known], (3, 3))
start = SCALE * torch.randn(STARTS, 3, 3, generator=generator, dtype=F64)
figure, axes = run.figure(1, 3, aspect=1.05)
print("depth  largest volume at   share of the runs at (1, 1), with its error   at (0.28, 0.28)")
for k, (ax, depth) in enumerate(zip(axes, DEPTHS, strict=False)):
    point = dln.EndToEnd.of(start, depth, normalized=True)
    path = dln.gradient_flow(loss, point, until={"loss": 1e-9}, rtol=1e-4)
    ends = path.final.matrix[:, [0, 2], [2, 0]]
    rank = dln.effective_rank(path.singular_values[-1], "numerical", rtol=0.02)
    near = (ends.unsqueeze(1) - VERTICES).norm(dim=-1) < 0.25
    share = near.double().mean(0)
    error = (share * (1 - share) / STARTS).sqrt()
    volumes = torch.stack([log_volume(completion(*branch.T), depth) for branch in curve.values()])
    best = torch.stack(list(curve.values())).flatten(0, 1)[volumes.argmax()]
    print(f"{depth:<6} {best[0]:.3f}, {best[1]:.3f} {share[0]:>20.2f} +- {error[0]:.2f}", end="")
    print(f" {share[1]:>30.2f} +- {error[1]:.2f}")
    for branch in curve.values():
        ax.plot(*branch.T, "k-", lw=0.7)
    ax.plot([], [], "k-", lw=0.7, label="rank 2")
    color = plot.depth_color(depth)
    ax.plot(*ends.T, "o", color=color, ms=3.5, alpha=0.35, mew=0, label=f"{STARTS} runs")
    ax.plot(*best, "x", color="C2", ms=8, mew=1.5, label="largest volume")
    ax.set(title=plot.depth_label(depth), xlabel="$w_{13}$", ylabel="$w_{31}$", aspect="equal")
    ax.set(xlim=(-0.3, 1.9), ylim=(-0.3, 1.9))
    axes[2].errorbar(
        np.arange(2) + 0.1 * k,
        share,
        2 * error,
        fmt="o",
        capsize=3,
        color=color,
        label=plot.depth_label(depth),
    )
    assert (best - VERTICES[0]).norm() < 0.01
    assert share[0] - 4 * error[0] > 0.5, "most runs end at the largest volume"
    assert (rank <= 2).double().mean() > 0.7
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
names = ("(1, 1)\nlarger volume", "(0.28, 0.28)\nsmaller volume")
axes[2].set(
    xticks=(0.05, 1.05),
    xticklabels=names,
    ylabel="share of the runs, ± 2 s.e.",
    ylim=(0, 1),
    xlim=(-0.5, 1.5),
)
axes[2].legend(loc="upper right")
run.save(figure)
norms = torch.linalg.svdvals(completion(*VERTICES.T)).sum(-1)
assert (norms - 3).abs().max() < 1e-12, "the nuclear norm does not tell them apart"
