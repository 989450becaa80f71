"""
Depth slows l2 and speeds up l4
===============================

Statement of Arora, Cohen and Hazan, On the optimization of deep networks, arXiv 1802.06509:
overparametrisation by depth is a preconditioner, for a single output ``dw/dt = -|w|^{2-2/N} (g +
(N-1) <g, w> w/|w|^2)``, and it may make gradient descent faster although the model stays linear: in
their regressions with the l4 loss deeper networks converge faster, with the l2 loss slower. Here
whitened data, one linear output, coefficients of different size, and depths 1, 2, 3; every depth
takes the best of 25 learning rates, and the bars are the quartiles over the tasks.
"""

from __future__ import annotations

import torch

from dln_geometry import gallery, plot

run = gallery.begin(__doc__)
F64 = torch.float64
DEPTHS, LEVELS = (1, 2, 3), torch.logspace(-0.5, -4, 8, dtype=F64)
TASKS, STEPS, SAMPLES, INPUTS = (24, 150, 50, 10) if run.quick else (200, 400, 50, 10)
RATES = torch.logspace(-3, 1, 25, dtype=F64)

# %%
# Tasks, and their whitened inputs.
generator = torch.Generator().manual_seed(5)
noise = torch.randn(TASKS, SAMPLES, INPUTS, generator=generator, dtype=F64)
u, _, vh = torch.linalg.svd(noise, full_matrices=False)
inputs = u @ vh * SAMPLES**0.5
truth = torch.randn(TASKS, INPUTS, generator=generator, dtype=F64)
truth = truth.sign() * torch.exp(torch.randn(truth.shape, generator=generator, dtype=F64))
truth = truth / truth.norm(dim=1, keepdim=True)
outputs = torch.einsum("tnd,td->tn", inputs, truth)


# %%
# Gradient descent on the layers: a first layer w of INPUTS numbers, then N - 1 scalar layers, from
# one balanced start of norm 0.01, at all learning rates and tasks at once.
def losses(power, depth):
    """Return the losses of every step, shape (steps, tasks, rates), over those of the start."""
    w = torch.randn(TASKS, 1, INPUTS, generator=torch.Generator().manual_seed(1), dtype=F64)
    w = (w / w.norm(dim=-1, keepdim=True)).repeat(1, len(RATES), 1) * 0.01 ** (1 / depth)
    scalars = torch.full((TASKS, len(RATES), depth - 1), 0.01 ** (1 / depth), dtype=F64)
    lr, rows = RATES[:, None], []
    for _ in range(STEPS):
        product = scalars.prod(-1, keepdim=True)
        residual = torch.einsum("tnd,trd->trn", inputs, w * product) - outputs[:, None]
        rows.append(residual.abs().pow(power).mean(-1) / power)
        slope = residual.sign() * residual.abs().pow(power - 1) / SAMPLES
        g = torch.einsum("trn,tnd->trd", slope, inputs)
        change = (g * w * product).sum(-1, keepdim=True) / scalars
        w, scalars = w - lr * g * product, scalars - lr * change
    return torch.stack(rows).nan_to_num(nan=torch.inf) / rows[0]


# %%
# How many steps does each depth need, at its best learning rate, to bring the loss down?
figure, axes = run.figure(1, 2, aspect=0.75)
late = {}
print("loss  depth  steps to 1e-4 of the loss of the start: lower quartile, median, upper")
for ax, power in zip(axes, (2, 4), strict=True):
    for k, depth in enumerate(DEPTHS):
        history = losses(power, depth)
        below = history < LEVELS[:, None, None, None]
        first = torch.where(below.any(1), below.int().argmax(1), STEPS).amin(-1).to(F64)
        low, middle, high = first.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=F64), dim=1)
        late[power, depth] = first[-1]
        shift = 1.06 ** (k - 1)
        ax.errorbar(
            LEVELS * shift, middle, (middle - low, high - middle), marker="os^"[k], ls="-",
            color=plot.depth_color(depth), capsize=2, label=plot.depth_label(depth),
        )  # fmt: skip
        print(f"l{power:<4} {depth:<6} {low[-1]:.0f}  {middle[-1]:.0f}  {high[-1]:.0f}")
    ax.set(xscale="log", xlabel="loss / loss of the start", title=f"l{power} loss", ylim=(0, None))
    ax.set_ylabel("steps of gradient descent")
    ax.invert_xaxis()
    ax.legend(title="median and quartiles", loc="upper left")
run.save(figure)

# %%
# Task by task: depth costs steps under l2 and saves them under l4.
for depth in (2, 3):
    slower = (late[2, depth] > late[2, 1]).double().mean()
    faster = (late[4, depth] < late[4, 1]).double().mean()
    print(f"depth {depth}: slower than depth 1 under l2 in {slower:.0%} of the tasks, ", end="")
    print(f"faster under l4 in {faster:.0%}")
    assert slower > 0.9
    assert faster > 0.7
    assert late[4, depth].median() < late[4, 1].median()
