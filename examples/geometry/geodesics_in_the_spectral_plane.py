"""
Geodesics in the plane of singular values, and curvature against depth
======================================================================

Statements of Menon, arXiv 2411.09004, and Cohen, Menon and Veraszto, arXiv 2210.12497, worked out
at every depth: between matrices with the same singular vectors, geodesics of depth N are straight
in ``s^{1/N}``: straight lines at depth 1, and straight in ``log s`` at infinite depth. If the
singular vectors turn on the way, the singular values leave these curves, most at depth 1, where
the path dips towards lower rank. The geometry is flat at depth 1 and curved above; for a single
row the metric is a cone around the origin, with curvature ``(N-1) / (N s^{2/N})`` across its rays.
"""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS = (1, 2, 5, math.inf)
COUNT = 17 if run.quick else 65


def turned(s, angle, other):
    def rotation(a):
        c, d = math.cos(a), math.sin(a)
        return torch.tensor([[c, -d], [d, c]], dtype=F64)

    return rotation(angle) @ torch.diag(torch.tensor(s, dtype=F64)) @ rotation(other).mT


# %%
# From the same two pairs of singular values: with the same singular vectors, and with vectors that
# turn by 0.9, one way on the left and the other on the right.
FIRST, SECOND = (3.0, 0.4), (1.2, 1.0)
t = torch.linspace(0, 1, COUNT, dtype=F64)
figure, (same, other, curved, square) = run.figure(1, 4, aspect=1.35)
lowest = []
print("depth  distance: same vectors  closed form   turned   lowest second singular value")
for depth in DEPTHS:
    style = {"color": plot.depth_color(depth), "label": plot.depth_label(depth)}
    ends = dln.EndToEnd.of(turned(FIRST, 0, 0), depth, normalized=True)
    near = dln.EndToEnd.of(turned(SECOND, 0, 0), depth, normalized=True)
    far = dln.EndToEnd.of(turned(SECOND, 0.9, -0.9), depth, normalized=True)
    s0, s1 = (torch.tensor(s, dtype=F64) for s in (FIRST, SECOND))
    if math.isinf(depth):
        exact, length = s0 ** (1 - t[:, None]) * s1 ** t[:, None], float((s0 / s1).log().norm())
    else:
        roots = (1 - t[:, None]) * s0 ** (1 / depth) + t[:, None] * s1 ** (1 / depth)
        exact = roots**depth
        length = depth * float((s0 ** (1 / depth) - s1 ** (1 / depth)).norm())
    for ax, end in ((same, near), (other, far)):
        s = dln.geodesic(ends, dln.logarithm(ends, end), t).singular_values
        ax.plot(s[:, 1], s[:, 0], ls="-", **style)
        if end is near:
            error = float((s - exact.sort(dim=-1, descending=True).values).abs().max())
            few = slice(None, None, COUNT // 8)
            ax.plot(exact[few, 1], exact[few, 0], "o", color=style["color"], ms=2.5)
    lowest.append(float(s[:, 1].min()))
    found = [float(dln.distance(ends, end)) for end in (near, far)]
    print(f"{depth:<6g} {found[0]:>22.6f} {length:>12.6f} {found[1]:>8.4f} {lowest[-1]:>20.3f}")
    assert error < 1e-8
    assert abs(found[0] / length - 1) < 1e-9
same.plot([], [], "o", color="0.4", ms=2.5, label="closed form")
for ax, title in ((same, "vectors fixed"), (other, "vectors turn")):
    for (top, bottom), mark, name in ((FIRST, "ks", "start"), (SECOND, "kD", "end")):
        ax.plot(bottom, top, mark, ms=4, label=name)
    ax.set(xlabel="$s_2$", ylabel="$s_1$", title=title, xlim=(0, 1.15), ylim=(0.9, 3.1))
figure.legend(*same.get_legend_handles_labels(), loc="outside lower center", ncols=7)

# %%
# Curvature against depth at matrices of norm 1: one row (a cone, in closed form), and the scalar
# curvature of square matrices in the metric over N.
grid = torch.linspace(1, 12, 12 if run.quick else 45, dtype=F64).tolist()
row = torch.tensor([[0.8, 0.6, 0.0]], dtype=F64)
across = torch.tensor([[-0.6, 0.8, 0.0]], dtype=F64), torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
cone = [float(dln.sectional_curvature(dln.EndToEnd.of(row, n), *across)) for n in grid]
law = [(n - 1) / n for n in grid]
curved.plot(grid, law, "k-", lw=0.8, label="$(N-1)/N$")
curved.plot(grid, cone, "ko", ms=2.5, label="computed")
for size, mark in ((2, "C2"), (3, "C1")):
    x = torch.diag(torch.tensor([0.8, 0.5, 0.3][:size], dtype=F64))
    x = x / torch.linalg.matrix_norm(x)
    scalar = [float(dln.scalar_curvature(dln.EndToEnd.of(x, n, normalized=True))) for n in grid]
    square.plot(grid, scalar, mark, ls="-", label=f"{size} × {size}")
    assert abs(scalar[0]) < 1e-9, "depth 1 is flat"
    assert max(map(abs, scalar[1:])) > 0.01
curved.set(ylabel="sectional curvature", title="one row")
square.set(ylabel="scalar curvature of g / N", title="square")
for ax in (curved, square):
    ax.set(xlabel="depth N", xlim=(1, 12), xticks=(1, 4, 8, 12), ylim=(0, None))
    ax.legend(loc="lower right" if ax is curved else "center right")
run.save(figure)
assert max(abs(a - b) for a, b in zip(cone, law, strict=True)) < 1e-9

# %%
# Where the vectors turn, shallow geodesics dip: the second singular value falls below both ends.
assert lowest == sorted(lowest)
assert lowest[0] < 0.6 * FIRST[1]
assert lowest[-1] > FIRST[1] - 1e-6
