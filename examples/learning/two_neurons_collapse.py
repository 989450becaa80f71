"""
Two neurons collapse
====================

Two neurons become one at the weight decay that the curvature predicts.

Exchanging two hidden neurons is a mirror symmetry. Where two are equal, the Hessian has a block of
its own along the mirror; its lowest eigenvalue is minus the weight decay above which they attract
each other: gradient descent leaves the mirror just below it and falls onto it just above.

Source: Ziyin, Symmetry induces structure and constraint of learning, arXiv 2309.16932.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from scipy import optimize
from sklearn.datasets import load_digits
from torch import nn

from dln_geometry import gallery, learning

HIDDEN = {"0.weight": 0, "0.bias": 0, "2.weight": 1}


def network(count):
    """Return the loss of three hidden neurons on the digits 0 to 3, of 4 x 4 pixels."""
    linear = partial(nn.utils.skip_init, nn.Linear, dtype=torch.float64)
    pixels, label = load_digits(n_class=4, return_X_y=True)
    x = torch.from_numpy(pixels[:count]).reshape(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    x = (x - x.mean(0)) / (x.std(0) + 0.1)
    net = nn.Sequential(linear(16, 3), nn.Tanh(), linear(3, 4))
    generator = torch.Generator().manual_seed(18)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    data = x, torch.from_numpy(label[:count])
    return learning.functionalize(net, nn.functional.cross_entropy, data)


def minimum(loss, start, decay, project):
    def value(v):
        q = project(learning.unflatten(torch.from_numpy(v), start))
        g, f = torch.func.grad_and_value(loss)(q)
        slope = project({name: g[name] + decay * q[name] for name in q})
        penalty = decay / 2 * float(learning.flatten(q).square().sum())
        return float(f) + penalty, learning.flatten(slope).numpy()

    found = optimize.minimize(value, learning.flatten(start).numpy(), jac=True, tol=1e-8)
    return project(learning.unflatten(torch.from_numpy(found.x), start))


# %%
run = gallery.begin(__doc__)
loss, start = network(200 if run.quick else 720)
mirror, merged = learning.Mirror.permutation(start, HIDDEN, 0, 1), {}


def excess(decay):
    before = merged[min(merged, key=lambda k: abs(k - decay))] if merged else start
    merged[decay] = minimum(loss, before, decay, mirror.project)
    return decay - learning.stability(loss, mirror, merged[decay]).threshold


grid = np.geomspace(0.02, 0.3, 5 if run.quick else 17)
curve = [k - excess(k) for k in grid]
above = min(k for k, threshold in zip(grid, curve, strict=True) if threshold < k)
critical = optimize.brentq(excess, grid[0], above, rtol=1e-6)
figure, axes = run.figure(1, 2, aspect=0.75)
axes[0].plot(grid, curve, "C0", ls="-", label=r"$-\lambda_{min}(O^T H O)$ on the mirror")
axes[0].plot(grid, grid, "k:", label="weight decay")
axes[0].plot(critical, critical, "C2o", label="collapse", zorder=3)
axes[0].set(xlabel="weight decay", ylabel="threshold of the mirror")
axes[1].set(
    ylabel="distance of the two neurons",
    xlabel="step",
    ylim=(1e-5, 1.0) if run.quick else (1e-7, 3e4),
)

# %%
# Gradient descent from next to the mirror, below and above the critical weight decay.
lr, gradient = 0.5, torch.func.grad(loss)
print(f"collapse at {critical:.5f}\ndecay / critical   rate predicted   measured")
for factor, color in ((0.75, "C0"), (0.9, "C2"), (1.1, "C1"), (1.3, "C3")):
    decay = factor * critical
    q = minimum(loss, merged[critical], decay, mirror.project)
    found = learning.stability(loss, mirror, q)
    q = mirror.shift(q, 1e-3 * found.direction)
    distance = []
    for _ in range(400 if run.quick else 2500):
        distance.append(float(mirror.coordinates(q).norm()))
        g = gradient(q)
        q = {name: x - lr * (g[name] + decay * x) for name, x in q.items()}
    rate = math.log(1 + lr * (found.threshold - decay))
    measured = math.log(distance[20] / distance[0]) / 20
    print(f"{factor:>16g} {rate:>16.5f} {measured:>10.5f}")
    assert (distance[-1] > distance[0]) == (factor < 1) == (rate > 0)
    assert abs(measured / rate - 1) < 0.05
    axes[1].semilogy(distance, color, ls="-", label=f"{factor:g}")
    steps = torch.arange(len(distance))
    axes[1].semilogy(steps, 1e-3 * (rate * steps).exp().clamp(max=2e3), color, ls=":")
axes[0].legend()
axes[1].plot([], [], "0.4", ls=":", label="predicted rate")
axes[1].legend(title="decay / critical", ncols=4, columnspacing=1)
run.save(figure)
