"""
Repulsion over three fields
===========================

Real, complex and quaternion networks have one depth kernel and three volumes. Over a field of
dimension f (1, 2, 4) the volume of matrices has the factor ``|s_i^{2/N} - s_j^{2/N}|^f``. So
the singular values of pure noise repel each other more, the more numbers an entry has. Left: the
ratio u of the squares of the two values ``s^{2/N}``, by Brownian motion of 2 x 2 matrices of depth
3, real and complex, and by Dyson motion of index 4 for quaternions; lines are the density
``(1-u)^f u^{f/2-1} (1+u)^{-2f}``, the same at every depth. Right: the entropy of the hidden bases,
up to a constant, along ``s_2/s_1`` at depth 3. Orbits over larger fields have more dimensions, and
lose more volume as the matrix becomes singular.

Sources: Menon, Yu, arXiv 2509.09088 (the real orbit); Dumitriu, Edelman, arXiv math-ph/0206043.
"""

from __future__ import annotations

import torch
from scipy.special import beta as euler_beta

import dln_geometry as dln
from dln_geometry import gallery
from dln_geometry.testing import assert_close, assert_mean

run = gallery.begin(__doc__)
F64, DEPTH, TIME = torch.float64, 3, 1.0
FIELDS = {"real": (1, F64), "complex": (2, torch.complex128), "quaternion": (4, None)}
chains, step = (1000, 0.1) if run.quick else (20000, 0.05)
figure, (left, right) = run.figure(1, 2, aspect=0.75)


# %%
# Brownian motion from near zero, and a density whose integral is a quotient of Gamma functions.
def ratio_of_noise(f, dtype):
    """Return u of many runs."""
    if dtype is None:
        start = torch.full((chains, 2), 1e-3, dtype=F64)
        motion = dln.singular_dyson(start, (2, 2), dyson_index=f, t_end=TIME, dt=step, generator=f)
        squares = motion.states[-1].square().sort(descending=True).values
    else:
        start = dln.Collapsed.random((2, 2), 2, DEPTH, scale=1e-9, dtype=dtype, generator=f)
        motion = dln.brownian_motion(start, t_end=TIME, dt=step, chains=chains, generator=f)
        squares = motion.singular_values[-1].pow(2 / DEPTH)
    return squares[..., 1] / squares[..., 0]


def density(u, f):
    # The square of v = (1-u)/(1+u) has a beta distribution.
    whole = 4 ** (1 - f) * euler_beta((f + 1) / 2, f / 2) * 2 ** (f - 2)
    return (1 - u) ** f * u ** (f / 2 - 1) * (1 + u) ** (-2 * f) / whole


nodes = (torch.arange(20000, dtype=F64) + 0.5) / 20000
u = nodes**2  # the density of real matrices is infinite, and integrable, at 0
print("field       mean of u: noise, density")
for k, (name, (f, dtype)) in enumerate(FIELDS.items()):
    drawn, weights = ratio_of_noise(f, dtype), density(u, f) * 2 * nodes / 20000
    assert_close(weights.sum(), torch.tensor(1.0, dtype=F64), ops=1e9)
    mean = (weights * u).sum()
    print(f"{name:<12} {float(drawn.mean()):>13.4f} {float(mean):>9.4f}")
    assert_mean(drawn, mean)
    left.hist(drawn.numpy(), bins=30, range=(0, 1), density=True, color=f"C{k}", alpha=0.3)
    shown = u[(u > 0.004) & (u < 1)][::40]
    left.plot(shown, density(shown, f), f"C{k}", label=f"{name}, f = {f}")
left.set(xlabel="$u = (s_2/s_1)^{2/N}$", ylabel="density", xlim=(0, 1), ylim=(0, 6))
left.legend()

# %%
# The volume of the hidden bases: f times the real pair, and f - 1 times the single values.
ratios = torch.logspace(-3, 0, 60, dtype=F64)
points = dln.EndToEnd.of(
    torch.diag_embed(torch.stack([torch.ones_like(ratios), ratios], -1)), DEPTH
)
kernel = dln.log_depth_kernel(points.s, DEPTH)
for k, (name, (f, _)) in enumerate(FIELDS.items()):
    curve = dln.entropy(points, field=name)
    law = 0.5 * f * kernel[:, 0, 1] + 0.5 * (f - 1) * kernel.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert_close(curve - curve[-1], law - law[-1], scale=100.0)
    right.semilogx(ratios, curve - curve[-1], f"C{k}", label=name)
right.set(xlabel="$s_2/s_1$", ylabel="entropy, from equal values", xlim=(1e-3, 1))
right.legend(loc="lower right")
run.save(figure)
