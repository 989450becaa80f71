"""
Depth, weight decay and rank
============================

Depth, weight decay and rank: which singular values survive.

Weight decay gamma on the layers of a deep linear network is ``(N gamma / 2) sum_i s_i^{2/N}`` on
its product: the nuclear norm at depth 2, and no longer convex above. Each singular value phi of the
target decides alone. At depth 2 it is shrunk to ``phi - gamma`` and vanishes at ``gamma = phi``;
deeper, it jumps from ``phi (N-2)/(2N-2)`` to zero, at a threshold that is lower for small phi.
Left: networks trained by torch's SGD, rank 10, 10, 8, 5 at gamma = 0, .05, .2, .5: the number of
singular values above gamma. Middle: the values against gamma by depth, dots are trained networks.
Right: the thresholds of one value by depth, a real number: where the learned one ceases to exist,
and where zero becomes the better solution.

Source: Ziyin, Symmetry induces structure and constraint of learning, arXiv 2309.16932.
"""

from __future__ import annotations

import torch
from torch import nn

import dln_geometry as dln
from dln_geometry import gallery, plot
from dln_geometry.learning.closed_forms import branch_end, decayed_singular_values, global_switch

F64 = torch.float64
PHI = torch.tensor([2.0, 1.6, 1.2, 0.9, 0.6, 0.4, 0.35, 0.3, 0.15, 0.1], dtype=F64)


def trained(target, depth, gamma, steps, generator):
    """Return the singular values that SGD with weight decay arrives at, from the target itself."""
    widths = (target.shape[1], *(11 + p for p in range(depth - 1)), len(target))
    point = dln.EndToEnd.of(target, depth)
    factors = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    layers = [nn.Parameter(w) for w in factors]
    optimiser = torch.optim.SGD(layers, lr=0.1, weight_decay=gamma)
    for _ in range(steps):
        optimiser.zero_grad()
        (0.5 * (dln.end_to_end(layers) - target).square().sum()).backward()
        optimiser.step()
    return torch.linalg.svdvals(dln.end_to_end(layers).detach())


# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(0)
steps, depths = (1000, (2, 3)) if run.quick else (2500, (2, 3, 4))
point = dln.Collapsed.random((10, 12), 10, 2, spectrum=PHI, generator=generator, dtype=F64)
target = point.matrix
figure, (left, middle, right) = run.figure(1, 3, aspect=1.15)
print("depth  gamma  rank  expected  largest error")
for k, gamma in enumerate((0.0, 0.05, 0.2, 0.5)):
    for depth in depths:
        s = trained(target, depth, gamma, steps, generator)
        closed = decayed_singular_values(PHI, gamma, depth)
        rank, expected = int((s > 1e-2).sum()), int((closed > 0).sum())
        error = float((s - closed).abs().max())
        print(f"{depth:>5} {gamma:>6} {rank:>5} {expected:>9} {error:>14.1e}")
        assert rank == expected
        assert error < 1e-2
        if depth == 2:
            assert expected == int((gamma < PHI).sum()) == (10, 10, 8, 5)[k]
            left.plot(
                range(1, 11),
                s,
                f"C{k}",
                marker="os^D"[k],
                ls="-",
                label=f"$\\gamma$ = {gamma:g}: rank {rank}",
            )
        for phi, value in zip(PHI[[0, 3, 5]], s[[0, 3, 5]], strict=True):
            middle.plot(gamma, value, "o", color=plot.depth_color(depth), ms=4)
            if k == 0:
                grid = torch.linspace(0, 2.2, 221, dtype=F64)
                curve = [float(decayed_singular_values(phi, g, depth)) for g in grid.tolist()]
                label = f"depth {depth}" if phi == 2 else None
                style = {"color": plot.depth_color(depth), "ls": ("-", "--", ":")[depth - 2]}
                middle.plot(grid, curve, **style, label=label)

# %%
# Thresholds of one value at real depths.
n = torch.linspace(2, 12, 201, dtype=F64).tolist()
for phi, style in ((2.0, "-"), (0.6, "--")):
    target_value = torch.tensor(phi, dtype=F64)
    ends = [float(branch_end(target_value, x)) for x in n]
    switches = [float(global_switch(target_value, x)) for x in n]
    right.plot(n, ends, f"C0{style}", label=f"value ends, $\\varphi$ = {phi:g}")
    right.plot(n, switches, f"C2{style}", label=f"zero is better, $\\varphi$ = {phi:g}")
    assert all(a <= b for a, b in zip(switches, ends, strict=True))
left.set(xlabel="index", ylabel="singular value", title="depth 2, trained", xticks=range(1, 11))
middle.set(xlabel=r"$\gamma$", ylabel="singular value", title="three of the values")
right.set(xlabel="depth N", ylabel=r"threshold $\gamma$", title="thresholds", ylim=(0, 3.4))
middle.plot([], [], "o", color="0.4", ms=4, label="trained")
left.set_ylim(top=3)
for ax in (left, middle, right):
    ax.legend()
run.save(figure)
