"""
SGD unbalances a network as predicted
=====================================

Stochastic gradient descent unbalances a deep linear network, exactly as predicted.

Gradient flow keeps the moments ``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T``. Every step of SGD changes
them, on any minibatch, by ``G+ = (1 - lr k)^2 G + lr^2 K``: weight decay k, moments K of the
gradients. Left: a balanced network is driven away by noise, and held by weight decay; the dots are
predicted from the gradients alone. Middle: the residual of that. Right: where gradients vary slowly
the moments are an integral over them, up to the learning rate as printed, or its square.

Sources: Tanaka, Kunin, Noether's learning dynamics, arXiv 2105.02716; Menon, arXiv 2411.09004.
"""

from __future__ import annotations

import torch
from torch import nn

import dln_geometry as dln
from dln_geometry import gallery
from dln_geometry.learning import Rule, bridge
from dln_geometry.testing import assert_order

F64 = torch.float64
RULES = {
    "SGD": Rule(0.1),
    "weight decay": Rule(0.1, weight_decay=0.05),
    "heavy ball": Rule(0.03, momentum=0.7, weight_decay=0.05),
}


def size(moments):
    return sum(float(g.square().sum()) for g in moments) ** 0.5


def train(rule, start, target, steps, generator):
    """Yield the layers' moments, the predicted ones and the moments K of what SGD saw."""
    layers = [nn.Parameter(w.clone()) for w in start]
    optimiser = torch.optim.SGD(layers, rule.lr, rule.momentum, weight_decay=rule.weight_decay)
    law = dln.moments(start)
    x, noise = torch.eye(target.shape[1], dtype=F64), 0.0
    for _ in range(steps):
        if generator is not None:
            x = torch.randn(4, target.shape[1], generator=generator, dtype=F64)
            noise = 0.5 * torch.randn(4, len(target), generator=generator, dtype=F64)
        optimiser.zero_grad()
        nn.functional.mse_loss(x @ dln.end_to_end(layers).mT, x @ target.mT + noise).backward()
        gradients = [w.grad.clone() for w in layers]
        optimiser.step()
        if rule.momentum:
            buffers = [optimiser.state[w]["momentum_buffer"] for w in layers]
            law = bridge.momentum_balance_step(law, buffers, rule)
        else:
            law = bridge.balance_step(law, gradients, rule)
        predicted = law.moments if rule.momentum else law
        yield dln.moments([w.detach() for w in layers]), predicted, dln.moments(gradients)


# %%
run = gallery.begin(__doc__)
generator, steps = torch.Generator().manual_seed(0), 300 if run.quick else 3000
options = {"generator": generator, "dtype": F64}
start = dln.random_balanced((6, 5, 4, 3), spectrum=[1.5, 0.8, 0.4], **options)
target = torch.randn(3, 6, **options)
figure, (left, middle, right) = run.figure(1, 3, aspect=1.15)
for k, (name, rule) in enumerate(RULES.items()):
    exact, law, kinetic = zip(*train(rule, start, target, steps, generator), strict=True)
    residual = [size(map(torch.sub, a, b)) for a, b in zip(exact, law, strict=True)]
    shown = range(0, steps, steps // 25)
    left.plot([size(g) for g in exact], color=f"C{k}", ls="-", label=name)
    label = "predicted" if k == 0 else None
    left.plot(shown, [size(law[n]) for n in shown], "k.", ms=2.5, zorder=3, label=label)
    middle.semilogy(range(1, steps + 1), residual, color=f"C{k}", ls="-", label=name, linewidth=0.8)
    print(f"{name:<13} moments {size(exact[-1]):.4f}, residual {max(residual):.1e}")
    assert max(residual) < 1e-12 * max(size(g) for g in exact)
    if name == "weight decay":
        mean = [torch.stack(k).mean(0) for k in zip(*kinetic[steps // 2 :], strict=True)]
        level = size(bridge.stationary_moments(mean, rule))
        left.axhline(level, color="0.6", linestyle="--", label="stationary mean", zorder=0)

# %%
# Slow gradients: the moments as an integral, first order as printed, second with the root.
lrs, errors = [0.08, 0.04, 0.02, 0.01], {False: [], True: []}
wide = (1.5 * start[0], *start[1:])
for lr in lrs:
    rule, t = Rule(lr, weight_decay=0.3), [lr * n for n in range(round(2 / lr) + 1)]
    exact, _, kinetic = zip(*train(rule, wide, target, len(t), None), strict=True)
    past = [torch.stack(k) for k in zip(*kinetic, strict=True)]
    for corrected, found in errors.items():
        path = bridge.overdamped_moments(dln.moments(wide), past, t, rule, corrected=corrected)
        found.append(size(p[-1] - g for p, g in zip(path, exact[-2], strict=True)))
for corrected, found in errors.items():
    right.loglog(
        lrs, found, f"C{2 * corrected}o-", label=f"{('printed', 'corrected')[corrected]} exponent"
    )
    assert_order(lrs, found, 2 if corrected else 1, tol=0.1)
left.set(title="leaving balance", xlabel="step", ylabel="norm of the moments |G|", ylim=(0, None))
middle.set(title="the exact law (as in a)", xlabel="step", ylabel="|G - predicted|")
right.set(title="slow gradients", xlabel="learning rate", ylabel="error of G")
right.set_xticks(lrs, map(str, lrs))
right.minorticks_off()
left.set_ylim(top=1.5 * left.get_ylim()[1])
left.legend(loc="upper left", ncols=2, columnspacing=0.8, handlelength=1.2)
right.set_ylim(None, 0.12)
right.legend(loc="upper left")
run.save(figure)
