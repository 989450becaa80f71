"""
Equipartition at every depth
============================

Statement of Menon, arXiv 2411.09004, and Menon and Yu, arXiv 2509.09088, worked out: Langevin
dynamics of the layers under weight decay has the loss ``E = (N/2) sum s^{2/N}`` downstairs, the
entropy as a force, and the equilibrium ``exp(-beta (E - S / beta)) dvol``. In the coordinate
``rho = sqrt(N) s^{1/N}`` the loss is ``|rho|^2 / 2``: each degree of freedom has the mean energy
``1 / (2 beta)``. Without the entropy they are the d^2 of the matrix, at every depth; with it, those
of the balanced manifold, ``d^2 + (N-1) d (d-1) / 2``. The sampler is exact; bars are four standard
errors over the chains.
"""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import gallery, laws, plot

run = gallery.begin(__doc__)
F64 = torch.float64
D, DEPTHS, BETAS = 3, (1, 2, 3, 5), (0.5, 1.0, 2.0, 4.0)
CHAINS, DRAWS = (20, 40) if run.quick else (200, 300)


# %%
# The loss as a function of the singular values, and the energy per chain.
def ridge(depth):
    def value(x):
        return 0.5 * depth * torch.linalg.svdvals(x).pow(2 / depth).sum(-1)

    return dln.losses.from_callable(value)


generator = torch.Generator().manual_seed(9)


def mean_square(depth, beta, entropy):
    start = dln.Collapsed.random(
        (D, D), D, depth, scale=0.5, batch=(CHAINS,), generator=generator, dtype=F64
    )
    draws = dln.sample_gibbs(
        ridge(depth), start, beta=beta, entropy=entropy, draws=DRAWS, thin=2, burn_in=100,
        generator=generator,
    )  # fmt: skip
    rho = (depth * draws.singular_values.pow(2 / depth)).sum(-1).mean(0)
    return float(rho.mean()), float(rho.std()) / CHAINS**0.5


# %%
# Against the depth at one temperature, and against the temperature at one depth.
figure, (left, right) = run.figure(1, 2, aspect=0.75)
print("depth  beta  entropy  E |rho|^2   exact")
for entropy, mark, color in ((True, "o", "C0"), (False, "s", "C2")):
    name = "with entropy" if entropy else "without entropy"
    for ax, cases in ((left, [(n, 1.0) for n in DEPTHS]), (right, [(3, beta) for beta in BETAS])):
        where = DEPTHS if ax is left else BETAS
        exact = [laws.ridge_mean_square((D, D), D, n, beta=b, entropy=entropy) for n, b in cases]
        found = [mean_square(n, b, entropy) for n, b in cases]
        for (n, b), (value, error), law in zip(cases, found, exact, strict=True):
            print(f"{n:<6} {b:<5g} {entropy!s:<7} {value:7.3f} +- {error:.3f} {law:>7.3f}")
            assert abs(value - law) < 5 * error
        ax.plot(where, exact, "k:", label="exact" if entropy else None)
        values, errors = zip(*found, strict=True)
        bars = [4 * e for e in errors]
        ax.errorbar(where, values, bars, fmt=mark, color=color, capsize=3, label=name)
left.set(
    xlabel="depth N", ylabel=r"$E\,|\rho|^2$", title=r"$\beta = 1$", xticks=DEPTHS, ylim=(0, None)
)
right.set(
    xlabel=r"$\beta$",
    ylabel=r"$E\,|\rho|^2$",
    title=plot.depth_label(3),
    xscale="log",
    yscale="log",
)
right.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
right.set_yticks((3, 10, 30), ("3", "10", "30"))
right.minorticks_off()
left.legend(loc="upper left", title="mean ± 4 s.e.")
run.save(figure)
