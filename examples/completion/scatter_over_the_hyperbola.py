"""
Two thousand completions over a hyperbola
=========================================

Statement of Cohen, Menon and Veraszto, arXiv 2210.12497: of a 2 x 2 matrix only the diagonal is
known, with the product 0.85. All completions attain zero loss; those of rank 1 lie on the hyperbola
``w12 w21 = 0.85``. From small random starts the flow of every depth, infinity included, ends next
to the hyperbola, and most often at its corners ``w12 = w21 = +-sqrt(0.85)``: an implicit bias that
no term of the loss asks for. The spread along the hyperbola grows with the depth.
"""

from __future__ import annotations

import math
import time

import torch

import dln_geometry as dln
from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS, PRODUCT = (5, 10, 20, math.inf), 0.85
STARTS, SCALE = (200, 0.001) if run.quick else (2000, 0.001)
CORNER = math.sqrt(PRODUCT)

# %%
# All starts of a depth run as one batch, each with its own steps: the same Gaussian matrices at
# every depth.
generator = torch.Generator().manual_seed(21)
start = SCALE * torch.randn(STARTS, 2, 2, generator=generator, dtype=F64)
loss = dln.losses.Completion([0, 1], [0, 1], [1.0, PRODUCT], (2, 2))
ends, seconds = {}, {}
for depth in DEPTHS:
    begun = time.process_time()
    point = dln.EndToEnd.of(start, depth, normalized=True)
    path = dln.gradient_flow(loss, point, until={"loss": 1e-10}, rtol=1e-5)
    ends[depth], seconds[depth] = path.final.matrix, time.process_time() - begun


# %%
# The place along the hyperbola is the angle ``log |w12 / w21| / 2``; its spread is half the width
# that holds 90 % of the ends, with an error by the bootstrap.
def spread(x):
    place = (x[:, 0, 1] / x[:, 1, 0]).abs().log() / 2
    draws = place[torch.randint(STARTS, (200, STARTS), generator=generator)]
    width = draws.quantile(torch.tensor([0.05, 0.95], dtype=F64), dim=1).diff(dim=0)[0] / 2
    return float(width.mean()), float(width.std())


figure, axes = run.figure(2, 3, aspect=0.95)
w = torch.linspace(0.25, 4, 200, dtype=F64)
shares, ranks, spreads = {}, {}, {}
print("depth  CPU s  |w12| 5 %, 50 %, 95 %   median effective rank   spread")
for ax, depth in zip(axes.flat, DEPTHS, strict=False):
    x, color = ends[depth], plot.depth_color(depth)
    ranks[depth], spreads[depth] = dln.effective_rank(torch.linalg.svdvals(x)), spread(x)
    # Both branches in one: X and -X are the same up to the sign of the start.
    folded = x[:, [0, 1], [1, 0]] * x[:, 0, 1:].sign()
    ax.plot([0, 2], [0, 2], ":", color="0.6", lw=0.8, label="$w_{12} = w_{21}$")
    ax.plot(w, PRODUCT / w, "k-", lw=0.6, label="rank 1")
    ax.plot(*folded.T, ".", color="C2", ms=4, alpha=0.4, mew=0, label="ends of the flow")
    ax.set(title=plot.depth_label(depth), xlim=(0.3, 1.9), ylim=(0.3, 1.9), aspect="equal")
    ax.set(xlabel=r"$\pm w_{12}$", ylabel=r"$\pm w_{21}$")
    place = x[:, 0, 1].abs().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=F64)).tolist()
    print(f"{depth:<6g} {seconds[depth]:>5.1f}  {' '.join(f'{q:.2f}' for q in place)}", end="")
    print(f" {float(ranks[depth].median()):>22.4f} {spreads[depth][0]:>15.3f}")
figure.legend(
    *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=1.5
)
last, law = axes[1, 1], axes[1, 2]
for k, depth in enumerate(DEPTHS):
    color, (width, error) = plot.depth_color(depth), spreads[depth]
    last.errorbar(k, width, 2 * error, marker="o", color=color, capsize=3)
    excess = (ranks[depth] - 1).sort().values
    share = torch.linspace(0, 1, STARTS, dtype=F64)
    law.plot(excess, share, color=color, ls="-", label=plot.depth_label(depth))
last.set(xticks=range(4), xticklabels=[plot.depth_label(d, "") for d in DEPTHS], xlabel="depth")
last.set(
    ylabel="half width of 90 %, ± 2 s.e.",
    title=r"spread of $\frac{1}{2}\log|w_{12}/w_{21}|$",
    ylim=(0, None),
)
law.set(
    xscale="log",
    xlabel="effective rank - 1",
    ylabel="share of the ends",
    xlim=(1e-5, 1),
    title="low rank",
)
law.legend(loc="lower right")
run.save(figure)

# %%
# Rank 1, the corners, and a spread that grows with the depth.
for depth in DEPTHS:
    x = ends[depth]
    assert float(loss.value(x).max()) < 1e-9
    assert float(ranks[depth].median()) < 1.03
    assert abs(float(x[:, 0, 1].abs().median()) - CORNER) < 0.05
    assert seconds[depth] < 60
assert spreads[math.inf][0] > spreads[5][0] + 2 * (spreads[math.inf][1] + spreads[5][1])
