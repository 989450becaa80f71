"""
From lazy to rich: lambda-balanced networks
===========================================

Statement of Domine et al., From lazy to rich, arXiv 2409.14623: two layers whose moment is a
multiple of the identity, ``W_2^T W_2 - W_1 W_1^T = lambda I``, keep it, and lambda decides how they
learn. At lambda = 0 (balanced) the neural tangent kernel is made on the way and strong modes are
learned first; at large ``|lambda|`` it hardly moves and all modes decay at one rate, as in a linear
model. In Menon's geometry (arXiv 2411.09004) this is the leaf of the moment lambda I, on which
``ds/dt = -2 sqrt(s^2 + lambda^2/4) (s - m)`` for a quadratic loss with target m.
"""

from __future__ import annotations

import torch
from scipy.integrate import quad

import dln_geometry as dln
from dln_geometry import gallery
from dln_geometry.testing import assert_close

run = gallery.begin(__doc__)
F64 = torch.float64
MODES, START = torch.tensor([4.0, 2.0, 1.0], dtype=F64), 0.02
SIZE, SEEDS = len(MODES), 4 if run.quick else 16
LAMBDAS = torch.logspace(-2, 1.5, 8 if run.quick else 15, dtype=F64)


# %%
# Layers with given product and moment: the singular values p of W_2 and q of W_1 have the product
# s, and ``p^2 - q^2 = lambda``.
def haar(generator, *batch):
    return torch.linalg.qr(torch.randn(*batch, SIZE, SIZE, generator=generator, dtype=F64)).Q


def layers(x, moment, generator):
    u, s, vh = torch.linalg.svd(x)
    p = ((moment + (moment**2 + 4 * s**2).sqrt()) / 2).sqrt()
    hidden = haar(generator, *x.shape[:-2])
    return hidden @ ((s / p)[..., None] * vh), (u * p[..., None, :]) @ hidden.mT


def half_time(mode, moment):
    """Return the time to half of the target by quadrature of the law of one mode."""

    def slowness(s):
        return 1 / (2 * (s**2 + moment**2 / 4) ** 0.5 * (mode - s))

    return quad(slowness, START, mode / 2, limit=200, epsabs=1e-11)[0]


# %%
# The modes of a balanced network, and of one far from balance, from an aligned start.
generator = torch.Generator().manual_seed(3)
u, v = haar(generator), haar(generator)
loss = dln.losses.Quadratic((u * MODES) @ v.mT)
figure, axes = run.figure(2, 2, aspect=0.7)
for ax, moment in zip(axes[0], (0.0, 10.0), strict=True):
    halves = [half_time(m, moment) for m in MODES.tolist()]
    t = torch.linspace(0, 1.8 * max(halves), 121, dtype=F64)
    path = dln.gradient_flow(
        loss, layers(START * u @ v.mT, torch.tensor(moment, dtype=F64), generator),
        t_end=float(t[-1]), save_at=t, rtol=1e-10,
    )  # fmt: skip
    for k, mode in enumerate(MODES.tolist()):
        s = path.singular_values[:, k]
        ax.plot(t, s / mode, color=f"C{k}", ls="-", label=f"m = {mode:g}")
        ax.plot(halves[k], 0.5, f"C{k}o")
        at = path.at(halves[k]).singular_values[k]
        assert abs(at / mode - 0.5) < 1e-3, "the law of one mode"
    g = dln.moments(path.final)[0]
    assert_close(g, moment * torch.eye(SIZE, dtype=F64), scale=10.0, ops=1e6)
    ax.plot([], [], "o", color="0.4", label="half, by quadrature of the law")
    ax.set(title=rf"$\lambda$ = {moment:g}", xlabel="time", xlim=(0, float(t[-1])))
    ax.set_ylabel("singular value / target m")
axes[0, 1].legend(loc="lower right")


# %%
# The tangent kernel ``G -> W_2 W_2^T G + G W_1^T W_1``: how much of it was made by learning, for
# random small starts.
def kernel(first, second):
    eye = torch.eye(SIZE, dtype=F64)
    left, right = second @ second.mT, first.mT @ first
    return torch.einsum("...ij,kl->...ikjl", left, eye) + torch.einsum(
        "ij,...kl->...ikjl", eye, right
    )


moved, ratios = [], []
for moment in LAMBDAS:
    x = START * torch.randn(SEEDS, SIZE, SIZE, generator=generator, dtype=F64)
    start = layers(x, moment, generator)
    path = dln.gradient_flow(loss, start, until={"loss": 1e-6}, rtol=1e-6)
    before, after = (kernel(*w).flatten(1) for w in (start, path.final))
    moved.append((after - before).norm(dim=1) / after.norm(dim=1))
    ratios.append(half_time(1.0, float(moment)) / half_time(4.0, float(moment)))
moved = torch.stack(moved)
mean, error = moved.mean(1), moved.std(1) / SEEDS**0.5
axes[1, 0].errorbar(LAMBDAS, mean, error, marker="o", ls="-", color="C0", capsize=2)
axes[1, 0].set(
    ylabel="change / kernel at the end",
    ylim=(0, 1.05),
    title=f"tangent kernel, mean and s.e. of {SEEDS}",
)
axes[1, 1].plot(LAMBDAS, ratios, "C2o-")
axes[1, 1].axhline(1, color="0.5", ls=":", lw=0.8)
axes[1, 1].text(
    0.02,
    1.04,
    "all modes at once",
    fontsize=7,
    color="0.3",
    transform=axes[1, 1].get_yaxis_transform(),
)
axes[1, 1].set(ylabel="half-time, m = 1 over m = 4", title="order of the modes", ylim=(0.8, None))
for ax in axes[1]:
    ax.set(xscale="log", xlabel=r"$\lambda$ (rich $\to$ lazy)")
run.save(figure)

# %%
# Rich at one end, lazy at the other.
print(f"change of the kernel: {mean[0]:.3f} at lambda = {LAMBDAS[0]:.2g}, ", end="")
print(f"{mean[-1]:.3f} at lambda = {LAMBDAS[-1]:.2g} (means over {SEEDS} starts)")
assert mean[0] > 0.9
assert mean[-1] < 0.1
assert (mean.diff() < 2 * (error[1:] + error[:-1])).all()
assert ratios[0] > 2.5
assert ratios[-1] < 1.1
