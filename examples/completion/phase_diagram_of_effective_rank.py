"""
A phase diagram: depth, initial scale and effective rank
========================================================

Statement of Arora, Cohen, Hu and Luo, Implicit regularization in deep matrix factorization, arXiv
1905.13655: the deeper the network and the smaller its start, the lower the rank of the completion.
A matrix of rank 2 is completed from half of its entries, from balanced starts of full rank, at real
depths 1 to 6 and scales 1e-4 to 1. The diagram shows the effective rank
``exp(entropy of s / sum s)`` in the end, and the error on the entries that were not seen.
"""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS = (1, 1.5, 2, 3, 5) if run.quick else (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6)
SCALES = torch.logspace(-4, 0, 5 if run.quick else 9, dtype=F64)
SIZE, SEEDS, RANK = (10, 3, 2) if run.quick else (16, 8, 2)

# %%
# One matrix, one mask; every seed is another start. All scales and seeds of a depth are one batch.
generator = torch.Generator().manual_seed(31)
left, right = torch.randn(2, SIZE, RANK, generator=generator, dtype=F64)
target = left @ right.mT
seen = torch.randperm(SIZE * SIZE, generator=generator).view(SIZE, SIZE) < 0.6 * SIZE * SIZE
rows, cols = seen.nonzero(as_tuple=True)
loss = dln.losses.Completion(rows, cols, target[seen], (SIZE, SIZE))
unit = dln.Collapsed.random((SIZE, SIZE), None, 2, batch=(SEEDS,), generator=generator, dtype=F64)
start = (SCALES[:, None, None, None] * unit.matrix).flatten(0, 1)


ranks, errors = [], []
for depth in DEPTHS:
    point = dln.EndToEnd.of(start, depth, normalized=True)
    path = dln.gradient_flow(loss, point, until={"loss": 1e-5 * len(rows)}, rtol=1e-4)
    x = path.final.matrix
    wrong = (x - target)[:, ~seen].square().mean(-1) / target[~seen].square().mean()
    ranks.append(dln.effective_rank(torch.linalg.svdvals(x)).view(-1, SEEDS))
    errors.append(wrong.sqrt().view(-1, SEEDS))
ranks, errors = torch.stack(ranks), torch.stack(errors)
mean, error = ranks.mean(-1), ranks.std(-1) / SEEDS**0.5
truth = float(dln.effective_rank(torch.linalg.svdvals(target)))

# %%
# The diagram, with the numbers in it, and three of its columns with standard errors.
figure, axes = run.figure(1, 3, aspect=1.25, width_ratios=(1.25, 1.25, 1))
names = [f"{depth:g}" for depth in DEPTHS]
for ax, values, title in (
    (axes[0], mean.numpy(), "effective rank"),
    (axes[1], errors.mean(-1).numpy(), "error, unseen"),
):
    image = ax.imshow(
        values, origin="lower", aspect="auto", cmap="cividis", vmin=0 if ax is axes[1] else 1
    )
    every = 2 if len(SCALES) > 5 else 1
    ax.set(
        xticks=range(0, len(SCALES), every),
        yticks=range(len(DEPTHS)),
        yticklabels=names,
        title=title,
    )
    ax.set_xticklabels([f"$10^{{{x:.0f}}}$" for x in SCALES.log10()[::every]])
    ax.set(xlabel="scale of the start", ylabel="depth")
    figure.colorbar(image, ax=ax, location="bottom", shrink=0.9)
for depth in (1, 2, 3):
    k = DEPTHS.index(depth)
    style = {"color": plot.depth_color(depth), "marker": "o", "ls": "-", "capsize": 2}
    axes[2].errorbar(SCALES, mean[k], 2 * error[k], label=plot.depth_label(depth), **style)
axes[2].axhline(truth, color="k", ls=":", lw=0.8, label="true matrix")
axes[2].set(xscale="log", xlabel="scale of the start", ylabel="effective rank", ylim=(0.9, None))
axes[2].legend(loc="center left", title=f"mean of {SEEDS}, ± 2 s.e.")
run.save(figure)

# %%
# Deeper and smaller: lower rank, down to that of the matrix, and the right entries.
print(f"effective rank of the matrix {truth:.2f}; found: depth 1 {mean[0, 0]:.2f}, ", end="")
print(f"depth {DEPTHS[-1]} {mean[-1, 0]:.2f} at scale 1e-4; {mean[-1, -1]:.2f} at scale 1")
assert (mean[1:, 0].diff() < 4 * error[1:, 0].max() + 0.02).all(), "deeper: lower"
assert mean[-1, 0] < mean[-1, -1], "smaller: lower"
assert abs(mean[-1, 0] - truth) < 0.2
assert errors[-1, 0].mean() < 0.2 < errors[0, 0].mean()
