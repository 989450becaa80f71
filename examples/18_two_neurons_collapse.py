"""Two neurons become one at the weight decay that the curvature predicts.

Exchanging two hidden neurons does not change what a network computes: a mirror symmetry. On its
mirror (two equal neurons) the Hessian of the loss has a block of its own along the mirror, whose
lowest eigenvalue is minus the weight decay above which the mirror attracts. Three hidden neurons
learn four of scikit-learn's digits, two of the neurons equal up to a thousandth. One sees the
threshold of the optimum on the mirror cross the decay itself; gradient descent leave the mirror
just below the crossing, and fall onto it just above, both at the rate predicted; and where it
ends: neurons that start nearly equal separate below the crossing and become one above it, while
neurons that start apart stay so for a while: above the threshold there are two stable states.

Source: Ziyin, Symmetry induces structure and constraint of learning, arXiv 2309.16932.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import optimize
from sklearn.datasets import load_digits
from torch import nn

from dln_geometry import learning

F64 = torch.float64
HIDDEN = {"0.weight": 0, "0.bias": 0, "2.weight": 1}


def network(count):
    """Return the loss of three hidden neurons on the digits 0 to 3, of 4 x 4 pixels."""
    pixels, label = load_digits(n_class=4, return_X_y=True)
    x = torch.from_numpy(pixels[:count]).reshape(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    x = (x - x.mean(0)) / (x.std(0) + 0.1)
    net = nn.Sequential(nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 4)).to(F64)
    generator = torch.Generator().manual_seed(18)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    data = (x, torch.from_numpy(label[:count]))
    return learning.functionalize(net, nn.functional.cross_entropy, data)


def minimum(loss, start, decay, project=lambda q: q):
    """Return the optimum of the loss with weight decay, of all points or of those projected."""

    def value(v):
        q = project(learning.unflatten(torch.from_numpy(v), start))
        g, f = torch.func.grad_and_value(loss)(q)
        slope = project({name: g[name] + decay * q[name] for name in q})
        total = float(f) + decay / 2 * float(learning.flatten(q).square().sum())
        return total, learning.flatten(slope).numpy()

    v = learning.flatten(start).numpy()
    found = optimize.minimize(value, v, jac=True, method="BFGS", options={"gtol": 1e-8})
    return project(learning.unflatten(torch.from_numpy(found.x), start))


def main(quick=False):
    loss, start = network(200 if quick else 720)
    mirror = learning.Mirror.permutation(start, HIDDEN, 0, 1)
    merged = {}

    def excess(decay):
        before = merged[min(merged, key=lambda k: abs(k - decay))] if merged else start
        merged[decay] = minimum(loss, before, decay, mirror.project)
        return decay - learning.stability(loss, mirror, merged[decay]).threshold

    grid = np.geomspace(0.02, 0.3, 5 if quick else 17)
    curve = [k - excess(k) for k in grid]
    above = min(k for k, threshold in zip(grid, curve, strict=True) if threshold < k)
    critical = optimize.brentq(excess, grid[0], above, rtol=1e-6)
    print(f"two neurons collapse at a weight decay of {critical:.5f}")

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].plot(grid, curve, "C0", label=r"$-\lambda_{min}(O^T H O)$ on the mirror")
    axes[0].plot(grid, grid, "k:", label="weight decay")
    axes[0].plot(critical, critical, "C3o")
    axes[0].set(title="threshold", xlabel="weight decay")

    lr, gradient = 0.5, torch.func.grad(loss)
    print("decay / critical   rate predicted   measured")
    for factor, color in ((0.75, "C0"), (0.9, "C2"), (1.1, "C1"), (1.3, "C3")):
        decay = factor * critical
        q = minimum(loss, merged[critical], decay, mirror.project)
        found = learning.stability(loss, mirror, q)
        q = mirror.shift(q, 1e-3 * found.direction)
        distance = []
        for _ in range(400 if quick else 2500):
            distance.append(float(mirror.coordinates(q).norm()))
            g = gradient(q)
            q = {name: x - lr * (g[name] + decay * x) for name, x in q.items()}
        rate = math.log(1 + lr * (found.threshold - decay))
        measured = math.log(distance[20] / distance[0]) / 20
        print(f"{factor:>16g} {rate:>16.5f} {measured:>10.5f}")
        assert (distance[-1] > distance[0]) == (factor < 1) == (rate > 0)
        assert abs(measured / rate - 1) < 0.05
        steps = torch.arange(len(distance))
        axes[1].semilogy(steps, distance, color, label=f"{factor:g}")
        axes[1].semilogy(steps, 1e-3 * (rate * steps).exp().clamp(max=2e3), color, ls=":")
    axes[1].set(title="distance of the neurons", xlabel="step", ylim=(1e-7, 500))

    decays = critical * np.linspace(0.575, 1.375, 3 if quick else 17)
    q, near, far = start, [], []
    for decay in decays:
        q = minimum(loss, q, decay)
        far.append(float(mirror.coordinates(q).norm()))
        kicked = minimum(loss, merged[critical], decay, mirror.project)
        direction = learning.stability(loss, mirror, kicked).direction
        kicked = minimum(loss, mirror.shift(kicked, 3e-3 * direction), decay)
        near.append(float(mirror.coordinates(kicked).norm()))
    axes[2].plot(decays / critical, far, "C7o-", label="start apart")
    axes[2].plot(decays / critical, near, "k.-", label="start nearly equal")
    axes[2].axvline(1, color="C3", linewidth=0.8)
    axes[2].set(title="distance in the end", xlabel="weight decay / critical")
    for ax, title in zip(axes, (None, "decay / critical", None), strict=True):
        ax.legend(fontsize="small", title=title, ncols=4 if title else 1, columnspacing=1)
    figure.savefig("two_neurons_collapse.png", dpi=150)
    assert all((gap > 0.1) == (decay < critical) for gap, decay in zip(near, decays, strict=True))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
