"""
Completion by pymanopt in the metrics of depth
==============================================

Matrix completion by the three optimizers of pymanopt, in the metrics of depth 1, 2, 3 and 8.

The same cost, the same matrices of rank 3, the same start with three *equal* singular values, where
the motion of singular vectors has no derivative: only the metric differs, the one that a linear
network of N balanced layers leaves on its products. It multiplies the gradient by about
``(s_i s_j)^{1-1/N}``: near the matrix wanted, with singular values 9, 6 and 3, each layer makes
steepest descent worse conditioned, and small singular values wait for the large ones. Conjugate
gradients suffer less; trust regions, which know the curvature of cost and metric, end quadratically
at every depth.

Sources: Menon, The geometry of the deep linear network, arXiv 2411.09004; Arora, Cohen, Hu, Luo,
Implicit regularization in deep matrix factorization, arXiv 1905.13655.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pymanopt
import torch
from pymanopt.optimizers import ConjugateGradient, SteepestDescent, TrustRegions

from dln_geometry import gallery, plot
from manifolds.pymanopt_dln import EndToEndManifold, FixedRankPoint

DEPTHS = (1, 2, 3, 8)
M, N, RANK = 30, 25, 3


def problem_in(depth, target, mask):
    manifold = EndToEndManifold(M, N, RANK, depth)
    rows, cols = np.nonzero(mask)
    values = torch.from_numpy(target[rows, cols])
    costs = []

    @pymanopt.function.pytorch(manifold)
    def cost(u, s, vt):
        # The entries observed, without the rest of the matrix.
        entries = ((u[rows] * s) * vt[:, cols].mT).sum(-1)
        value = 0.5 * (entries - values).square().sum()
        if not u.requires_grad:
            costs.append(float(value))
        return value

    return pymanopt.Problem(manifold, cost), costs


# %%
run = gallery.begin(__doc__)
rng = np.random.default_rng(10)
u, v = (np.linalg.qr(rng.standard_normal((size, RANK)))[0] for size in (M, N))
target = (u * [9.0, 6.0, 3.0]) @ v.T
mask = rng.uniform(size=(M, N)) < 0.6
a, b = (np.linalg.qr(rng.standard_normal((size, RANK)))[0] for size in (M, N))
start = FixedRankPoint(a, np.full(RANK, 0.3), np.ascontiguousarray(b.T))

figure, axes = run.figure(1, 3, sharey=True, aspect=1.1)
runs = {
    SteepestDescent: 150 if run.quick else 300,
    ConjugateGradient: 60 if run.quick else 150,
    TrustRegions: 60,
}
late: dict[type, list[int]] = {optimizer: [] for optimizer in runs}
print("depth   optimizer            iterations       cost   |X - Y|")
for ax, (optimizer, most) in zip(axes, runs.items(), strict=True):
    for depth in DEPTHS:
        problem, costs = problem_in(depth, target, mask)
        result = optimizer(
            max_iterations=most, min_gradient_norm=1e-9, verbosity=0, log_verbosity=1
        ).run(problem, initial_point=start)
        # Trust regions log nothing, but ask for the cost once in every iteration.
        log = result.log["iterations"].get("cost", np.minimum.accumulate(costs))
        ax.semilogy(
            np.maximum(log, 1e-20),
            color=plot.depth_color(depth),
            ls="-",
            label=plot.depth_label(depth),
        )
        late[optimizer].append(int(np.argmax(np.array(log) < 1e-2 * log[0])))
        error = np.linalg.norm(problem.manifold.matrix(result.point) - target)
        name = optimizer.__name__
        print(f"{depth:<7} {name:<20} {result.iterations:>10} {result.cost:10.1e} {error:9.1e}")
        if optimizer is TrustRegions:
            assert result.cost < 1e-18
            assert error < 1e-8
        assert result.cost < 1e-2 * log[0]
    ax.set(title=name, xlabel="iteration")
axes[0].set(ylabel="cost (half the sum of squares)", ylim=(1e-20, 1e3))
axes[2].legend()
# The deeper, the later: iterations to a hundredth of the cost.
assert all(a < b for a, b in pairwise(late[SteepestDescent]))
run.save(figure)
