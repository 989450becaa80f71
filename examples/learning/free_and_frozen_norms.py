"""
Free and frozen norms
=====================

What the norms of normalised layers are good for: training with and without them.

Weights before batch normalisation may have any norm, and yet the network learns otherwise if they
are held: set back after every step, the norm no longer remembers the gradients, and what was an
adaptive learning rate is a fixed one. A network of two hidden layers learns scikit-learn's digits.
At small learning rates both are alike; at large ones the free norms grow until steps are short.

Source: Tanaka & Kunin, Noether's learning dynamics, arXiv 2105.02716, section 6.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dln_geometry import gallery
from dln_geometry.learning import Scale, functionalize, is_symmetric

TRAIN, BATCH, WIDTH, NORM = 1300, 100, 64, 0.3


def network(generator):
    with torch.random.fork_rng():
        model = nn.Sequential(
            nn.Linear(64, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, 10),
        )  # fmt: skip
    for layer in model[::3]:
        nn.init.kaiming_normal_(layer.weight, generator=generator)
    nn.init.zeros_(model[6].bias)
    rescale(model)
    return model


@torch.no_grad()
def rescale(model):
    for w in (model[0].weight, model[3].weight):
        w.mul_(NORM / w.norm(dim=1, keepdim=True))


def train(x, y, lr, frozen, epochs, seed):
    """Return the accuracy on unseen data, and the mean norm of the first layer's rows."""
    generator = torch.Generator().manual_seed(seed)
    model = network(generator)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(TRAIN, generator=generator).split(BATCH):
            optimiser.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
            if frozen:
                rescale(model)
    with torch.no_grad():
        right = model.eval()(x[TRAIN:]).argmax(1) == y[TRAIN:]
        return float(right.float().mean()), float(model[0].weight.norm(dim=1).mean())


# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(13)
x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
order = torch.randperm(len(y), generator=generator)
x, y = x[order].float() / 16, y[order]
loss, params = functionalize(network(generator), functional.cross_entropy, (x, y))
# The eps of batch normalisation, 1e-5, breaks the scale by about itself over the variance.
assert all(is_symmetric(loss, Scale(f"{k}.weight", axis=0), params, rtol=0.01) for k in (0, 3))
assert not is_symmetric(loss, Scale("6.weight"), params, rtol=0.01)

# %%
# Train both at every learning rate.
rates = [0.01, 0.1, 1.0] if run.quick else [0.01, 0.03, 0.1, 0.3, 1.0]
seeds, epochs = (2, 6) if run.quick else (5, 15)
figure, (left, right) = run.figure(1, 2, aspect=0.72)
mean = {}
for frozen, style, name in ((False, "C0o-", "free"), (True, "C2s--", "frozen")):
    runs = [[train(x, y, lr, frozen, epochs, k) for k in range(seeds)] for lr in rates]
    accuracy, norm = torch.tensor(runs).unbind(-1)
    mean[name] = accuracy.mean(1), norm.mean(1)
    for ax, values in ((left, accuracy), (right, norm)):
        middle = values.mean(1)
        bars = (middle - values.amin(1), values.amax(1) - middle)
        ax.errorbar(rates, middle, bars, fmt=style, capsize=2, label=name)
print("learning rate   accuracy: free  frozen   norm of a free row")
for row in zip(rates, mean["free"][0], mean["frozen"][0], mean["free"][1], strict=True):
    print("{:<13g} {:>16.3f} {:>7.3f} {:>20.2f}".format(*row))
left.set(xscale="log", xlabel="learning rate", ylabel="accuracy on unseen digits")
right.set(xscale="log", yscale="log", xlabel="learning rate")
right.set_ylabel("norm of a row after training")
left.legend(loc="lower left", title=f"norms; bars: all of {seeds} seeds")
run.save(figure)
gap = mean["free"][0] - mean["frozen"][0]
assert abs(gap[0]) < 0.03
assert gap[-1] > 0.05
assert mean["free"][1][-1] > 3 * mean["free"][1][0] > 3 * NORM / 1.5
