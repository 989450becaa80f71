"""
Balancing a network without changing what it does
=================================================

Balancing an unbalanced network without changing what it does.

Layers ``W_p -> g_p W_p g_{p-1}^{-1}`` have the same product X for all hidden changes of basis g;
among them the balanced ones have the smallest ``sum |W_p|^2``, which is ``N sum s_i^{2/N}``. Weight
decay alone, kept on this fibre, balances: the moments ``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T`` decay
exactly like ``e^{-2t}``, whatever the network. The steepest descent of ``1/2 sum |G_p|^2`` (the
Kirwan-Ness flow) gets there too, at first faster, in the end at the rate of its slowest mode,
``16 s_min^{2/N} sin^2(pi/2N)``. `balance` jumps to the nearest balanced network in closed form.

Source: Lindsey, Menon, Regularization implies balancedness in the deep linear network,
arXiv 2511.01137.
"""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from dln_geometry import gallery
from dln_geometry.testing import assert_close

F64 = torch.float64


def norm(factors):
    return sum(w.square().sum() for w in factors)


def imbalance(factors):
    return norm(dln.moments(factors)).sqrt()


def distance(first, second):
    return norm([a - b for a, b in zip(first, second, strict=True)]).sqrt()


# %%
run = gallery.begin(__doc__)
depth, width, steps = 3, 4, (25 if run.quick else 100)
generator = torch.Generator().manual_seed(0)
sizes = torch.tensor([1.5, 0.5, 1.0], dtype=F64).view(depth, 1, 1)
start = tuple(sizes * torch.randn(depth, width, width, generator=generator, dtype=F64))
x, t = dln.end_to_end(start), torch.linspace(0.0, 5.0, steps + 1, dtype=F64)
s = torch.linalg.svdvals(x)
least = depth * (s ** (2 / depth)).sum()
rate = 16 * s[-1] ** (2 / depth) * math.sin(math.pi / (2 * depth)) ** 2

# %%
# Both flows, and what each leaves.
decaying = dln.balancing_flow(start, t)
falling = [start]
for _ in range(steps):
    falling.append(dln.kirwan_ness_flow(falling[-1], float(t[1]), rtol=1e-10).final)
ends = {
    "start": start,
    "balancing flow": dln.balancing_flow(start, math.inf),
    "Kirwan-Ness flow": falling[-1],
    "balance": dln.balance(start),
}
print(f"{'':<17} sum |W|^2 - least  moments  change of X  moved by")
for name, factors in ends.items():
    changed, moved = (dln.end_to_end(factors) - x).norm(), distance(factors, start)
    row = f"{norm(factors) - least:>17.1e} {imbalance(factors):>8.1e} {changed:>12.1e}"
    print(f"{name:<17} {row} {moved:>9.4f}")

figure, (left, right) = run.figure(1, 2, aspect=0.72)
for name, path in (("balancing flow", decaying), ("Kirwan-Ness flow", falling)):
    left.semilogy(t, torch.stack([imbalance(w) for w in path]), ls="-", label=name)
    right.plot(t, torch.stack([norm(w) for w in path]), ls="-", label=name)
left.semilogy(t, imbalance(start) * torch.exp(-2 * t), "k--", label="law $e^{-2t}$")
late = [imbalance(w) for w in falling[-2:]]
tail = late[1] * torch.exp(rate * (t[-1] - t))
left.semilogy(t, tail, "k:", label=f"slowest mode $e^{{-{rate:.2f}t}}$")
right.axhline(float(least), color="k", linestyle="--", label=r"least, $N \sum_i s_i^{2/N}$")
for ax, label in ((left, "norm of the moments"), (right, r"$\sum_p |W_p|^2$")):
    ax.set(xlabel="time", ylabel=label, xlim=(0, float(t[-1])))
    ax.legend()
run.save(figure)

# %%
# The product is kept, the moments decay by their law, and `balance` moves less than the flow.
for time, w in zip(t, decaying, strict=True):
    assert_close(dln.end_to_end(w), x, scale=norm(w) ** (depth / 2))
    for g, g0 in zip(dln.moments(w), dln.moments(start), strict=True):
        assert_close(g, torch.exp(-2 * time) * g0, scale=norm(w))
assert_close(norm(ends["balance"]), least)
assert distance(ends["balance"], start) < distance(ends["balancing flow"], start)
assert torch.stack([norm(w) for w in falling]).diff().max() < 0
# The rate is that of the linearised flow: off by what is left of the moments.
assert abs((late[0] / late[1]).log() / t[1] / rate - 1) < late[1]
