"""
Gradient descent as a flow
==========================

Gradient descent as a flow: the iterates lie on a curve, order by order.

Gradient descent with learning rate eta follows not the gradient flow, but another one that passes
through its iterates, ``q' = -g - eta xi_0 - eta^2 xi_1 - ...``, with ``xi_0 = H g / 2``. Left: a
curved valley; gradient flow cuts the corner that the iterates take. Middle: the distance from them.
Right: a network with normalised weights on handwritten digits, learning rate 1/2, weight decay
0.05, and the flow from differences of J iterates alone.

Source: Miyagawa, Toward equation of motion for deep neural networks, arXiv 2210.15898.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from sklearn.datasets import load_digits

from dln_geometry import gallery, learning
from dln_geometry.learning import equation_of_motion_from_iterates as fitted
from dln_geometry.ode import integrate

F64 = torch.float64


def valley(p):
    x, y = p["q"]
    return (y - 0.8 * x**2).square() + 0.5 * (x - 0.2).square()


def digits(count, generator):
    """Return the loss of a network whose weights count by their directions alone, and weights."""
    x, y = (torch.as_tensor(a[:count]) for a in load_digits(return_X_y=True))

    def loss(p):
        first, second = (torch.nn.functional.normalize(w, dim=1) for w in p.values())
        logits = 4.0 * torch.tanh(x / 16 @ first.mT) @ second.mT
        size = sum(w.square().sum() for w in p.values())
        return torch.nn.functional.cross_entropy(logits, y) + 0.05 / 2 * size

    # The longer the weights, the smaller the curvature.
    first, second = (torch.randn(*s, generator=generator, dtype=F64) for s in ((24, 64), (10, 24)))
    return loss, {"first": 1.5 * first, "second": 1.5 * second}


def descend(loss, lr, params, steps):
    path = [params]
    for _ in range(steps):
        path.append(learning.Rule(lr).step(loss, path[-1])[0])
    return torch.stack([learning.flatten(p) for p in path])


def follow(field, params, times):
    options = {"t_end": float(times[-1]), "save_at": times, "rtol": 1e-7}
    return integrate(field.field(params), learning.flatten(params)[None], **options).saved["y"][
        :, 0
    ]


# %%
run = gallery.begin(__doc__)
g = torch.Generator().manual_seed(0)
# Black are the iterates.
COLORS = ("C0", "C1", "C2", "0.5")
lr, steps, names = 0.12, 16, ("gradient flow", "order 0", "order 1", "order 2")
start = {"q": torch.tensor([-0.9, 1.75], dtype=F64)}
iterates = descend(valley, lr, start, steps)
figure, (plane, near, far) = run.figure(1, 3, aspect=1.1)
fine, errors = torch.linspace(0, lr * steps, 4 * steps + 1, dtype=F64), []
for order in range(-1, 3):
    path = follow(learning.equation_of_motion(valley, lr, order, generator=g), start, fine)
    distance = (path[::4] - iterates).norm(dim=1)
    errors.append(float(distance.max()))
    plane.plot(path[:, 0], path[:, 1], COLORS[order + 1], ls=("-", "--", ":", "-.")[order + 1])
    style = {"ls": ("-", "--", ":", "-.")[order + 1], "marker": "os^D"[order + 1], "ms": 2.5}
    near.semilogy(
        range(1, steps + 1), distance[1:], COLORS[order + 1], **style, label=names[order + 1]
    )
plane.plot(iterates[:, 0], iterates[:, 1], "ko", ms=3, label="iterates; curves as in b")

# %%
# Digits: the flow from differences of J iterates, without a Hessian.
loss, params = digits(100 if run.quick else 500, g)
lr, steps = 0.5, 6 if run.quick else 40
iterates = descend(loss, lr, params, steps)
print(f"digits: lr * sharpness = {lr * learning.sharpness(loss, params, generator=g):.2f}")
times, relative = lr * torch.arange(steps + 1, dtype=F64), []
for order in range(1, 5):
    field = fitted(lambda p: learning.Rule(lr).step(loss, p)[0], lr, order)
    path = follow(field, params, times)
    distance = (path - iterates).norm(dim=1) / iterates.norm(dim=1)
    relative.append(float(distance.max()))
    far.semilogy(
        range(1, steps + 1),
        distance[1:],
        f"C{order - 1}",
        marker="os^D"[order - 1],
        ms=2.5,
        ls="-",
        label=f"J = {order}",
    )
print("largest distances in the plane " + ", ".join(f"{e:.1e}" for e in errors))
print("largest relative distances, digits " + ", ".join(f"{e:.1e}" for e in relative))
plane.set(xlabel="$q_1$", ylabel="$q_2$", title="a valley in the plane")
near.set(xlabel="step", ylabel="distance from the iterates", title="equations of motion")
far.set(xlabel="step", ylabel="relative distance", title="digits, from J iterates")
plane.set_ylim(top=plane.get_ylim()[1] + 0.25)
plane.legend(loc="upper right", handlelength=1)
near.legend(loc="upper right")
far.set_ylim(bottom=far.get_ylim()[0] / 10)
far.legend(loc="lower right", ncols=2)
for ax in (near, far):
    ax.xaxis.get_major_locator().set_params(integer=True)
run.save(figure)
assert all(after < 0.7 * before for before, after in pairwise(errors))
assert all(after < 0.5 * before for before, after in pairwise(relative))
