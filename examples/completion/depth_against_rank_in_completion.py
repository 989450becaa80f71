"""
Depth against rank in matrix completion
=======================================

Depth against rank: matrix completion from a fifth of the entries.

A matrix of rank 5 is completed from 2000 of its 10000 entries by the gradient flow from a small
balanced start of full rank; nothing but the depth tells the flow that the rank is low. One sees
that a singular value s grows at the rate ``s^{2-2/N}``, so that the deeper the network is, the
longer small ones stay small while large ones grow: the gap between the singular values that are
learned and the others widens with depth, and the entries that were never seen come out right.

Source: Arora, Cohen, Hu, Luo, Implicit regularization in deep matrix factorization,
arXiv 1905.13655, Figure 3.
"""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import gallery, plot

F64 = torch.float64
DEPTHS = (1, 2, 3, 4)


def problem(size, rank, count, generator):
    """Return a matrix of low rank with entries of unit variance, and the loss on some of them."""
    left, right = torch.randn(2, size, rank, generator=generator, dtype=F64)
    target = left @ right.mT / rank**0.5
    seen = torch.randperm(size * size, generator=generator).view(size, size) < count
    rows, cols = seen.nonzero(as_tuple=True)
    return target, seen, dln.losses.Completion(rows, cols, target[seen], (size, size))


# %%
run = gallery.begin(__doc__)
size, rank, count = (40, 3, 640) if run.quick else (100, 5, 2000)
generator = torch.Generator().manual_seed(5)
target, seen, loss = problem(size, rank, count, generator)
start = dln.Collapsed.random((size, size), None, 2, scale=1e-3, generator=generator, dtype=F64)
figure, axes = run.figure(1, 4, aspect=1.3)
first, errors, gaps = f"s_{rank}", [], []
print(f"depth   time  evaluations  {first:>6} {f's_{rank + 1}':>6}  ratio    held-out error")
for depth in DEPTHS:
    path = dln.gradient_flow(
        loss,
        dln.EndToEnd.of(start.matrix, depth),
        until={"loss": 1e-6 * count},
        rtol=1e-5,
        keep_points=True,
    )
    wrong = torch.stack([(p.matrix - target)[~seen].square().mean() for p in path.points])
    error = (wrong / target[~seen].square().mean()).sqrt()
    s = path.singular_values[-1]
    errors.append(float(error[-1]))
    gaps.append(float(s[rank - 1] / s[rank]))
    print(
        f"{depth:>5} {float(path.t[-1]):>6.2f} {path.stats['evaluations']:>12}"
        f"  {s[rank - 1]:>6.2f} {s[rank]:>6.3f} {gaps[-1]:>6.1f} {errors[-1]:>17.3f}"
    )
    axes[3].loglog(
        2 * path.loss / count,
        error,
        color=plot.depth_color(depth),
        ls=("-", "--", "-", ":")[depth - 1],
        label=plot.depth_label(depth),
    )
    if depth > 1:
        plot.singular_values(path, axes[depth - 2], count=rank, log=True, linestyle="-")
        axes[depth - 2].set(title=plot.depth_label(depth), xlim=(0, 4.5), ylim=(1e-4, 200))
for ax in axes[1:3]:
    ax.set_ylabel("")
axes[3].invert_xaxis()
axes[3].set(xlabel="mean square, seen", ylabel="relative error, unseen")
axes[3].legend()
figure.supxlabel(f"a to c, coloured: the {rank} largest, from dark to light; grey: the others")
run.save(figure)

# %%
# The gap widens with the depth, and with it the unseen entries come out right.
assert errors[0] > 0.9, "depth 1 does not move what it does not see"
assert errors[0] > errors[1] > errors[2]
assert gaps == sorted(gaps)
assert gaps[-1] > 10 * gaps[1]
