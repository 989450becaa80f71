"""
Weight decay and hidden noise lower the rank
============================================

Noise along the hidden bases alone (``kappa -> 0``) drives a balanced network to the minimum of the
free energy ``F = E - S/beta``. The entropy favours large and equal singular values, and under
weight decay, ``E = (N/2) sum s^{2/N}``, one expects equal ones at the minimum. That is so at small
depth only: where ``(N-1)(d/2) log(d/(d-1)) > log N`` one singular value is zero instead (left,
shaded), from depth 4 on at every size. Beyond it the others split into clusters (middle). Right:
the heat capacity of ``E = sum s^2/2 + s^4`` by Pfaffians, at ``kappa = 1/2`` (lines) and without
entropy (dashed). Equipartition gives D/(2N) where it is cold and D/(4N) where it is hot. D is d^2
without entropy, so that depth takes heat capacity away; hidden bases give it back.

Source of the measure: Menon, arXiv 2411.09004, and Menon and Yu, arXiv 2509.09088.
"""

from __future__ import annotations

import math

import numpy as np

import dln_geometry as dln
from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
SIZES = (3, 5, 6) if run.quick else (3, 4, 5, 6, 7, 8)
DEPTHS = (2, 3, 4, 6) if run.quick else (2, 3, 4, 5, 6, 7, 8)
BETAS = np.geomspace(1e-4, 1e5, 10 if run.quick else 28)

# %%
# Order parameters at the minimum of the free energy.
table = dln.thermodynamics.phase_diagram(
    sizes=SIZES, depths=DEPTHS, betas=1.0, integrals=False
).squeeze("beta")
lost = table["size"] - table["rank"]
print("size  zeros by depth", *DEPTHS)
for d in SIZES:
    print(f"{d:>4}               ", *lost.sel(size=d).values)
    for n in DEPTHS:
        expected = (n - 1) * d / 2 * math.log(d / (d - 1)) > math.log(n)
        assert bool(lost.sel(size=d, depth=n) == 1) == expected

figure, (left, middle, right) = run.figure(1, 3, aspect=1.05)
for ax, values, title in (
    (left, lost, "singular values at zero"),
    (middle, table["clusters"], "different singular values"),
):
    image = ax.pcolormesh(
        np.arange(len(DEPTHS) + 1), np.arange(len(SIZES) + 1), values, cmap="Blues", vmin=0, vmax=3
    )
    for i, d in enumerate(SIZES):
        for k, n in enumerate(DEPTHS):
            value = int(values.sel(size=d, depth=n))
            tone = "w" if value > 1 else "k"
            ax.text(k + 0.5, i + 0.5, value, ha="center", va="center", color=tone, fontsize=7)
    ax.set_xticks(np.arange(len(DEPTHS)) + 0.5, [str(n) for n in DEPTHS])
    ax.set_yticks(np.arange(len(SIZES)) + 0.5, [str(d) for d in SIZES])
    ax.set(xlabel="depth N", ylabel="size d", title=title)


# %%
# Heat capacity for each entry, between two equipartitions.
def energy(s):
    return (0.5 * s.square() + s.pow(4)).sum(-1)


size = 6 if run.quick else 12
for depth in (1, 2, 4):
    for entropy, line in ((True, "-"), (False, "--")):
        options = {"kappa": 0.5, "entropy": entropy}
        found = [
            dln.thermodynamics.partition_function(energy, (size, size), depth, beta=b, **options)
            for b in BETAS
        ]
        share = [f.heat_capacity / size**2 for f in found]
        label = plot.depth_label(depth) if entropy else None
        right.semilogx(BETAS, share, line, color=plot.depth_color(depth), label=label)
        dimension = size**2 + (depth - 1) * size * (size - 1) * entropy
        assert abs(share[0] - dimension / (4 * depth * size**2)) < 0.02
        assert abs(share[-1] - dimension / (2 * depth * size**2)) < 0.02
right.set(xlabel=r"$\beta$", ylabel="$C / d^2$", title=f"heat capacity, d = {size}", ylim=(0, 0.55))
right.legend(loc="upper left")
run.save(figure)
