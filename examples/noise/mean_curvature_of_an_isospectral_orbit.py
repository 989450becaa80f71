"""
Noise moves an orbit by its mean curvature
==========================================

Noise along an orbit moves the orbit by its mean curvature.

The matrices with given eigenvalues form an orbit ``{Q M Q*}``. Noise that is tangent to it, ``dM =
P dH``, makes M run about on the orbit, and pushes it off: to second order a curved set is left
outwards, on the side away from its centre. So M is random and its eigenvalues are not: they
follow ``dx_i = sum dt/(x_i - x_j)``, minus one half of the mean curvature of the orbit. One sees a
symmetric 2 x 2 matrix of trace 0, whose orbits are circles, without noise across the circles and
with it (index 2); and that Hermitian 5 x 5 matrices of different noise have the same eigenvalues,
those of the deterministic flow, while the volume of the orbit grows.

Source: Huang, Inauen, Menon, Motion by mean curvature and Dyson Brownian motion, arXiv 2210.11347.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from matplotlib.patches import Circle

import dln_geometry as dln
from dln_geometry import gallery

F64, C128 = torch.float64, torch.complex128


def mean_curvature(m):
    """Return the mean curvature vector at M: accelerations of curves ``e^{ta} M e^{-ta}``."""
    vector, frame = torch.zeros_like(m), torch.linalg.eigh(m)[1]
    pairs = torch.combinations(torch.arange(len(m))).tolist()
    for (i, j), unit in product(pairs, (1.0, 1j)):
        a = unit * torch.outer(frame[:, i], frame[:, j].conj())
        a = a - a.mH
        a = a / torch.linalg.matrix_norm(a @ m - m @ a)
        velocity = a @ m - m @ a
        vector = vector + a @ velocity - velocity @ a
    return vector


# %%
run = gallery.begin(__doc__)
generator = torch.Generator().manual_seed(8)
t_end, steps = 2.0, 200 if run.quick else 2000
fine = torch.linspace(0, t_end, steps + 1, dtype=F64)
options = {"t_end": t_end, "dt": t_end / steps, "generator": generator, "keep_points": True}
figure, (circles, spectrum, volume) = run.figure(1, 3, aspect=1.1)

start, r0 = torch.tensor([[0.6, 0.0], [0.0, -0.6]], dtype=F64), 0.6
for index, color in ((2.0, "C1"), (math.inf, "C0")):
    path = dln.isospectral_flow(start, dyson_index=index, save_at=fine, **options)
    x = torch.stack(path.points)
    # Without the trace, which the flow of index 2 moves too.
    a, b = 0.5 * (x[:, 0, 0] - x[:, 1, 1]), x[:, 0, 1]
    circles.plot(
        a, b, color=color, linewidth=0.7, ls="-", label=f"index {index:g}".replace("inf", "∞")
    )
    if math.isinf(index):
        radius = (r0**2 + path.t).sqrt()
        assert ((a * a + b * b).sqrt() - radius).abs().max() < 1e-8
for t in (0.0, 0.5, 1.0, t_end):
    circles.add_patch(Circle((0, 0), math.sqrt(r0**2 + t), fill=False, color="k", ls=":"))
circles.plot([], [], "k:", label="orbits at times 0, ½, 1, 2")
circles.set(title="2 × 2, trace 0", xlabel="$(M_{11} - M_{22})/2$", ylabel="$M_{12}$")
circles.set(aspect="equal", xlim=(-2.2, 2.2), ylim=(-2.2, 3.4), yticks=(-2, 0, 2))
circles.legend(loc="upper left")

# %%
# Hermitian matrices of four different noises have the same eigenvalues at all times.
m = torch.randn(5, 5, generator=generator, dtype=C128)
m = m + m.mH
t = torch.linspace(0, t_end, 101, dtype=F64)
flow = dln.dyson(torch.linalg.eigvalsh(m), dyson_index=math.inf, t_end=t_end, save_at=t)
runs = dln.isospectral_flow(m.repeat(4, 1, 1), dyson_index=math.inf, save_at=t, **options)
spectra = torch.linalg.eigvalsh(torch.stack(runs.points))
away = (spectra - flow.states.unsqueeze(1)).abs().max()
apart = torch.linalg.matrix_norm(runs.final[0] - runs.final[1])
entries = torch.stack(runs.points)[:, :, 0, 0].real
lines = spectrum.plot(t, entries, color="C1", ls="-", linewidth=0.6)
lines[0].set_label("entry $M_{11}$ of 4 runs")
spectrum.plot(t, spectra[:, 0], color="C0", ls="-")[0].set_label("eigenvalues of one run")
spectrum.plot(t[::10], flow.states[::10], "k.")[0].set_label("deterministic flow")
low, high = float(flow.states.min()), float(flow.states.max())
spectrum.set(
    title="5 × 5, Hermitian", xlabel="time", ylabel="eigenvalues; matrix entry", xlim=(0, t_end)
)
spectrum.set_ylim(low - 0.5, high + 0.55 * (high - low))
spectrum.legend(loc="upper left")
gaps = torch.stack([(x[:, None] - x)[*torch.tril_indices(5, 5, -1)] for x in flow.states])
log_volume = 2 * (gaps / gaps[0]).log().sum(-1)
volume.plot(t, log_volume, color="C0", ls="-")
volume.set(
    title="5 × 5, orbit", xlabel="time", ylabel="log (volume / volume at 0)", xlim=(0, t_end)
)
run.save(figure)

# %%
# The velocity of the eigenvalues is minus one half of the mean curvature of the orbit.
x, point = flow.states[50], runs.points[50][0]
normal = torch.linalg.eigh(point)[1]
curvature = (normal.mH @ mean_curvature(point) @ normal).diagonal().real
velocity = (x[:, None] - x).fill_diagonal_(math.inf).reciprocal().sum(-1)
off = (velocity + 0.5 * curvature).abs().max() / velocity.abs().max()
print(f"eigenvalues of the runs away from the deterministic flow by {float(away):.1e}")
print(f"two runs apart from each other by {float(apart):.2f}")
print(f"velocity away from minus one half of the mean curvature by {float(off):.1e}")
assert away < 1e-8
assert apart > 0.1
assert off < 1e-8
assert (log_volume.diff() > 0).all()
