"""Functions of layers, with the powers by which they scale."""

from __future__ import annotations

import torch

import dln_geometry as dln
from tests.properties.cases import Law, OfLayers


def projected(frame, v):
    """Return the projection of layers on the span of an orthonormal frame."""
    weights = sum(
        torch.einsum("...kij,...ij->...k", f.conj(), a).real for f, a in zip(frame, v, strict=True)
    )
    return tuple(torch.einsum("...k,...kij->...ij", weights.to(f.dtype), f) for f in frame)


def is_two(k: OfLayers) -> bool:
    return k.n == 2


def is_tall_pair(k: OfLayers) -> bool:
    """Whether two layers with as many hidden units as columns can have a positive lambda."""
    return k.n == 2 and k.shape[0] >= k.shape[1]


def grams(k: OfLayers) -> tuple[torch.Tensor, ...]:
    """Return the moments of hidden layers alone."""
    return dln.moments(k.layers)


def rotations(k: OfLayers) -> float:
    f = 1 + k.layers[0].is_complex()
    return float(sum(f * d * (d - 1) / 2 + (f - 1) * d for d in k.widths[1:-1]))


def leaf(k: OfLayers) -> float:
    m, n = k.shape
    return -(k.n - 1.0) * m * n * (1 + k.layers[0].is_complex())


def reaches(k: OfLayers) -> bool:
    """Whether all moves of X are moves of the layers."""
    return min(k.widths) >= max(min(k.shape), 1) and k.n > 1


def is_free(k: OfLayers) -> bool:
    """Whether every rotation moves the layers."""
    return k.n > 1 and all(
        d <= min(before, after) or d <= before + after
        for before, d, after in zip(k.widths, k.widths[1:-1], k.widths[2:], strict=False)
    )


ANY: dict[str, Law] = {
    "end_to_end": Law(lambda k: dln.end_to_end(k.layers), lambda k: k.n),
    "Network": Law(
        lambda k: dln.Network(k.layers).singular_values, lambda k: k.n, "numbers", power=4.0
    ),
    "moments": Law(lambda k: dln.moments(k.layers), 2.0, "hidden"),
    "gauge_action": Law(
        lambda k: dln.gauge_action(
            k.layers, [torch.eye(d, dtype=k.layers[0].dtype) for d in k.widths[1:-1]]
        ),
        1.0, "layers",
    ),
    "pushforward": Law(lambda k: dln.pushforward(k.layers, k.moves[0]), lambda k: k.n),
    "lift": Law(lambda k: dln.lift(k.layers, k.z), lambda k: k.n - 1, "layers"),
    "balance": Law(lambda k: dln.balance(k.layers), 1.0, "layers", loose=1e7, complex=False),
    "balancing_velocity": Law(
        lambda k: dln.balancing_velocity(k.layers), 1.0, "layers", power=4.0, loose=1e4
    ),
    "balancing_flow": Law(
        lambda k: dln.balancing_flow(k.layers, 0.02), 1.0, "layers", power=4.0, loose=1e9
    ),
    "gauge_eigenvalues": Law(
        lambda k: dln.gauge_eigenvalues(k.layers), 0.0, "numbers", power=4.0,
        allowed=lambda k: is_two(k) and k.widths[1] <= min(k.shape), loose=1e4,
    ),
    "leaf_metric": Law(
        lambda k: dln.leaf_metric(k.layers, k.z), lambda k: -2.0 * (k.n - 1), power=4.0,
        loose=1e6, allowed=reaches,
    ),
    "leaf_log_volume_density": Law(
        lambda k: dln.leaf_log_volume_density(k.layers), leaf, "numbers", log=True, loose=1e6,
        allowed=reaches,
    ),
    "orbit_log_volume": Law(
        lambda k: dln.orbit_log_volume(k.layers), rotations, "numbers", log=True, loose=1e6,
        allowed=is_free,
    ),
    "Collapsed": Law(
        lambda k: dln.Collapsed.of(k.layers).matrix, lambda k: k.n, power=4.0, loose=1e3,
        batched=False,
    ),
    "with_moments": Law(
        lambda k: dln.with_moments(
            dln.end_to_end(k.layers), dln.moments(k.layers), k.widths
        ).matrix,
        lambda k: k.n, complex=False, loose=1e9, allowed=is_two,
    ),
    "lambda_balanced": Law(
        lambda k: dln.lambda_balanced(
            dln.end_to_end(k.layers), 0.3 * float(k.layers[0].abs().max()) ** 2,
            (k.widths[0], max(k.shape), k.widths[-1]),
        ).matrix,
        lambda k: k.n, complex=False, loose=1e5, batched=False, allowed=is_tall_pair,
    ),
}  # fmt: skip


def product_of_moves(k: OfLayers) -> float:
    """Return the size of what is bilinear in the moves."""
    one, two = (max(float(w.abs().max()) for w in v) for v in k.moves)
    return one * two / max(float(w.abs().max()) for w in k.layers)


BALANCED: dict[str, Law] = {
    "is_balanced": Law(
        lambda k: dln.is_balanced(k.layers).to(k.z.real.dtype), 0.0, "numbers",
        # Denormal layers are balanced up to their rounding alone.
        extreme=False,
    ),
    "tangent": Law(lambda k: dln.tangent(k.layers, k.moves[0]), 1.0, "layers"),
    "horizontal": Law(lambda k: dln.horizontal(k.layers, k.moves[0]), 1.0, "layers"),
    "vertical": Law(lambda k: dln.vertical(k.layers, k.moves[0]), 1.0, "layers"),
    "horizontal_frame": Law(
        lambda k: projected(dln.horizontal_frame(k.layers), k.moves[0]), 1.0, "layers"
    ),
    "vertical_frame": Law(
        lambda k: projected(dln.vertical_frame(k.layers), k.moves[0]), 1.0, "layers"
    ),
    "horizontal_lift": Law(
        lambda k: dln.horizontal_lift(k.layers, k.z), lambda k: 1.0 - k.n, "layers", power=3.0
    ),
    "integrability": Law(
        lambda k: dln.integrability(
            k.layers, dln.horizontal(k.layers, k.moves[0]), dln.horizontal(k.layers, k.moves[1])
        ),
        1.0, "layers", power=4.0, size=product_of_moves,
    ),
    "second_fundamental_form": Law(
        lambda k: dln.second_fundamental_form(k.layers, *k.moves), 1.0, "layers", power=4.0,
        size=product_of_moves,
    ),
}  # fmt: skip


def near(k: OfLayers, t: float = 0.02):
    return tuple(t * v / (1.0 + k.condition) for v in k.moves[0])


BALANCED_DEAR: dict[str, Law] = {
    "balanced_geodesic": Law(
        lambda k: dln.balanced_geodesic(k.layers, near(k)), 1.0, "layers", loose=1e6, complex=False
    ),
    "balanced_transport": Law(
        lambda k: dln.balanced_transport(k.layers, near(k), k.moves[1])[1], 1.0, "layers",
        loose=1e6, complex=False,
    ),
    "balanced_logarithm": Law(
        lambda k: dln.balanced_logarithm(k.layers, dln.balanced_geodesic(k.layers, near(k))), 1.0,
        "layers", loose=1e8, complex=False,
    ),
    "balanced_distance": Law(
        lambda k: dln.balanced_distance(k.layers, dln.balanced_geodesic(k.layers, near(k))), 1.0,
        "numbers", loose=1e8, complex=False,
    ),
    "kirwan_ness_flow": Law(
        lambda k: dln.kirwan_ness_flow(
            k.layers, 1e-2 / float(k.layers[0].abs().max()) ** 2, rtol=1e-8
        ).final,
        1.0, "layers", loose=1e10, batched=False, extreme=False,
    ),
}  # fmt: skip
