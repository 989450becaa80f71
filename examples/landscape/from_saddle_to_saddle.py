"""
From saddle to saddle
=====================

Every critical point of ``E = |W_N ... W_1 - Y|^2 / 2`` learns a set S of the modes of Y and misses
the others (left, all sets of four modes). It is a strict saddle unless S holds the strongest modes:
then, at depth 3 and with all layers tightened, no direction of negative curvature is left, and the
saddle is not strict (circles; the global minimum is filled). The index, the number of negative
eigenvalues of the Hessian in all layers, counts the pairs of a missed mode and a weaker one that
is learned. A flow from a small start visits the saddles of the strongest modes one after the other
(middle), in the time that they take to leave. Right: at a minimiser of low rank the Hessian says
little; the volume of nearly optimal layers scales with the learning coefficient, far below half
the number of parameters.

Sources: Achour, Malgouyres, Gerchinovitz, arXiv 2107.13289; Jacot et al., arXiv 2106.15933; Aoyagi,
Considerations on the learning efficiency of multiple-layered neural networks (2024).
"""

from __future__ import annotations

from itertools import combinations

import torch

import dln_geometry as dln
from dln_geometry import gallery, landscape

run = gallery.begin(__doc__)
F64 = torch.float64
MODES, WIDTHS = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64), (4, 5, 5, 4)
loss = dln.losses.Quadratic(torch.diag(MODES))
figure, (left, middle, right) = run.figure(1, 3, aspect=1.05)

# %%
# All sets of modes: the kind and the index by the Hessian of 65 numbers, against the closed form.
print("modes learned    loss  index  kind")
marks = {"strict saddle": "C0x", "non-strict saddle": "C3o", "global minimiser": "C2o"}
for count in range(5):
    for modes in combinations(range(4), count):
        layers = landscape.critical_factors(loss, WIDTHS, modes, generator=1)
        found = landscape.classify(loss, layers)
        strongest = modes == tuple(range(count))
        best = "global minimiser" if count == 4 else "non-strict saddle"
        assert found.kind == (best if strongest else "strict saddle")
        assert found.index == landscape.saddle_index(MODES, WIDTHS, modes)
        missed = [float(s) for i, s in enumerate(MODES) if i not in modes]
        assert abs(found.value - sum(s * s for s in missed) / 2) < 1e-9
        print(f"{modes!s:<15} {found.value:>5.1f} {found.index:>6}  {found.kind}")
        filled = {} if found.kind == "global minimiser" else {"markerfacecolor": "none"}
        left.plot(found.value, found.index, marks[found.kind], ms=6, **filled)
for kind, mark in marks.items():
    left.plot([], [], mark, label=kind, **({} if kind[0] == "g" else {"markerfacecolor": "none"}))
left.set(xlabel="loss", ylabel="index", ylim=(-0.4, 6))
left.legend(loc="upper right", fontsize=6)

# %%
# A flow of depth 3 from a small random start, and the losses of the saddles that it visits. The
# start has the sign of the determinant of Y, which no flow of full rank changes.
start = dln.Collapsed.random((4, 4), 4, 3, scale=3e-5, generator=5, dtype=F64)
path = dln.gradient_flow(loss, start, t_end=110.0, save_at=400 if run.quick else 2000)
levels = [float(MODES[k:].square().sum() / 2) for k in range(5)]
middle.plot(path.t, path.loss, "C0")
for k, level in enumerate(levels):
    middle.axhline(level, color="k", ls=":", lw=0.7)
    below = {"y": level - 0.2, "va": "top"} if k == 4 else {"y": level + 0.15, "va": "bottom"}
    middle.text(108, s=f"{k} learned", ha="right", fontsize=6, **below)
    share = float(((path.loss - level).abs() < 0.02).double().mean())
    print(f"share of time within 0.02 of the loss with {k} modes: {share:.2f}")
    assert share > 0.02
middle.set(xlabel="time", ylabel="loss", xlim=(0, 110), ylim=(-1.3, 16))

# %%
# The learning coefficient of 3 x 3 targets of rank 1 over the hidden width, and by samples.
hidden = range(1, 7)
law = [landscape.learning_coefficient((3, h, 3), 1) for h in hidden]
right.plot(hidden, [3.0 * h for h in hidden], "k:", label="half the parameters")
right.plot(hidden, [c.value for c in law], "C0o-", ms=4, label="closed form")
beta, work = 1e4, {"steps": 300, "chains": 50} if run.quick else {"steps": 4000, "chains": 200}
for h in (1, 3) if run.quick else (1, 3, 5):
    layers = dln.random_balanced((3, h, 3), rank=1, generator=3, dtype=F64)
    found, error = landscape.estimate_learning_coefficient(layers, beta=beta, generator=4, **work)
    label = "by samples" if h == 1 else None
    right.errorbar(h, found, yerr=2 * error, fmt="C1s", ms=4, capsize=2, label=label)
    print(f"hidden width {h}: {law[h - 1].value} by formula, {found:.2f} +- {error:.2f} by samples")
    assert abs(found - law[h - 1].value) < 4 * error + 0.25
right.set(xlabel="hidden width", ylabel="learning coefficient", ylim=(0, 11))
right.legend(loc="lower right", fontsize=6)
run.save(figure)
