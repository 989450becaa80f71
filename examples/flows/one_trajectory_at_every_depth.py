"""
One trajectory at depths 2 to 1000 and infinity
===============================================

Statement of Cohen, Menon and Veraszto, arXiv 2210.12497: divided by the depth, the metric of depth
N has a limit, and with it the gradient flow ``dX/dt = -A_{N,X}(E'(X))/N`` of end-to-end matrices.
The same matrix is sent towards the same target at depths 2 to 1000 and at infinity: the paths
converge to that of infinite depth, at a distance that falls like 1/N.
"""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry import gallery, plot
from dln_geometry.testing import assert_order

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS = (2, 3, 5, 10, 30, 100, 300, 1000)
T_END, COUNT = 6.0, 60 if run.quick else 300

# %%
# One start and one target, generic 3 x 3 matrices, at every depth.
generator = torch.Generator().manual_seed(11)
target = torch.randn(3, 3, generator=generator, dtype=F64)
target = 2.0 * target / torch.linalg.matrix_norm(target, 2)
start = 0.3 * torch.randn(3, 3, generator=generator, dtype=F64)
loss, t = dln.losses.Quadratic(target), torch.linspace(0, T_END, COUNT + 1, dtype=F64)
paths = {}
for depth in (*DEPTHS, math.inf):
    point = dln.EndToEnd.of(start, depth, normalized=True)
    paths[depth] = dln.gradient_flow(
        loss, point, t_end=T_END, save_at=t, rtol=1e-10, keep_points=True
    )

# %%
# Singular values, the plane of two of them, and the distance from infinite depth.
figure, (time, plane, far) = run.figure(1, 3, aspect=1.1)
limit = torch.stack([p.matrix for p in paths[math.inf].points])
distances = {}
for depth, path in paths.items():
    s, color = path.singular_values, plot.depth_color(depth)
    style = {"color": color, "ls": "-", "lw": 2.0 if math.isinf(depth) else 0.9}
    shown = depth in (2, 3, 5, 10, 100) or math.isinf(depth)
    if shown:
        time.plot(t, s[:, :2], **style)
        plane.plot(s[:, 1], s[:, 0], **style, label=plot.depth_label(depth))
    if depth < math.inf:
        x = torch.stack([p.matrix for p in path.points])
        distances[depth] = float(torch.linalg.matrix_norm(x - limit).max())
        far.loglog(depth, distances[depth], "o", color=color)
wanted, first = torch.linalg.svdvals(target), torch.linalg.svdvals(start)
plane.plot(first[1], first[0], "ks", ms=4, label="start")
plane.plot(wanted[1], wanted[0], "k*", ms=7, label="target")
time.plot([T_END] * 2, wanted[:2], "k*", ms=7, clip_on=False)
time.set(xlabel="time", ylabel="two largest singular values", xlim=(0, T_END), ylim=(0, None))
plane.set(xlabel="second singular value", ylabel="first singular value")
plane.legend(loc="lower right")
line = [distances[1000] * 1000 / n for n in DEPTHS]
far.loglog(DEPTHS, line, "k:", label="1/N")
far.set(xlabel="depth N", ylabel=r"largest distance from depth $\infty$")
far.legend(loc="upper right")
run.save(figure)

# %%
# The distance is of first order in 1/N.
for depth, distance in distances.items():
    print(f"depth {depth:<5} largest distance from infinite depth {distance:.2e}")
late = [n for n in DEPTHS if n >= 30]
assert_order([1 / n for n in late], [distances[n] for n in late], 1, tol=0.1)
