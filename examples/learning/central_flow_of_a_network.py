"""
Past the edge of stability
==========================

The average of gradient descent where it oscillates: a central flow with four modes.

Full-batch gradient descent on a tanh network raises the largest eigenvalues of the Hessian up to
``2 / lr``, one after another, and goes on with an oscillation along them. The central flow adds the
force of that oscillation to the gradient, which keeps the eigenvalues there. Left: the loss of the
iterates, their average over 41 steps and what the flow says of it. Middle: the eigenvalues of the
flow, and the largest of the iterates. Right: distance from the mean of the iterates. A network of
216 parameters on handwritten digits of 4 x 4 pixels, squared error.

Source: Cohen et al., Understanding optimization in deep learning with central flows, arXiv
2410.24206.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from dln_geometry import gallery, learning

F64 = torch.float64
HALF = 20  # half of the window of averages, in steps


def network(count, width, generator):
    """Return the loss of a network on digits, averaged over 2 x 2 pixels, and its weights."""
    x, y = (torch.as_tensor(a[:count]) for a in load_digits(return_X_y=True))
    x = x.reshape(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    x, target = (x - x.mean(0)) / 6, torch.nn.functional.one_hot(y, 10).to(F64)

    def loss(p):
        out = torch.tanh(x @ p["u"].mT + p["c"]) @ p["w"].mT
        return (out - target).square().sum(1).mean() / 2

    u, w = (torch.randn(*s, generator=generator, dtype=F64) for s in ((width, 16), (10, width)))
    return loss, {"u": u / 8, "c": torch.zeros(width, dtype=F64), "w": w / (2 * width**0.5)}


def descend(loss, lr, params, steps):
    """Return the iterates, shape (steps + 1, p), and their losses."""
    points, losses = [learning.flatten(params)], []
    for _ in range(steps + 1):
        g, value = torch.func.grad_and_value(loss)(params)
        losses.append(float(value))
        params = {name: x - lr * g[name] for name, x in params.items()}
        points.append(learning.flatten(params))
    return torch.stack(points[:-1]), torch.tensor(losses, dtype=F64)


# %%
run = gallery.begin(__doc__)
lr, steps, modes = 1.5, 80 if run.quick else 300, 2 if run.quick else 4
loss, start = network(100, 8, torch.Generator().manual_seed(0))
points, losses = descend(loss, lr, start, steps + HALF)
# Gradient flow by Euler steps of an eighth, which do not oscillate.
smooth, smooth_losses = (x[::8] for x in descend(loss, lr / 8, start, 8 * steps))
path = learning.central_flow(loss, lr, modes)(start, steps, substeps=2)
flow = torch.stack([learning.flatten(p) for p in path.params])

# %%
# Means over a window around each step.
times = torch.arange(HALF, steps + 1)
windows = points.unfold(0, 2 * HALF + 1, 1)
mean, mean_loss = windows.mean(-1), losses.unfold(0, 2 * HALF + 1, 1).mean(-1)
away = [(x[times] - mean).norm(dim=1) for x in (smooth, flow)]
tops = torch.arange(0, steps + 1, 5)
sharp = [
    float(learning.sharpness(loss, learning.unflatten(points[n], start), generator=0)) for n in tops
]
figure, (left, middle, right) = run.figure(1, 3, aspect=1.1)
left.semilogy(losses[: steps + 1], "0.8", lw=0.6, label="gradient descent")
left.semilogy(times, mean_loss, "k", label="its average")
left.semilogy(smooth_losses, "C1", ls=":", label="gradient flow")
left.semilogy(path.t, path.average_loss, "C0", ls="--", label="central flow")
middle.plot(tops, sharp, "0.6", marker="o", ms=2, lw=0.5, label="gradient descent")
for k in range(modes):
    middle.plot(path.t, path.sharpness[:, k], f"C{k}", label=f"central flow, {k + 1}")
middle.axhline(2 / lr, color="k", lw=0.5, ls=":")
right.plot(times, away[0], "C1", ls=":", label="gradient flow")
right.plot(times, away[1], "C0", ls="--", label="central flow")
left.set(xlabel="step", ylabel="loss", title="loss", ylim=(0.12, 0.6))
middle.set(xlabel="step", ylabel="eigenvalues", title="edge at 2 / lr", ylim=(0.7, 2.2))
right.set(xlabel="step", ylabel="distance from the mean", title="distance")
for ax in (left, middle, right):
    ax.legend()
run.save(figure)
late = times >= (60 if run.quick else 100)
off = ((path.average_loss[times] - mean_loss) / mean_loss).abs()[late].max()
ratio = float((away[1] / away[0])[late].max())
held = float(path.sharpness.max()) * lr / 2
count = int((path.covariance[-1].diagonal() > 0).sum())
print(f"average loss off by at most {float(off):.1%}; at the end {count} modes oscillate")
print(f"distance from the mean: {float(away[1][-1]):.2f}, gradient flow {float(away[0][-1]):.2f}")
assert held < 1.001
assert off < 0.06
assert ratio < 0.9
