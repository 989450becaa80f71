"""
Saxe curves at every depth
==========================

Statement of Saxe, McClelland and Ganguli, arXiv 1312.6120, at depth 2, and of Menon, arXiv
2411.09004, at every depth: under the gradient flow of ``E = |X - Y|^2 / 2`` from a small balanced
start whose singular vectors are those of Y, each singular value moves alone,
``ds/dt = s^{2-2/N} (m - s)`` (velocity over N), where m is the singular value of Y. At depth 1 all
modes are learned at once. From depth 2 on each waits for a time of about 1/m, strong modes first,
and then rises in a sigmoid, the more suddenly the deeper the network is: it learns in stages.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq

import dln_geometry as dln
from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS, START = (1, 2, 3, math.inf), 0.02
MODES = torch.tensor([4.0, 2.0, 1.0], dtype=F64)


# %%
# The closed form gives the time at which a share of a mode is learned.
def time_to(share, mode, depth):
    def excess(t):
        return float(dln.exact.quadratic(START, mode, depth, t, normalized=True)) - share * mode

    return brentq(excess, 0.0, 1e4, xtol=1e-10)


# %%
# The flow of a whole 3 x 5 matrix in generic frames, at every depth, against the closed form.
generator = torch.Generator().manual_seed(4)
u = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64)).Q
v = torch.linalg.qr(torch.randn(5, 3, generator=generator, dtype=F64)).Q
target, start = (u * MODES) @ v.mT, START * u @ v.mT
loss, count = dln.losses.Quadratic(target), 25 if run.quick else 100
figure, axes = run.figure(1, 4, aspect=1.25, sharey=True)
ratios, rises = [], []
print("depth  half-times of m = 4, 2, 1      flow against closed form")
for ax, depth in zip(axes, DEPTHS, strict=True):
    halves = [time_to(0.5, m, depth) for m in MODES.tolist()]
    ratios.append(halves[2] / halves[0])
    rises.append((time_to(0.9, 4.0, depth) - time_to(0.1, 4.0, depth)) / halves[0])
    fine = torch.linspace(0, 1.6 * halves[2], 401, dtype=F64)
    curves = dln.exact.quadratic(START, MODES, depth, fine, normalized=True)
    t = torch.linspace(0, 1.6 * halves[2], count + 1, dtype=F64)
    point = dln.EndToEnd.of(start, depth, normalized=True)
    path = dln.gradient_flow(loss, point, t_end=float(t[-1]), save_at=t, rtol=1e-10)
    exact = dln.exact.quadratic(START, MODES, depth, t, normalized=True)
    error = float((path.singular_values - exact).abs().max())
    print(f"{depth:<6g} {'  '.join(f'{h:8.2f}' for h in halves)} {error:>14.1e}")
    assert error < 1e-6
    few = slice(None, None, count // 25)
    for k, mode in enumerate(MODES.tolist()):
        ax.plot(
            fine / halves[2],
            curves[:, k],
            color=f"C{k}",
            ls="-",
            label=f"closed form, m = {mode:g}",
        )
        ax.plot(t[few] / halves[2], path.singular_values[few, k], f"C{k}o", ms=2.2)
    ax.plot([], [], "o", color="0.4", ms=2.2, label="flow of the 3 × 5 matrix")
    ax.set(title=plot.depth_label(depth), xlabel=r"time / $t_{1/2}$ of m = 1", xlim=(0, 1.6))
axes[0].set(ylabel="singular values", ylim=(0, 4.3))
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=4)
run.save(figure)

# %%
# The weak mode waits as long as the strong one at depth 1, and about four times as long, the
# quotient of the targets, at large depth. The rise from 10 to 90 % takes a share of the waiting
# time that falls with the depth.
print("rise of the strong mode over its half-time: " + ", ".join(f"{r:.2f}" for r in rises))
assert abs(ratios[0] - 1) < 0.05
assert ratios == sorted(ratios)
assert abs(ratios[3] / 4 - 1) < 0.05
assert rises == sorted(rises, reverse=True)
assert rises[3] < 0.1 < 1 < rises[0]
