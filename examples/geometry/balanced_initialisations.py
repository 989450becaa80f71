"""
Balanced initialisations at a thousand layers
=============================================

Balanced initialisations: what they are, and what depth does to them.

A network is balanced if neighbouring layers fit, ``W_{p+1}^T W_{p+1} = W_p W_p^T``. The table
shows that its layers then share their singular values, the roots ``s^{1/N}`` of those of
``X = W_N ... W_1``, in every gauge, for every rank and width; Gaussian layers do not fit. The
figure multiplies a thousand layers: balanced ones go straight to the X that was asked for, with
singular values ``s^{p/N}`` on the way; those of Gaussian layers fan out like ``exp(l_i p)``.

Sources: Menon, arXiv 2411.09004, for the balanced manifold and its dimension; Newman, The
distribution of Lyapunov exponents, Comm. Math. Phys. 103 (1986), for the exponents l_i.
"""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import gallery
from dln_geometry.testing import assert_close, assert_mean

F64 = torch.float64


def partial_spectra(factors):
    """Return the singular values of W_p ... W_1 for every p."""
    product, rows = torch.eye(factors[0].shape[1], dtype=F64), []
    for w in factors:
        product = w @ product
        rows.append(torch.linalg.svdvals(product))
    return torch.stack(rows)


# %%
run = gallery.begin(__doc__)
depth, width = (200 if run.quick else 1000), 8
generator = torch.Generator().manual_seed(1)
haar = {"gauge": "haar", "generator": generator}
gaussian = torch.randn(depth, width, width, generator=generator, dtype=F64) / width**0.5
x = gaussian[0]
point = dln.EndToEnd.of(x, 4)
networks = {
    "canonical": dln.balanced_factors(point),
    "Haar gauge": dln.balanced_factors(point, **haar),
    "rank 3": dln.balanced_factors(dln.EndToEnd.of(x, 4, rank=3), **haar),
    "wide": dln.balanced_factors(point, widths=(8, 30, 20, 40, 8), **haar),
    "Gaussian": tuple(gaussian[:4]),
}
print("network     largest moment  dimension  largest singular values of W_1 | W_4")
for name, factors in networks.items():
    spectra = [torch.linalg.svdvals(w) for w in factors]
    worst = max(float(g.abs().max()) for g in dln.moments(factors))
    shown = " | ".join(" ".join(f"{s:.3f}" for s in spectra[p][:3]) for p in (0, 3))
    size, rank = "-", 3 if name == "rank 3" else width
    if dln.is_balanced(factors):
        size = dln.balanced_dimension([width, *(w.shape[0] for w in factors)], rank)
        frames = dln.horizontal_frame(factors)[0], dln.vertical_frame(factors)[0]
        assert size == sum(len(frame) for frame in frames)
        for s in spectra:
            assert_close(s[:rank], point.s[:rank] ** (1 / 4))
    print(f"{name:<11} {worst:>14.1e}  {size:>9}  {shown}")

# %%
# A thousand layers, multiplied one by one.
s, p = torch.logspace(0.5, -2.0, width, dtype=F64), torch.arange(1, depth + 1, dtype=F64)
deep = dln.random_balanced((width,) * (depth + 1), spectrum=s, generator=generator, dtype=F64)
balanced = partial_spectra(deep)
half = torch.arange(width, 0, -1, dtype=F64) / 2
exponents = 0.5 * (torch.digamma(half) - half[0].log())
laws, wild = torch.exp(exponents * p.unsqueeze(-1)), partial_spectra(gaussian)
# The others are lost in the rounding of the product.
shown = laws > 1e-12 * laws[:, :1]
figure, (left, right) = run.figure(1, 2, aspect=0.72)
lines = left.semilogy(p, balanced, "C0", ls="-")
left.legend(lines[:1], ["computed, $s^{p/N}$"], loc="lower left")
noisy = right.semilogy(p, wild.where(shown, torch.nan), "C2", ls="-", linewidth=1.0)
lines = right.semilogy(p, laws.where(shown, torch.nan), "k--", linewidth=0.8)
right.legend([noisy[0], lines[0]], ["computed", r"law $\exp(l_i\, p)$"], loc="upper right")
for ax, title in (
    (left, f"balanced, depth {depth}, spectrum given"),
    (right, "Gaussian layers"),
):
    ax.set(xlabel="layers multiplied, $p$", xlim=(0, depth), title=title)
    ax.set_ylabel(r"singular values of $W_p \cdots W_1$")
run.save(figure)

# %%
# Products of balanced layers are powers of the spectrum, up to rounding; log-determinants of
# Gaussian layers have the mean that the exponents predict, within four standard errors.
assert_close(balanced, s ** (p / depth).unsqueeze(-1), ops=depth)
assert_mean(torch.linalg.slogdet(gaussian).logabsdet, exponents.sum())
