"""One Brownian motion at every depth: in ``rho = sqrt(N) s^{1/N}`` the depth cannot be seen.

Noise that is isotropic in the geometry of depth N, ``dX = U (sqrt(a_ij) dB_ij) V^T`` with its
drift, moves end-to-end matrices in very different ways: the deeper, the stiller singular values
stand near zero and the farther they jump away from it. But the volume of the metric is ``prod
d rho_k prod |rho_i^2 - rho_j^2|`` up to a constant, and the radial directions are flat: in rho the
singular values are those of a plain matrix Brownian motion, whatever the depth. One sees paths at
depths 1, 3 and 10, driven by product steps of the matrices, in s and in rho, and the law of rho at
the end against an exact sample; and that of ``log s`` at infinite depth, Dyson Brownian motion of
index 1.

Sources: Menon, arXiv 2411.09004; Cohen, Menon, Veraszto, arXiv 2210.12497, for infinite depth.
"""

from __future__ import annotations

import math
import sys

import torch
from matplotlib.figure import Figure
from scipy import stats

import dln_geometry as dln
from dln_geometry.dynamics.dyson import dyson, singular_dyson
from dln_geometry.dynamics.noise import brownian_motion

F64 = torch.float64
DEPTHS = (1, 3, 10)


def compare(ax, sample, exact, name):
    """Draw distribution functions against the exact ones; return the least p-value."""
    share = torch.linspace(0, 1, len(sample), dtype=F64)
    for k in range(sample.shape[-1]):
        label = f"depth {name}" if k == 0 else None
        color = f"C{[*DEPTHS, math.inf].index(name)}"
        ax.plot(sample[:, k].sort().values, share, color=color, linewidth=1, label=label)
    pairs = [(sample[:, k].numpy(), exact[:, k].numpy()) for k in range(sample.shape[-1])]
    return min(stats.ks_2samp(a, b).pvalue for a, b in pairs)


def main(quick=False):
    generator = torch.Generator().manual_seed(7)
    rho, t_end, chains, dt = torch.tensor([1.5, 0.9, 0.4], dtype=F64), 1.0, 400, 0.005
    if quick:
        chains, dt = 150, 0.02
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    *axes, law, last = figure.subplots(1, 5)
    exact = singular_dyson(rho.repeat(20_000, 1), (3, 3), t_end=t_end, generator=generator).final
    t = torch.linspace(0, t_end, 101 if not quick else 26, dtype=F64)
    print("depth  median of the largest: s      rho (exact)        p-value")
    for ax, depth in zip(axes, DEPTHS, strict=True):
        start = dln.EndToEnd.of(torch.diag((rho / depth**0.5) ** depth), depth)
        path = brownian_motion(
            start, t_end=t_end, dt=dt, generator=generator, chains=chains, save_at=t
        )
        s = path.singular_values
        radial = depth**0.5 * s ** (1 / depth)
        ax.plot(t, s[:, 0], color="C7", linewidth=0.8)
        ax.plot(t, radial[:, 0], color=f"C{DEPTHS.index(depth)}", linewidth=1.2)
        ax.set(title=f"depth {depth}", xlabel="time", xlim=(0, t_end), ylim=(0, 5))
        p = compare(law, radial[-1].flip(-1), exact, depth)
        middle = [float(x[:, -1 if x is exact else 0].median()) for x in (s[-1], radial[-1], exact)]
        print(f"{depth:<6} {middle[0]:>26.3f} {middle[1]:>8.3f} ({middle[2]:.3f}) {p:>14.2f}")
        assert p > 1e-4

    start = dln.EndToEnd.of(torch.diag(rho), math.inf)
    path = brownian_motion(
        start, t_end=t_end, dt=dt, generator=generator, chains=chains, save_at=[t_end]
    )
    logs = path.singular_values[-1].log().flip(-1)
    # Unit noise in log s: the time of index 1, whose noise is sqrt(2), runs at half speed.
    exact_logs = dyson(
        rho.log().repeat(20_000, 1), dyson_index=1, t_end=t_end / 2, generator=generator
    ).final
    p = compare(last, logs, exact_logs, math.inf)
    print(f"inf    {float(path.singular_values[-1][:, 0].median()):>26.3f} {'':>27} {p:>5.2f}")
    assert p > 1e-4
    for ax, x in ((law, exact), (last, exact_logs)):
        share = torch.linspace(0, 1, len(x), dtype=F64)
        for k in range(3):
            label = "exact" if k == 0 else None
            ax.plot(x[:, k].sort().values, share, "k:", linewidth=1.2, label=label)
        ax.legend(fontsize="small", loc="lower right")
    axes[0].set_ylabel(r"grey $s$, colour $\rho = \sqrt{N} s^{1/N}$")
    law.set(title=r"law of $\rho$", xlabel=r"$\rho$ at time 1")
    last.set(title=r"law of $\log s$", xlabel=r"$\log s$ at time 1", xlim=(-6, 8))
    figure.savefig("one_brownian_motion.png", dpi=150)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
