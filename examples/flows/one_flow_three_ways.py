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
from scipy.integrate import solve_ivp

import dln_geometry as dln
from dln_geometry import gallery, plot

RTOLS, DEPTH, WIDTHS = (1e-4, 1e-6, 1e-8, 1e-10), 4, (5, 6, 7, 6, 8)
F64 = torch.float64


def integrate(velocity, start, t, rtol):
    """Integrate a flow of matrices by SciPy; return the end-to-end matrices at the times t."""
    sizes, shapes = [w.numel() for w in start], [w.shape for w in start]

    def unpack(y):
        parts = torch.as_tensor(y).split(sizes)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def field(_, y):
        return torch.cat([v.flatten() for v in velocity(unpack(y))])

    y0 = torch.cat([w.flatten() for w in start])
    run = solve_ivp(field, (0.0, t[-1]), y0, method="DOP853", t_eval=t, rtol=rtol, atol=1e-3 * rtol)
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
pair = dln.gradient_flow(loss, start, t_end=t_end, save_at=t, rtol=RTOLS[-1], keep_points=True)
x_pair = torch.stack([point.matrix for point in pair.points])


def of_layers(w):
    return dln.lift(w, -loss.gradient(dln.end_to_end(w)))


def of_metric(w):
    return (dln.cometric(dln.EndToEnd.of(w[0], DEPTH), -loss.gradient(w[0])),)


# %%
# All three, the last two at four tolerances.
ways = {"layers": (of_layers, layers), "metric of X": (of_metric, (dln.end_to_end(layers),))}
found = {
    name: [integrate(velocity, begin, t, rtol) for rtol in RTOLS]
    for name, (velocity, begin) in ways.items()
}
p = dln.EndToEnd.of(x_pair, DEPTH)
aligned = torch.einsum("tmi,tmn,tin->ti", p.u, loss.gradient(x_pair), p.vh)
speed = -(p.s ** (1 - 1 / DEPTH)) * aligned
area = torch.as_tensor(np.tile(weights, panels) * t_end / panels / 2)
roots = p.s[0] ** (1 / DEPTH) + area @ speed[1:-1]

figure, (left, right) = run.figure(1, 2, aspect=0.72)
plot.singular_values(pair, left, linestyle="-").lines[-1].set_label("two matrices")
few = slice(0, None, max(1, len(t) // 32))
styles = {"layers": "C2o", "metric of X": "kx"}
for (name, runs), shift in zip(found.items(), (0.9, 1.1), strict=True):
    look = {"markersize": 5, "fillstyle": "none", "ls": "none"}
    left.plot(t[few], torch.linalg.svdvals(runs[-1][few]), styles[name], **look)[0].set_label(name)
    size = torch.linalg.matrix_norm(x_pair)
    errors = [float((torch.linalg.matrix_norm(x - x_pair) / size).max()) for x in runs]
    right.loglog([shift * rtol for rtol in RTOLS], errors, styles[name], **look, label=name)
    print(f"{name:<12} away from the two matrices by at most {errors[-1]:.1e}")
    assert all(error < 1e3 * rtol for error, rtol in zip(errors, RTOLS, strict=True))
right.loglog(RTOLS, RTOLS, "k:", label="tolerance")
right.set(xlabel="tolerance of the integration", ylabel="distance from the two matrices / |X|")
right.legend(loc="lower right")
left.set_ylim(0, 5)
left.legend(loc="upper center", ncols=3)
run.save(figure)

# %%
# The roots of the singular values, integrated along the flow by quadrature.
error = (roots - p.s[-1] ** (1 / DEPTH)).abs().max()
print(f"{'roots':<12} away from their own equation by at most {float(error):.1e}")
assert error < 1e3 * RTOLS[-1]
