"""
The entropy landscape of a completion, with flow lines
======================================================

Of a 2 x 2 matrix the diagonal is known; every choice of ``w12`` and ``w21`` has zero loss. Two
forces choose between them. Gradient flow from a small start comes in along the matrices of low
rank (Cohen, Menon, Veraszto, arXiv 2210.12497). Noise in the gauge directions drives the
minimisers uphill on the entropy S of Menon and Yu, arXiv 2509.09088: in the metric of depth N they
follow the gradient of S within the plane of minimisers, away from the low rank and from the origin.
Shading and white lines: S. Arrows: its gradient. Black: rank 1. Red: runs of the free-energy flow.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS, DIAGONAL, BETA = (2, 5, 20), (1.0, 0.85), 2000.0
TIMES = {2: 2.0, 5: 0.5, 20: 0.08}
# No point of these grids has rank 1, where the metric ends.
COUNT = 31 if run.quick else 80
loss = dln.losses.Completion([0, 1], [0, 1], DIAGONAL, (2, 2))


def completions(w12, w21):
    x = torch.diag(torch.tensor(DIAGONAL, dtype=F64)).expand(*w12.shape, 2, 2).clone()
    x[..., 0, 1], x[..., 1, 0] = w12, w21
    return x


# %%
# The velocity within the plane: the gradient of S in the metric that the plane inherits,
# ``M^{-1} dS`` with ``M_ab = g(E_a, E_b)`` for the two free entries.
FREE = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]], dtype=F64)


def field(x, depth):
    p = dln.EndToEnd.of(x, depth)
    slope = dln.entropy_gradient(p)
    inherited = torch.stack([dln.metric(p, e.expand_as(x)) for e in FREE], -3)[..., [0, 1], [1, 0]]
    covector = slope[..., [0, 1], [1, 0]]
    return torch.linalg.solve(inherited, covector.unsqueeze(-1)).squeeze(-1)


axis = torch.linspace(-2, 2, COUNT, dtype=F64)
w21, w12 = torch.meshgrid(axis, axis, indexing="ij")
grid = completions(w12, w21)
figure, axes = run.figure(1, 3, aspect=1.15, sharey=True)
branch = np.geomspace(0.4, 2.2, 100)
begin = [(-0.3, 0.2), (0.5, -0.4), (1.0, 1.1), (-1.2, -1.3)]
print("depth  end of the free-energy flow against the line of the entropy gradient")
for ax, depth in zip(axes, DEPTHS, strict=True):
    s = dln.entropy(dln.EndToEnd.of(grid, depth)).numpy()
    s = s - s.mean()
    levels = np.linspace(-0.6, 0.6, 13)
    image = ax.contourf(axis, axis, s, levels, extend="both", cmap="cividis")
    ax.contour(axis, axis, s, levels, colors="w", linewidths=0.3, linestyles="-")
    v = field(grid, depth)
    v = (v / v.norm(dim=-1, keepdim=True)).numpy()
    ax.streamplot(
        axis.numpy(), axis.numpy(), v[..., 0], v[..., 1], density=0.7, color="0.85", linewidth=0.6,
        arrowsize=0.7,
    )  # fmt: skip
    for sign in (-1, 1):
        ax.plot(sign * branch, sign * math.prod(DIAGONAL) / branch, "k-", lw=1.2)

    # The free-energy flow at low temperature: the time along the line is t / beta.
    time = TIMES[depth] * BETA
    x0 = completions(*torch.tensor(begin, dtype=F64).T)
    path = dln.free_energy_flow(
        loss,
        dln.EndToEnd.of(x0, depth),
        beta=BETA,
        t_end=time,
        save_at=21,
        rtol=1e-5,
        keep_points=True,
    )
    x = torch.stack([p.matrix for p in path.points])
    worst = 0.0
    for k, w in enumerate(begin):
        line = solve_ivp(
            lambda _, y, n=depth: field(completions(*torch.as_tensor(y)), n).numpy(),
            (0, time / BETA), w, rtol=1e-8, atol=1e-10,
        ).y[:, -1]  # fmt: skip
        end = x[-1, k][[0, 1], [1, 0]].numpy()
        worst = max(worst, float(np.abs(end - line).max()))
        ax.plot(x[:, k, 0, 1], x[:, k, 1, 0], color="C2", ls="-", lw=1.6)
        ax.plot(*w, "o", color="C2", ms=3)
    print(f"{depth:<6} {worst:.1e}")
    assert worst < 5e-3
    assert float(loss.value(x).max()) < 1e-3
    assert (dln.entropy(dln.EndToEnd.of(x, depth)).diff(dim=0) > 0).all(), "uphill"
    ax.set(
        title=plot.depth_label(depth), xlabel="$w_{12}$", aspect="equal", xlim=(-2, 2), ylim=(-2, 2)
    )
axes[0].set_ylabel("$w_{21}$")
for style, label in (
    ({"color": "k"}, "rank 1"),
    ({"color": "0.6", "lw": 0.8}, "gradient of S"),
    ({"color": "C2", "marker": "o"}, r"free-energy flow, $\beta$ = 2000"),
):
    axes[0].plot([], [], ls="-", **style, label=label)
figure.legend(loc="outside lower center", ncols=3)
figure.colorbar(image, ax=axes, label="S less its mean", format="%.1f", shrink=0.8)
run.save(figure)
