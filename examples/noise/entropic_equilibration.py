"""
Gauge noise drives a spectrum to equilibrium
============================================

Gauge noise alone drives a spectrum to equilibrium.

Let noise act on the layers of a balanced network in the directions that leave the product
X = W_N ... W_1 alone: along the orbits ``O_X``. X moves nevertheless, and without any randomness:
curved orbits drift along their mean curvature, and what is seen below is the gradient flow of the
free energy ``F = E - S/beta``, S the logarithm of the orbit's volume. With ``E = |X|^2/2`` it makes
all singular values equal, ``s*^2 = (d-1)(N-1)/(2 beta N)``; at depth 2, from equal values,
``s(t) = s* tanh(2 s* t + c)``. Simulated in steps dt, the noise leaves a spread of about sqrt(dt)
(shaded), which keeps apart the singular values that the flow makes equal.

Sources: Menon, The geometry of the deep linear network, arXiv 2411.09004; Menon, Yu, An entropy
formula for the deep linear network, arXiv 2509.09088; Menon, Stromme, Vacher, Langevin dynamics
with projected noise, arXiv 2602.12257.
"""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry import gallery

F64 = torch.float64

# %%
run = gallery.begin(__doc__)
d, beta, t_end = 4, 1.5, 4.0
chains, dt = (20, 0.04) if run.quick else (100, 0.004)
generator = torch.Generator().manual_seed(0)
loss = dln.losses.Quadratic(torch.zeros(d, d, dtype=F64))
t = torch.linspace(0.0, t_end, 101, dtype=F64)

figure, (left, right) = run.figure(1, 2, sharey=True, aspect=0.72)
end = math.sqrt((d - 1) / (4 * beta))
for s0 in (0.02, 0.2, 0.4, 0.6):
    start = dln.Collapsed.random((d, d), d, 2, scale=s0, generator=generator, dtype=F64)
    path = dln.free_energy_flow(loss, start, beta=beta, t_end=t_end, save_at=t)
    exact = end * torch.tanh(2 * end * t + math.atanh(s0 / end))
    left.plot(
        t, path.singular_values[:, 0], color="C0", ls="-", label="flow of F" if s0 == 0.02 else None
    )
    left.plot(t, exact, "k:", label=r"$s^* \tanh(2 s^* t + c)$" if s0 == 0.02 else None)
    assert float((path.singular_values - exact.unsqueeze(-1)).abs().max()) < 1e-6
left.set_title(f"depth 2, {d} equal singular values")

# %%
# Depth 3: noise on the layers in the directions that leave X alone, against the flow of F.
depth = 3
end3 = math.sqrt((d - 1) * (depth - 1) / (2 * beta * depth))
spectrum = [2.0, 1.0, 0.3, 0.05]
layers = dln.random_balanced((d,) * 4, spectrum=spectrum, generator=generator, dtype=F64)
options = {"beta": beta, "kappa": 0.0, "t_end": t_end, "save_at": t}
flow = dln.langevin(loss, dln.Collapsed.of(layers), **options)
many = [w.expand(chains, d, d).clone() for w in layers]
noisy = dln.langevin(loss, many, dt=dt, generator=generator, upstairs=True, **options)
mean, spread = noisy.singular_values.mean(1), noisy.singular_values.std(1)
for k in range(d):
    low, high = mean[:, k] - spread[:, k], mean[:, k] + spread[:, k]
    label = "gauge noise, mean ± s.d." if k == 0 else None
    right.fill_between(t, low, high, color=f"C{k}", alpha=0.3, linewidth=0, label=label)
    right.plot(t, flow.singular_values[:, k], color=f"C{k}", ls="-")
right.plot([], [], color="0.3", ls="-", label="flow of F")
right.set_title(f"depth {depth}, dt = {dt:g}, {chains} chains")
for ax, level in ((left, end), (right, end3)):
    ax.axhline(level, color="0.6", linestyle="--", label="$s^*$", zorder=0)
    ax.set(xlabel="time", ylabel="singular values", xlim=(0, t_end), ylim=(0, 2.05))
    ax.legend()
run.save(figure)

# %%
# The noise leaves no more than the root of its step.
error = (mean - flow.singular_values).abs().max()
reached = ", ".join(f"{s:.4f}" for s in flow.singular_values[-1])
print(f"s* at depth 2: {end:.4f}, at depth 3: {end3:.4f}; reached {reached}")
print(f"noise upstairs against the flow: {error:.3f}, spread {spread.max():.3f} at dt = {dt:g}")
# What is random about X vanishes with the step, like its root; equal values split by that much.
assert max(error, spread.max()) < math.sqrt(dt)
assert float((flow.singular_values[-1] - end3).abs().max()) < 2e-2
assert float(flow.loss.diff().max()) < 0
