"""
One flow three ways
===================

One flow three ways: the layers, the end-to-end matrix, and two matrices.

A deep linear network is trained on inputs and outputs by the gradient flow of its layers. From a
balanced start the product obeys an equation of its own, ``dX/dt = -A_{N,X}(G)`` with the depth-N
metric and ``G = E'(X)``, and so do the two thin matrices of which it is made, whatever the depth.
One sees the same singular values three times, and that the roots ``lam = s^{1/N}`` follow
``dlam_i/dt = -lam_i^{N-1} u_i^T G v_i``, slow while small: modes are learned one after the other.

Sources: Arora, Cohen, Hazan, ICML 2018, for the flow of X; Arora, Cohen, Hu, Luo, arXiv 1905.13655,
for the singular values; Menon, arXiv 2411.09004, for the geometry.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import pyplot as plt
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry import gallery, plot

RTOL, DEPTH, WIDTHS = 1e-10, 4, (5, 6, 7, 6, 8)
F64 = torch.float64


def integrate(velocity, start, t):
    """Integrate a flow of matrices by SciPy; return the end-to-end matrices at the times t."""
    sizes, shapes = [w.numel() for w in start], [w.shape for w in start]

    def unpack(y):
        parts = torch.as_tensor(y).split(sizes)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def field(_, y):
        return torch.cat([v.flatten() for v in velocity(unpack(y))])

    y0 = torch.cat([w.flatten() for w in start])
    run = solve_ivp(field, (0.0, t[-1]), y0, method="DOP853", t_eval=t, rtol=RTOL, atol=1e-3 * RTOL)
    return torch.stack([dln.end_to_end(unpack(y)) for y in run.y.T])


# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(3)
inputs = torch.randn(40, 5, generator=generator, dtype=F64)
spectrum = [4, 2.5, 1.6, 1, 0.6]
(teacher,) = dln.random_balanced((5, 8), spectrum=spectrum, generator=generator, dtype=F64)
loss = dln.losses.Regression(inputs / 40**0.5, inputs @ teacher.mT / 40**0.5)
layers = dln.random_balanced(WIDTHS, scale=0.05, generator=generator, dtype=F64)
# Gauss points: the roots are integrated along the flow by quadrature.
t_end, panels = (1.0, 10) if run.quick else (8.0, 80)
nodes, weights = np.polynomial.legendre.leggauss(8)
t = (t_end / panels * (np.arange(panels)[:, None] + (nodes + 1) / 2)).ravel()
t = np.concatenate(([0.0], t, [t_end]))

start = dln.Collapsed.of(layers)
pair = dln.gradient_flow(loss, start, t_end=t_end, save_at=t, rtol=RTOL, keep_points=True)
x_pair = torch.stack([point.matrix for point in pair.points])


def of_layers(w):
    return dln.lift(w, -loss.gradient(dln.end_to_end(w)))


def of_metric(w):
    return (dln.cometric(dln.EndToEnd.of(w[0], DEPTH), -loss.gradient(w[0])),)


x_layers = integrate(of_layers, layers, t)
x_metric = integrate(of_metric, (dln.end_to_end(layers),), t)
p = dln.EndToEnd.of(x_pair, DEPTH)
aligned = torch.einsum("tmi,tmn,tin->ti", p.u, loss.gradient(x_pair), p.vh)
speed = -(p.s ** (1 - 1 / DEPTH)) * aligned
area = torch.as_tensor(np.tile(weights, panels) * t_end / panels / 2)
roots = p.s[0] ** (1 / DEPTH) + area @ speed[1:-1]

figure = plt.figure(figsize=(9.5, 3.8))
left, right = figure.subplots(1, 2)
plot.singular_values(pair, left).lines[-1].set_label("two matrices")
few = slice(0, None, max(1, len(t) // 32))
for name, x, style in (("layers", x_layers, "C3o"), ("metric of X", x_metric, "kx")):
    error = torch.linalg.matrix_norm(x - x_pair) / torch.linalg.matrix_norm(x_pair)
    print(f"{name:<12} away from the two matrices by at most {float(error.max()):.1e}")
    look = {"markersize": 5, "fillstyle": "none", "linewidth": 0.8}
    left.plot(t[few], torch.linalg.svdvals(x[few]), style, **look)[0].set_label(name)
    right.semilogy(t[few][1:], error[few][1:], style + "-", **look)
    assert error.max() < 1e3 * RTOL
left.set_ylim(0, 5)
right.set(xlabel="time", ylabel="relative distance from two matrices", xlim=(0, t_end))
left.legend(loc="upper center", ncols=3)
run.save(figure)
error = (roots - p.s[-1] ** (1 / DEPTH)).abs().max()
print(f"{'roots':<12} away from their own equation by at most {float(error):.1e}")
assert error < 1e3 * RTOL
