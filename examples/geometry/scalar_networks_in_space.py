"""
Scalar networks in space: fibre, balanced line, flows
=====================================================

Three scalar layers are a point of space, so that the geometry can be seen. Statements of Menon,
arXiv 2411.09004, and Lindsey and Menon, arXiv 2511.01137: the networks with a given product x
form a surface, the fibre; the balanced ones, ``|w1| = |w2| = |w3|``, form lines that cross every
fibre at a right angle in its points nearest to the origin; the balancing flow slides down the fibre
to such a point while the moments decay like ``e^{-2t}``; training moves along curves of constant
moments, and a balanced network stays on its line.
"""

from __future__ import annotations

import math

import numpy as np
import torch

import dln_geometry as dln
from dln_geometry import gallery
from dln_geometry.testing import assert_close

run = gallery.begin(__doc__)
F64 = torch.float64
X, TARGET, COUNT = 1.0, 4.0, 9 if run.quick else 81


def scalars(*w):
    return [torch.tensor([[value]], dtype=F64) for value in w]


def points(path):
    """Return a list of networks of scalars as an array (T, N)."""
    return torch.stack([torch.cat([w.flatten() for w in layers]) for layers in path]).numpy()


# %%
# The fibre ``w1 w2 w3 = 1`` with balancing flows on it, from six of its points; and training to the
# product 4 from the balanced point and from one that is not.
t = torch.linspace(0, 4, COUNT, dtype=F64)
starts = [(2.2, 0.4), (0.4, 2.2), (2.2, 2.2), (0.65, 0.65), (1.0, 2.3), (2.3, 1.0)]
balancing = []
for a, b in starts:
    layers = scalars(a, b, X / (a * b))
    path = dln.balancing_flow(layers, t)
    for time, now in zip(t, path, strict=True):
        for g, g0 in zip(dln.moments(now), dln.moments(layers), strict=True):
            assert_close(g, math.exp(-2 * time) * g0, scale=10.0)
    balancing.append(points(path))
    assert np.abs(balancing[-1].prod(1) - X).max() < 1e-12, "the product is kept"
    end = points([dln.balancing_flow(layers, math.inf)])[0]
    assert np.abs(end - X ** (1 / 3)).max() < 1e-6, "the end is balanced"
loss = dln.losses.Quadratic(torch.tensor([[TARGET]], dtype=F64))
training = {}
for name, w in (("balanced", (1.0, 1.0, 1.0)), ("not balanced", (1.9, 0.75, X / 1.425))):
    path = dln.gradient_flow(
        loss, scalars(*w), t_end=2.0, save_at=COUNT, rtol=1e-10, keep_points=True
    )
    training[name] = points(path.points)
    squares = training[name] ** 2
    moments = squares[:, 1:] - squares[:, :-1]
    assert np.abs(moments - moments[0]).max() < 1e-7, "training keeps the moments"
    assert abs(training[name][-1].prod() - TARGET) < 1e-3
assert np.ptp(training["balanced"], axis=1).max() < 1e-9, "the line is kept"

# %%
# The lines of constant moments cross the fibre at right angles: training and balancing are
# perpendicular, everywhere.
w = np.array(starts[0] + (X / (starts[0][0] * starts[0][1]),))
velocity = np.array([float(v) for v in dln.balancing_velocity(scalars(*w))])
assert abs(velocity @ (w.prod() / w)) < 1e-12 * np.linalg.norm(velocity) * np.linalg.norm(
    w.prod() / w
)

# %%
# The picture in space, and the same with two layers in the plane.
figure, axes = run.figure(1, 2, aspect=0.9, subplot_kw={"projection": "3d"})
axes[1].remove()
space, plane = axes[0], figure.add_subplot(1, 2, 2)
# Curves are drawn over the surface that they lie on, and not by the distance of their middles.
space.computed_zorder = False
grid = np.geomspace(0.35, 2.4, 40)
a, b = np.meshgrid(grid, grid)
c = X / (a * b)
c[c > 2.6] = np.nan
space.plot_surface(a, b, c, color="#BBCCEE", alpha=0.45, linewidth=0, rstride=1, cstride=1)
for k, path in enumerate(balancing):
    space.plot(*path.T, color="C0", ls="-", label=None if k else "balancing flow")
    space.plot(*path[:1].T, "o", color="C0", ms=3)
line = np.array([0.3, 2.0])
space.plot(line, line, line, color="k", ls="--", label="balanced line")
space.plot(*training["balanced"].T, color="C2", ls="-", lw=2.2, label="training")
space.plot(*training["not balanced"].T, color="C2", ls="-", lw=2.2)
space.set(
    xlabel="$w_1$", ylabel="$w_2$", zlabel="$w_3$", xlim=(0, 2.4), ylim=(0, 2.4), zlim=(0, 2.4)
)
space.view_init(24, 38)
space.tick_params(pad=-3)
for axis in (space.xaxis, space.yaxis, space.zaxis):
    axis.set_rotate_label(False)
    axis.labelpad = -4
space.set_box_aspect((1, 1, 1), zoom=1.0)
space.set_title("three layers, surface: product 1", pad=0)
space.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3)
u = np.linspace(-3, 3, 301)
for k, x in enumerate((0.25, 1.0, 2.25)):
    for sign in (-1, 1):
        branch = sign * np.geomspace(0.05, 3, 200)
        plane.plot(
            branch,
            x / branch,
            color="C0",
            ls="-",
            lw=0.9,
            label=None if k or sign < 0 else "fibres",
        )
for k, g in enumerate((0.5, 2.0, 4.5)):
    for sign in (-1, 1):
        label = None if k or sign < 0 else "constant moment"
        plane.plot(u, sign * np.sqrt(u**2 + g), color="C2", ls="-", lw=0.7, label=label)
        plane.plot(sign * np.sqrt(u**2 + g), u, color="C2", ls="-", lw=0.7)
plane.plot(u, u, "k--", label="balanced")
plane.plot(u, -u, "k--")
plane.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", xlabel="$w_1$", ylabel="$w_2$")
plane.set_title("two layers")
plane.set_title("b", loc="left", fontweight="bold")
plane.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
run.save(figure)
