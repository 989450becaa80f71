"""
Evidence over depth and width
=============================

Bayesian regression with a linear network of L hidden layers of width d, from P samples without
noise. The evidence is a Meijer G function at every depth and width. Left, with a little noise:
depth pays where the prior's scale does not fit the data. Whether they need a w larger (red) or
smaller (blue) than the prior expects, some depth explains them better; where it fits (grey), none
does. Crosses are means over samples of the prior. Right: the data rescale the kernel, ``E[S | y]``
over its value at infinite width, by a function of ``P L / d`` alone when P and d are large: 4 to 64
hidden layers fall on the curve ``(1 - g) u = r``, ``u = exp(-g P L/d)``.

Sources: Hanin and Zlokapa, arXiv 2212.14457, for the closed form and ``P L / d``; Li and
Sompolinsky, arXiv 2012.04030, for the scale.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq

import dln_geometry as dln
from dln_geometry import gallery

run = gallery.begin(__doc__)
F64 = torch.float64
regression = dln.thermodynamics.bayesian_regression
generator = torch.Generator().manual_seed(2)
figure, (left, right) = run.figure(1, 2, aspect=0.75)

# %%
# Evidence over depth, for outputs of three sizes; by thousands of networks at two of the depths.
inputs, width, noise = torch.eye(4, 6, dtype=F64) * 6**0.5, 8, 0.1
shape = torch.tensor([1.0, -0.5, 0.8, 1.5], dtype=F64)
depths, draws = ((1, 4, 9), 5000) if run.quick else (range(1, 25), 20_000)
print("size  L  log-evidence  by samples")
for size, color in ((2.0, "C2"), (0.3, "C0"), (1.0, "0.5")):
    outputs = size * shape / shape.square().mean().sqrt()
    values = []
    for hidden in depths:
        widths = (6, *[width] * hidden, 1)
        found = regression(inputs, outputs, widths, noise=noise)
        values.append(found.log_evidence)
        if hidden not in (1, 4):
            continue
        # Given the layers above the first, w is Gaussian; each of them scales its variance.
        layers = torch.randn(draws, hidden, width, generator=generator, dtype=F64)
        scale = layers.square().mean(-1).prod(-1)
        variance = scale + noise**2
        log_weights = -0.5 * (
            outputs.square().sum() / variance + 4 * (2 * math.pi * variance).log()
        )
        weights = (log_weights - log_weights.max()).exp()
        drawn = float(weights.mean().log() + log_weights.max())
        error = float(weights.std() / weights.mean() / draws**0.5)
        print(f"{size:<5} {hidden} {found.log_evidence:>12.3f} {drawn:>10.3f} +- {error:.3f}")
        assert abs(drawn - found.log_evidence) < 4 * error
        left.plot(hidden, drawn - values[0], "kx", ms=5, zorder=3)
    left.plot(depths, torch.tensor(values) - values[0], color=color, label=f"size {size:g}")
left.set(
    xlabel="hidden layers L", ylabel="log-evidence, from L = 1", title="outputs of three sizes"
)
left.legend(loc="lower left")


# %%
# The scale of the kernel over P L / d.
def limit(x, size):
    """Return u at P L / d = x."""
    g = brentq(lambda g: (1 - g) * math.exp(-g * x) - size**2, -50.0, 1.0)
    return math.exp(-g * x)


samples, wide = (40, 800) if run.quick else (100, 4000)
for size, color in ((1.6, "C2"), (0.5, "C0")):
    for hidden, mark in ((4, "s"), (16, "^"), (64, "v")):
        for d in (wide // 2, wide, 2 * wide):
            x = samples * hidden / d
            if not 0.05 < x < 4:
                continue
            eye = torch.eye(samples, samples + 1, dtype=F64) * (samples + 1) ** 0.5
            outputs = torch.full((samples,), size, dtype=F64)
            found = regression(eye, outputs, (samples + 1, *[d] * hidden, 1))
            assert abs(found.scale / limit(x, size) - 1) < 0.1
            label = f"{hidden} hidden" if color == "C2" and d == wide else None
            right.plot(x, found.scale, mark, color=color, ms=4, label=label)
    grid = torch.linspace(0.01, 4, 60, dtype=F64).tolist()
    right.plot(grid, [limit(x, size) for x in grid], color=color, label=f"limit, size {size}")
right.set(xlabel="$P L / d$", ylabel="scale of the kernel", yscale="log", xlim=(0, 4))
right.legend(fontsize=6)
run.save(figure)
