"""
Weight decay on factors is the Lasso
====================================

Weight decay on redundant factors is a sparse penalty: DCS against the Lasso.

A parameter that is written as a product ``u * v`` and trained with weight decay kappa on u and v is
trained with the penalty ``kappa |w|_1``; `dcs_` rewrites any parameter of any module so. One sees a
regression in 40 dimensions whose coefficients are scikit-learn's Lasso; the fraction of zeros; and
a matrix written as ``U V``, whose rank is the number of singular values above kappa.

Source: Ziyin, Symmetry induces structure and constraint of learning, arXiv 2309.16932.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import Lasso
from torch import nn

from dln_geometry import gallery, learning

F64 = torch.float64
KAPPAS = (0.0, 0.05, 0.2, 0.5)


def train(layer, loss, kappa):
    options = {"max_iter": 4000, "max_eval": 8000, "history_size": 60, "tolerance_grad": 1e-12}
    options |= {"tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS(layer.parameters(), **options)

    def closure():
        optimiser.zero_grad()
        value = loss(layer) + learning.dcs_penalty(layer, kappa)
        value.backward()
        return value

    optimiser.step(closure)
    return layer.weight.detach()


def linear(d_in, d_out, generator):
    layer = nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False, dtype=F64)
    nn.init.normal_(layer.weight, generator=generator)
    return layer


# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(17)
d, n = 40, 120
truth = 0.4 * torch.randn(d, generator=generator, dtype=F64)
x = torch.randn(n, d, generator=generator, dtype=F64)
y = x @ truth + 0.3 * torch.randn(n, generator=generator, dtype=F64)
target = 0.6 * torch.randn(10, 10, generator=generator, dtype=F64) / 10**0.5
spectrum = torch.linalg.svdvals(target)

# %%
# Train the factors, and solve the penalised problems, at each weight decay.
fine = torch.linspace(0.005, 0.7, 30 if run.quick else 80).tolist()
lassos = [Lasso(alpha=a, fit_intercept=False, tol=1e-10).fit(x, y).coef_ for a in fine]
path = torch.tensor(np.stack(lassos))
figure, axes = run.figure(1, 3, aspect=1.1)
axes[0].plot(fine, path, "C0", ls="-", linewidth=0.7)
grid = KAPPAS if run.quick else (*KAPPAS, 0.1, 0.3, 0.4, 0.6)
fractions, ranks, largest = {}, {}, 0.0
for kappa in sorted(grid):
    layer = learning.dcs_(linear(d, 1, generator), "weight")
    w = train(layer, lambda m: (m(x).squeeze(-1) - y).square().sum() / (2 * n), kappa)[0]
    fractions[kappa] = float((w.abs() < 1e-6).double().mean())
    if kappa > 0:
        peer = Lasso(alpha=kappa, fit_intercept=False, tol=1e-14, max_iter=100000).fit(x, y)
        largest = max(largest, float((w - torch.from_numpy(peer.coef_)).abs().max()))
    axes[0].plot([kappa] * d, w, "k.", markersize=3, zorder=3)
    layer = learning.dcs_(linear(10, 10, generator), "weight", groups="nuclear")
    w = train(layer, lambda m: (m.weight - target).square().sum() / 2, kappa)
    s = torch.linalg.svdvals(w)
    ranks[kappa] = int((s > 1e-6).sum())
    assert (s - (spectrum - kappa).clamp(min=0)).abs().max() < 1e-6
    assert ranks[kappa] == int((spectrum > kappa).sum())
    axes[2].plot([kappa] * 10, s, "k.", markersize=4, zorder=3)
for k in KAPPAS:
    print(f"kappa {k:<5g} fraction of zeros {fractions[k]:.2f}   rank {ranks[k]}")
print(f"largest difference from the Lasso: {largest:.1e}")
assert largest < 1e-6
assert fractions[0.0] == 0.0 < fractions[0.05] < fractions[0.2] < fractions[0.5]
axes[0].plot([], [], "C0", ls="-", label="scikit-learn's Lasso")
axes[0].plot([], [], "k.", label="trained on factors with weight decay")
axes[1].plot(fine, (path.abs() < 1e-6).double().mean(1), "C0", ls="-")
axes[1].plot(list(fractions), list(fractions.values()), "k.")
shade = torch.linspace(0, 0.7, 80, dtype=F64)
axes[2].plot(shade, (spectrum - shade.unsqueeze(-1)).clamp(min=0), "C2", ls="-", linewidth=0.8)
axes[2].plot([], [], "C2", ls="-", label="soft threshold")
names = ("coefficients $w = u v$", "fraction of zeros in $w$", "singular values of $U V$")
for ax, name in zip(axes, names, strict=True):
    ax.set(xlabel=r"weight decay $\kappa$", ylabel=name, xlim=(-0.01, 0.7))
figure.legend(loc="outside lower center", ncols=3)
run.save(figure)
