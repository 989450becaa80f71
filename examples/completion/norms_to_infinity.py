"""
Norms that grow to infinity while the rank falls
================================================

Statement of Razin and Cohen, Implicit regularization in deep learning may not be explainable by
norms, arXiv 2005.06398: known are ``w12 = w21 = 1`` and ``w22 = 0``; ``w11`` is not. If the
determinant of the start is positive it stays so, and since
``det X = w11 w22 - w12 w21``, the entry w11 must grow without bound as the loss falls,
``|w11| >= (1 - e)^2 / e`` with ``e = sqrt(2 E)``: every norm goes to infinity, and the effective
rank to 1. The flow prefers low rank to small norms. With a negative determinant, w11
stays where it happens to be. (At depth 2 the determinant falls below all roundings within a time
of 100.)
"""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import gallery

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS, STARTS = (3, 4), 12 if run.quick else 40
T_END = 100.0 if run.quick else 1000.0

# %%
# Gaussian starts; for the other sign of the determinant two columns are exchanged.
generator = torch.Generator().manual_seed(12)
x = 0.1 * torch.randn(STARTS, 2, 2, generator=generator, dtype=F64)
positive = torch.where(torch.linalg.det(x)[:, None, None] > 0, x, x.flip(-1))
loss = dln.losses.Completion([0, 1, 1], [1, 0, 1], [1.0, 1.0, 0.0], (2, 2))


figure, (entry, rank) = run.figure(1, 2, aspect=0.8)
for depth in DEPTHS:
    for sign, start in (("> 0", positive), ("< 0", positive.flip(-1))):
        t = torch.cat([torch.zeros(1, dtype=F64), torch.logspace(-4, 0, 160, dtype=F64) * T_END])
        path = dln.gradient_flow(
            loss,
            dln.EndToEnd.of(start, depth),
            t_end=T_END,
            save_at=t,
            rtol=1e-6,
            keep_points=True,
        )
        energy = path.loss
        w11 = torch.stack([p.matrix[:, 0, 0] for p in path.points]).abs()
        effective = dln.effective_rank(path.singular_values)
        style = {"color": "C0" if sign == "> 0" else "C2", "ls": "-" if depth == 3 else "--"}
        few = slice(None, 12)
        entry.loglog(energy[:, few], w11[:, few], **style, lw=0.7, alpha=0.7)
        rank.semilogx(energy[:, few], effective[:, few], **style, lw=0.7, alpha=0.7)
        for ax in (entry, rank):
            ax.plot([], [], **style, label=f"depth {depth}, det {sign}")
        print(f"depth {depth}, det {sign}: loss {float(energy[-1].max()):.1e}, |w11| ", end="")
        print(
            f"{float(w11[-1].min()):.2f} to {float(w11[-1].max()):.2f}, effective rank at most ",
            end="",
        )
        print(f"{float(effective[-1].max()):.3f}")
        if sign == "> 0":
            small = (2 * energy).sqrt()
            bound = torch.where(small < 1, (1 - small).square() / small, 0.0)
            assert (w11 >= bound * (1 - 1e-6)).all(), "the theorem, at every time of every start"
            assert (w11[-1] > 8).all()
            assert (effective[-1] < 1.15).all()
            assert (w11[-1] > w11[len(t) // 2]).all()
        else:
            assert float(w11[-1].median()) < 5

# %%
# The bound of the theorem, against the loss; training goes from left to right.
small = torch.logspace(-1.4 if run.quick else -1.9, -0.3, 100, dtype=F64)
entry.plot(small**2 / 2, (1 - small) ** 2 / small, "k:", lw=1.5, label="lower bound, det > 0")
entry.set(xlabel="loss", ylabel="$|w_{11}|$, the entry that is not known", ylim=(1e-2, None))
rank.set(xlabel="loss", ylabel="effective rank", ylim=(0.98, 2.02))
for ax in (entry, rank):
    ax.set_xlim(1.5, 1e-3 if run.quick else 1e-4)
figure.legend(*entry.get_legend_handles_labels(), loc="outside lower center", ncols=5)
run.save(figure)
