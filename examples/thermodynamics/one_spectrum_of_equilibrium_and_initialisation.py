"""
One spectrum of equilibrium and initialisation
==============================================

A product of N independent Gaussian layers is far from balanced. Langevin dynamics of a balanced
network under weight decay, with isotropic noise on the balanced manifold (``kappa = 1``), comes to
an equilibrium. In the limit of infinite width both have singular values of one law, that of Fuss
and Catalan. Left: singular values of products (bars), the law (lines) and the density to which the
mean-field flow has come (dots), in ``s^{1/N}``. Right: the way there from a quarter circle; the
mean of ``s^2`` comes to 1 at every depth.

Sources: for products N. Alexeev, F. Goetze, A. Tikhomirov, Lithuanian Math. J. 50 (2010); for the
measure Menon, Yu, arXiv 2509.09088.
"""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import gallery, laws, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS, SIZE, POINTS = (1, 2, 4), (200 if run.quick else 800), (100 if run.quick else 300)
generator = torch.Generator().manual_seed(3)


# %%
# Weight decay on the layers is the ridge on their product.
def ridge(depth):
    return lambda s: 0.5 * depth * (s ** (2 / depth)).sum(-1)


figure, (left, right) = run.figure(1, 2, aspect=0.75)
print("depth  mean distance of quantiles: product  mean-field flow")
for depth in DEPTHS:
    product = torch.eye(SIZE, dtype=F64)
    for _ in range(depth):
        product = torch.randn(SIZE, SIZE, generator=generator, dtype=F64) @ product / SIZE**0.5
    drawn = torch.linalg.svdvals(product).flip(0) ** (1 / depth)
    law = laws.fuss_catalan(depth).power(0.5 / depth)
    path = dln.mean_field_flow(
        laws.quarter_circle(1.0), depth, loss=ridge(depth), beta=1.0, t_end=8.0, points=POINTS,
        save_at=torch.linspace(0, 8, 121),
    )  # fmt: skip
    reached = path.singular_values[-1] ** (1 / depth)
    ranks = (torch.arange(SIZE, dtype=F64) + 0.5) / SIZE
    gap = float((drawn - law.quantile(ranks)).abs().mean())
    error = float(((reached - law.quantile(path.probabilities)).abs() * path.weights).sum())
    print(f"{depth:>5} {gap:>35.4f} {error:>16.1e}")
    assert gap < 3 / SIZE
    assert error < 1e-3
    color = plot.depth_color(depth)
    left.hist(drawn.numpy(), bins=30, density=True, color=color, alpha=0.25)
    x = torch.linspace(1e-3, law.high, 300, dtype=F64)
    left.plot(x, law.density(x), color=color, label=plot.depth_label(depth))
    # The states are sqrt(N) s^{1/N}.
    some = slice(2, -2, POINTS // 25)
    left.plot(reached[some], (path.density[-1] * depth**0.5)[some], "o", color=color, ms=2.5)
    right.plot(path.t, path.moment(2), color=color, label=plot.depth_label(depth))
    assert abs(float(path.moment(2)[-1]) - 1) < 2e-3
left.set(xlabel="$s^{1/N}$", ylabel="density", xlim=(0, None), ylim=(0, None))
right.set(xlabel="time", ylabel="mean of $s^2$", xlim=(0, 4), ylim=(0, None))
right.axhline(1.0, color="k", ls=":", lw=0.8)
left.legend(loc="upper right")
run.save(figure)
