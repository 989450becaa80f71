"""
Normalised layers learn by RMSProp
==================================

A network with batch normalisation learns by RMSProp, whatever its optimiser is called.

Of a row of weights before batch normalisation only the direction counts. Under SGD with momentum
and weight decay its norm is no parameter but a memory: the fourth power is a moving average of the
squared gradient at unit norm. A network of 42 rows learns scikit-learn's digits by SGD, and by the
RMSProp of `as_rmsprop`: with corrected constants, loss and norms agree up to a few per cent, with
printed ones norms are far off. In the end, rows turn by the angle that the rule dictates.

Source: Tanaka & Kunin, Noether's learning dynamics, arXiv 2105.02716.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dln_geometry import gallery
from dln_geometry import learning as dl

BATCH = 256

# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(12)
x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
with torch.random.fork_rng():
    model = nn.Sequential(
        nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32, affine=False, eps=0), nn.ReLU(),
        nn.Linear(32, 10, bias=False), nn.BatchNorm1d(10, affine=False, eps=0),
    ).double()  # fmt: skip
for p in model.parameters():
    nn.init.normal_(p, std=0.05, generator=generator)
loss, params = dl.functionalize(model, functional.cross_entropy, (x, y))
rule = dl.Rule(lr=0.05, momentum=0.5, weight_decay=0.05)
laws = {name: dl.DiscreteLaw(dl.Scale(name, axis=0), rule) for name in params}
charges = {name: law.observe(params, loss=loss) for name, law in laws.items()}
runs = {"printed": dl.as_rmsprop(rule, corrected=False), "corrected": dl.as_rmsprop(rule)}
unit = {name: w / w.norm(dim=1, keepdim=True) for name, w in params.items()}
thetas = dict.fromkeys(runs, unit)
states = {kind: {name: rmsprop.init(unit[name], w.norm(dim=1)) for name, w in params.items()}
          for kind, rmsprop in runs.items()}  # fmt: skip

# %%
# SGD, and two RMSProps on the directions of the rows, on the same batches.
state, losses, norms, angles = None, [], [], []
for _ in range(150 if run.quick else 600):
    batch = torch.randint(len(x), (BATCH,), generator=generator)
    here = loss.on((x[batch], y[batch]))
    values = []
    for kind, rmsprop in runs.items():
        gradient, value = torch.func.grad_and_value(here)(thetas[kind])
        moved = {n: rmsprop.step(t, gradient[n], states[kind][n])
                 for n, t in thetas[kind].items()}  # fmt: skip
        thetas[kind], states[kind] = ({n: m[k] for n, m in moved.items()} for k in (0, 1))
        values.append(value)
    gradient, value = torch.func.grad_and_value(here)(params)
    after, kicked = rule.update(gradient, params, state)
    charges = {n: law.step(charges[n], state, kicked) for n, law in laws.items()}
    averages = [runs[kind].norm(states[kind]["0.weight"]) for kind in runs]
    losses.append(torch.stack([*values, value]))
    norms.append(torch.stack([*averages, after["0.weight"].norm(dim=1)]))
    cosines = functional.cosine_similarity(params["0.weight"], after["0.weight"])
    angles.append(cosines.acos().square().mean().sqrt())
    params, state = after, kicked

losses, norms, angles = (torch.stack(values) for values in (losses, norms, angles))
off = (losses[:, :2] - losses[:, 2:]).abs()
wrong = (norms[:, :2] / norms[:, 2:] - 1).abs().amax((0, 2))
angle, dictated = float(angles[-100:].mean()), dl.stationary_angle(rule)
print(f"RMSProp's loss and norms are off by {off[:, 0].max():.3f} and {wrong[0]:.3f} (printed)")
print(f"{off[:, 1].max():.3f} and {wrong[1]:.3f} (corrected); angle {angle:.4f}, {dictated:.4f}")

# %%
# The same loss, norms that remember, and the angle.
figure, (left, middle, right) = run.figure(1, 3, aspect=1.1)
left.plot(losses[:, 2], "k", ls="-", linewidth=0.8, label="loss of SGD")
for k, kind in enumerate(runs):
    label = f"distance, RMSProp {kind}"
    left.plot(off[:, k], ("C0", "C2")[k], ls="-", linewidth=0.8, label=label)
left.set(xlabel="step", yscale="log", ylabel="loss", title="the same loss", ylim=(1e-6, 1e4))
for k, (style, label) in ((2, ("k-", "SGD")), (1, ("C2:", "corrected RMSProp"))):
    middle.plot(norms[:, k, :4], style, label=[label, *[None] * 3])
middle.set(xlabel="step", ylabel="norm of a row", title="four rows of layer 1")
middle.set_ylim(0, 1.3 * float(norms[:, 2, :4].max()))
right.plot(angles, "k", ls="-", linewidth=0.8, label="rms of the rows")
right.axhline(dictated, color="C2", linestyle=":", label="dictated by the rule")
right.set(xlabel="step", ylabel="angle / rad", title="turn in one step", ylim=(0, 2 * dictated))
for ax in (left, middle, right):
    ax.legend()
run.save(figure)
for name, w in params.items():
    assert (charges[name].conserved / w.square().sum(1) - 1).abs().max() < 1e-11
assert off[:, 1].max() < off[:, 0].max() / 5
assert wrong[1] < min(0.1, wrong[0] / 2)
assert run.quick or abs(angle / dictated - 1) < 0.1
