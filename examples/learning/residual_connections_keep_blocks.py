"""
Residual connections against collapse
=====================================

Weight decay collapses a plain convolutional network at once; with residual connections it lives on.

In a block of two convolutions the loss keeps its value if one layer grows and the next shrinks: the
point where both are zero is a symmetric set, and enough weight decay makes it attract. If blocks
stand one after another, nothing passes a dead block, and all blocks die together: the network
answers the same on every image. A residual connection passes on what the block reads, and the
network learns without the block. Left: accuracy on held-out handwritten digits. Middle: the sizes
of the blocks. Right: an ensemble of two linear classifiers whose outputs are added: their exchange
is a symmetry, and with weight decay they end equal.

Source: Ziyin, Symmetry induces structure and constraint of learning, arXiv 2309.16932.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from dln_geometry import gallery


class Blocks(nn.Module):
    """A stem and two blocks of convolutions, with or without residual connections."""

    def __init__(self, residual, width=8):
        super().__init__()
        self.residual = residual
        self.stem, self.norm = nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(self.block(width) for _ in range(2))
        self.head = nn.Linear(16 * width, 10)

    @staticmethod
    def block(width):
        first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        return nn.Sequential(first, nn.ReLU(), second)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = x + block(x) if self.residual else torch.relu(block(x))
        return self.head(x.flatten(1))

    @torch.no_grad()
    def sizes(self):
        return [float(b[0].weight.norm() * b[2].weight.norm()) for b in self.blocks]


class Ensemble(nn.Module):
    """Two linear classifiers whose outputs are added: exchanging them is a symmetry."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in "ab")

    def forward(self, x):
        return sum(member(x) for member in self.members)

    def difference(self):
        a, b = (member[1].weight.detach() for member in self.members)
        return float((a - b).norm() / (a + b).norm())


def data():
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return (x / 16).float().reshape(-1, 1, 8, 8)[order], y[order]


def made(kind, *options):
    """Return a module at the same random start, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind(*options)


def train(net, x, y, decay, epochs):
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": decay}
    optimizer = torch.optim.SGD(net.parameters(), **options)
    g = torch.Generator().manual_seed(2)
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=g).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def accuracy(net, x, y):
    return float((net(x).argmax(1) == y).float().mean())


# %%
run = gallery.begin(__doc__)
decays = [0.0, 0.1] if run.quick else [0.0, 3e-3, 1e-2, 3e-2, 0.1]
epochs = 4 if run.quick else 12
x, y = data()
held, sizes, apart = {"plain": [], "residual": []}, {"plain": [], "residual": []}, []
for decay in decays:
    for name, accuracies in held.items():
        net = train(made(Blocks, name == "residual"), x[:1400], y[:1400], decay, epochs)
        accuracies.append(accuracy(net, x[1400:], y[1400:]))
        sizes[name].append(sum(net.sizes()) / 2)
    apart.append(train(made(Ensemble), x[:1400], y[:1400], decay, epochs).difference())

# %%
places = range(len(decays))
figure, (left, middle, right) = run.figure(1, 3, aspect=1.1)
for name, marker in (("plain", "o"), ("residual", "s")):
    left.plot(places, held[name], marker=marker, label=name)
    middle.plot(places, [max(s, 1e-8) for s in sizes[name]], marker=marker, label=name)
right.plot(places, apart, "k", marker="^")
middle.set_yscale("log")
left.set(xlabel="weight decay", ylabel="accuracy", title="digits", ylim=(0, 1))
middle.set(xlabel="weight decay", ylabel="mean size of a block", title="blocks")
right.set(xlabel="weight decay", ylabel="difference of members", title="ensemble", ylim=(0, None))
for ax in (left, middle, right):
    ax.set_xticks(places, [f"{decay:g}" for decay in decays])
left.legend()
middle.legend()
run.save(figure)
for name, values in held.items():
    print(f"{name}: accuracy " + ", ".join(f"{a:.3f}" for a in values))
print("difference of the members " + ", ".join(f"{a:.1e}" for a in apart))
assert held["plain"][-1] < 0.2
assert held["residual"][-1] > 0.8
assert sizes["plain"][-1] < 0.1 * sizes["residual"][-1]
assert apart[-1] < 0.7 * apart[0]
