"""Functions of points, with the powers by which they scale."""

from __future__ import annotations

import math

import torch

import dln_geometry as dln
from tests.properties.cases import Law, OfPoint


def kernel(k: OfPoint) -> float:
    return k.exponent


def length(k: OfPoint) -> float:
    """The degree of lengths."""
    return 1.0 - 0.5 * k.exponent


def inside(k: OfPoint) -> bool:
    """Whether the point moves in all directions, or in those of its frames."""
    return not k.point.depth.infinite or k.point.shape == (k.point.rank, k.point.rank)


def volume(k: OfPoint) -> float:
    p, f = k.point, 1 + k.point.dtype.is_complex
    outside = 0 if p.depth.infinite else sum(p.shape) - 2 * p.rank
    return -0.5 * f * k.exponent * p.rank * (p.rank + outside)


def orbit(k: OfPoint) -> float:
    p, f = k.point, 1 + k.point.dtype.is_complex
    pairs = 0.5 * f * k.exponent * 0.5 * p.rank * (p.rank - 1)
    phases = 0.5 * (f - 1) * k.exponent * p.rank
    if p.depth.infinite:
        return pairs + phases
    excess = f * (p.depth - 1.0) * (min(p.shape) - p.rank)
    return pairs + phases + excess / p.depth * p.rank


def whole(k: OfPoint) -> bool:
    return float(k.point.depth).is_integer() and k.point.depth <= 20


def is_plane(k: OfPoint) -> bool:
    return min(k.point.shape) > 1 or (max(k.point.shape) > 1 and not k.point.depth.infinite)


def is_wide(k: OfPoint) -> bool:
    """Whether there are two directions, in which a curvature is defined."""
    p = k.point
    return is_plane(k) and (p.rank > 1 or not p.depth.infinite)


def pairs_carry_digits(k: OfPoint) -> bool:
    """Whether the two matrices of a point have digits: an N-th root loses them at large N."""
    return k.point.depth.infinite or k.point.depth <= 50


def largest(k: OfPoint) -> float:
    """A unit of length of the case that scales with it."""
    return float(k.point.s.max())


def bend(k: OfPoint) -> float:
    """Return the size of curvatures of the least singular value."""
    return float(k.point.s.min()) ** (k.exponent - 2.0)


def thin_bend(k: OfPoint) -> float:
    """Return that size times N: lengths along singular vectors are sqrt(N) times those across.

    Planes of two vectors of one size are thin then, and the squares of their areas cancel.
    """
    depth = k.point.depth
    return bend(k) * (1.0 if depth.infinite else min(float(depth), 1e4))


def squares(k: OfPoint) -> tuple[float, float]:
    one, two = (float(dln.inner(k.point, z, z).max()) for z in k.vectors)
    return one, two


def ricci_size(k: OfPoint) -> float:
    one, two = squares(k)
    return (one * two) ** 0.5 * bend(k)


def riemann_size(k: OfPoint) -> float:
    one, two = squares(k)
    return one * two * bend(k)


CHEAP: dict[str, Law] = {
    "EndToEnd": Law(lambda k: k.point.matrix, 1.0),
    "Collapsed": Law(
        lambda k: [(c := dln.Collapsed.of(k.point)).matrix, c.point().matrix], 1.0,
        allowed=pairs_carry_digits, loose=100.0,
    ),
    "balanced_factors": Law(
        lambda k: dln.balanced_factors(k.point).matrix, 1.0, allowed=whole, loose=20.0
    ),
    "is_balanced": Law(
        lambda k: dln.is_balanced(dln.balanced_factors(k.point)).to(k.point.s.dtype),
        kind="numbers", allowed=whole,
    ),
    "cometric": Law(lambda k: dln.cometric(k.point, k.covectors[0]), kernel),
    "cometric_sqrt": Law(
        lambda k: dln.cometric_sqrt(k.point, k.covectors[0]), lambda k: 0.5 * kernel(k)
    ),
    "metric": Law(lambda k: dln.metric(k.point, k.vectors[0]), lambda k: 1.0 - kernel(k)),
    "inner": Law(
        lambda k: dln.inner(k.point, *k.vectors), lambda k: 2.0 - kernel(k), "numbers", power=3.0
    ),
    "connection": Law(lambda k: dln.connection(k.point, *k.vectors), 1.0, power=4.0, size=largest),
    "riemannian_hessian": Law(
        lambda k: dln.riemannian_hessian(k.point, *k.covectors, k.vectors[0]), kernel, power=4.0
    ),
    "log_volume_density": Law(
        lambda k: dln.log_volume_density(k.point), volume, "numbers", log=True
    ),
    "entropy": Law(lambda k: dln.entropy(k.point), orbit, "numbers", log=True),
    "entropy_gradient": Law(lambda k: dln.entropy_gradient(k.point), -1.0),
    "free_energy": Law(
        lambda k: dln.free_energy(k.point, Nothing(), 1.0), lambda k: -orbit(k), "numbers", log=True
    ),
    "depth_kernel": Law(
        lambda k: dln.depth_kernel(k.point.s, k.point.depth), kernel, "numbers"
    ),
    "log_depth_kernel": Law(
        lambda k: dln.log_depth_kernel(k.point.s, k.point.depth), kernel, "numbers", log=True
    ),
    "effective_rank": Law(
        lambda k: [
            dln.effective_rank(k.point.s, kind) for kind in ("entropy", "stable", "numerical")
        ],
        kind="numbers",
    ),
    "scalar_curvature": Law(
        lambda k: dln.scalar_curvature(k.point), lambda k: kernel(k) - 2.0, "numbers",
        power=4.0, allowed=inside, loose=30.0, size=bend,
        complex=False,
    ),
    "sectional_curvature": Law(
        lambda k: dln.sectional_curvature(k.point, *k.vectors), lambda k: kernel(k) - 2.0,
        "numbers", power=6.0, allowed=lambda k: inside(k) and is_wide(k), loose=30.0,
        size=thin_bend,
    ),
    "ricci_curvature": Law(
        lambda k: dln.ricci_curvature(k.point, *k.vectors), 0.0, "numbers",
        power=5.0, allowed=inside, complex=False, loose=30.0, size=ricci_size,
    ),
    "riemann_curvature": Law(
        lambda k: dln.riemann_curvature(k.point, *k.vectors, *k.vectors[::-1]),
        lambda k: 2.0 - kernel(k), "numbers", power=6.0, allowed=inside, complex=False, loose=30.0,
        size=riemann_size,
    ),
}  # fmt: skip


class Nothing:
    """The loss that is zero."""

    def value(self, x):
        return x.real.new_zeros(x.shape[:-2])


def short(k: OfPoint, t: float = 0.02) -> tuple[dln.EndToEnd, ...]:
    """Return a tangent vector, much shorter than the way to lower rank."""
    # Of unit size first: the squares in its norm leave the range where it does not.
    z = k.vectors[0] / k.vectors[0].abs().amax((-2, -1), keepdim=True)
    return t * k.point.s[..., -1:, None] * (z / torch.linalg.matrix_norm(z, keepdim=True))


DEAR: dict[str, Law] = {
    "exponential": Law(
        lambda k: dln.exponential(k.point, short(k)).matrix, 1.0, allowed=inside, loose=1e6
    ),
    "geodesic": Law(
        lambda k: dln.geodesic(k.point, short(k), -0.7).matrix, 1.0, allowed=inside, loose=1e6
    ),
    "parallel_transport": Law(
        lambda k: dln.parallel_transport(k.point, short(k), k.vectors[1])[1], 1.0,
        allowed=inside, loose=1e6,
    ),
    "logarithm": Law(
        lambda k: dln.logarithm(k.point, dln.exponential(k.point, short(k))), 1.0,
        allowed=inside, loose=1e7,
    ),
    "distance": Law(
        lambda k: dln.distance(k.point, dln.exponential(k.point, short(k))), length, "numbers",
        allowed=inside, loose=1e7,
    ),
    "gradient_flow": Law(
        lambda k: dln.gradient_flow(
            dln.losses.Quadratic((2 * k.point.matrix).expand(k.point.matrix.shape)), k.point,
            t_end=0.05 * largest(k) ** -kernel(k), rtol=1e-7,
        ).final.matrix, 1.0, loose=1e9, extreme=False,
    ),
    "brownian_motion": Law(
        lambda k: dln.brownian_motion(
            k.point, t_end=2e-4 * largest(k) ** (2.0 - kernel(k)),
            dt=1e-4 * largest(k) ** (2.0 - kernel(k)), generator=3,
        ).singular_values[-1], 1.0, "numbers", loose=1e3, batched=False,
        turning=False, extreme=False,
        allowed=lambda k: math.isfinite(k.point.depth),
    ),
}  # fmt: skip
