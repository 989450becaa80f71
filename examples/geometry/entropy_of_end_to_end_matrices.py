"""
The entropy of end-to-end matrices
==================================

The entropy of end-to-end matrices: how many balanced networks make the same X.

The balanced factorisations of X form an orbit of the hidden rotations, and the entropy is the
logarithm of its volume. One sees it grow with both singular values of a 2 x 2 matrix, for depths 2
to infinity (without what diverges with the depth); that it is the volume measured on the layers, a
torus of N - 1 angles and its mirror images; and that the free energy ``|X|^2/2 - S/beta`` keeps X
from shrinking to zero: s* times an orthogonal matrix is best, ``s*^2 = (d-1)(N-1)/(2 beta N)``.

Source: Menon, Yu, An entropy formula for the deep linear network, arXiv 2509.09088.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize

import dln_geometry as dln
from dln_geometry import gallery, plot
from dln_geometry.testing import assert_close

F64 = torch.float64
DEPTHS, BETA = (2, 3, 10, math.inf), 2.0


def measured(x, depth, generator):
    """Return the log of the volume of the orbit of a 2 x 2 matrix, from its Gram determinant."""
    factors = dln.balanced_factors(dln.EndToEnd.of(x, depth))

    def layers(angles):
        c, s = angles.cos(), angles.sin()
        turns = torch.stack((torch.stack((c, -s), -1), torch.stack((s, c), -1)), -2)
        return torch.cat([w.flatten() for w in dln.gauge_action(factors, list(turns))])

    # The density is the same at all angles; each runs over two circles, the second mirrored.
    angles = torch.rand(depth - 1, generator=generator, dtype=F64)
    j = torch.autograd.functional.jacobian(layers, angles)
    return 0.5 * torch.logdet(j.mT @ j) + (depth - 1) * math.log(4 * math.pi)


def minimiser(d, depth, generator):
    """Return the singular values of the matrix of least free energy, found from a random one."""
    loss = dln.losses.Quadratic(torch.zeros(d, d, dtype=F64))

    def objective(y):
        p = dln.EndToEnd.of(y.reshape(d, d), depth)
        gradient = loss.gradient(p.matrix) - dln.entropy_gradient(p) / BETA
        return float(dln.free_energy(p, loss, BETA)), gradient.flatten().numpy()

    start = torch.randn(d * d, generator=generator, dtype=F64).numpy()
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    return torch.linalg.svdvals(torch.as_tensor(found.x.reshape(d, d)))


# %%
run = gallery.begin(__doc__)
d, count = (3, 60) if run.quick else (5, 240)
generator = torch.Generator().manual_seed(2)
x = torch.randn(2, 2, generator=generator, dtype=F64)
axis = torch.linspace(0, 1.5, count + 1, dtype=F64)[1:]
grid = torch.diag_embed(torch.cartesian_prod(axis, axis))
figure, grid_axes = run.figure(2, 3, aspect=0.85)
axes = [*grid_axes.flat[:4], grid_axes.flat[4]]
moved = grid_axes.flat[5]
eps, levels = torch.finfo(F64).eps, np.linspace(-2.5, 0.5, 13)
print("depth  log volume: formula  measured   s*: formula  smallest and largest found")
for ax, depth in zip(axes, DEPTHS, strict=False):
    s, volumes = dln.entropy(dln.EndToEnd.of(grid, depth)).reshape(count, count), ""
    if depth < math.inf:
        formula, found = dln.entropy(dln.EndToEnd.of(x, depth)), measured(x, depth, generator)
        assert_close(formula, found)
        volumes = f"{formula:.6f} {found:.6f}"
        # What grows with the depth: the volume of O(2) for each hidden layer, and the kernel.
        s = s - (depth - 1) * math.log(math.sqrt(32) * math.pi) - 0.5 * math.log(depth)
    best = math.sqrt((d - 1) * (1 - 1 / depth) / (2 * BETA))
    found = minimiser(d, depth, generator)
    print(f"{depth:<6} {volumes:>28} {best:>12.6f}   {found[-1]:.6f} {found[0]:.6f}")
    image = ax.contourf(axis, axis, s, levels, extend="min", cmap="viridis")
    ax.contour(axis, axis, s, levels, colors="w", linewidths=0.3, linestyles="-")
    ax.set(title=plot.depth_label(depth), xlabel="$s_1$", ylabel="$s_2$")
    ax.set(xticks=(0, 1), yticks=(0, 1))
    free, least = axis**2 - s.diagonal() / BETA, best / math.sqrt(d - 1)
    color = plot.depth_color(depth)
    axes[4].plot(axis, free, color=color, ls="-", label=plot.depth_label(depth))
    axes[4].plot(least, np.interp(least, axis, free), "o", color=color)
    moved.plot([best, best], [found[0], found[-1]], "_", color=color, ms=9, mew=1.5)
    assert (s.diff(dim=0) > 0).all()
    # Where the energy is flat to rounding, the place is known to the root of it.
    assert_close(found, torch.full_like(found, best), condition=eps**-0.5)
figure.colorbar(
    image, ax=grid_axes, location="right", shrink=0.6, label="entropy S (less its constant)"
)
axes[4].plot([], [], "o", color="0.4", label="least")
axes[4].set(
    xlabel="$s_1 = s_2$", ylabel=r"free energy $|X|^2/2 - S/\beta$", xlim=(0, 1.5), ylim=(0, 3.0)
)
axes[4].legend(loc="upper center", ncols=2, columnspacing=0.8, handlelength=1.2)
span = np.array([0.95 * moved.get_xlim()[0], 1.02 * moved.get_xlim()[1]])
moved.plot(span, span, "k:", lw=0.8, label="equal")
moved.plot([], [], "_", color="0.4", ms=9, mew=1.5, label="largest, smallest found")
moved.set(
    xlabel="$s^*$ by the formula", ylabel="$s$ of the best matrix", title=f"{d} × {d}, minimised"
)
moved.set_ylim(None, moved.get_ylim()[1] + 0.3 * np.ptp(moved.get_ylim()))
moved.legend(loc="upper left")
run.save(figure)
