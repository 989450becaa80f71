"""Calls of the functions of the metric, of geodesics, curvature and balanced networks."""

from __future__ import annotations

import torch

import dln_geometry as dln
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    BATCH,
    BATCHED,
    DEEP,
    FREE,
    LOSS,
    MORE,
    MOVES,
    NEAR,
    NET,
    OTHER,
    PART,
    POINT,
    SHAPES,
    S,
    X,
    Z,
    normal,
    of_layers,
    of_point,
    two,
    without,
)

UNBALANCED = normal(3, 2), normal(2, 3)
FIELD = without(wrong.CHOICE, None)

CALLS: dict[str, list[Call]] = {
    "pushforward": of_layers(dln.pushforward, "v"),
    "tangent": of_layers(dln.tangent, "v"),
    "horizontal": of_layers(dln.horizontal, "v"),
    "vertical": of_layers(dln.vertical, "v"),
    "integrability": of_layers(dln.integrability, "v", "w"),
    "second_fundamental_form": of_layers(dln.second_fundamental_form, "v", "w"),
    "horizontal_frame": of_layers(dln.horizontal_frame),
    "vertical_frame": of_layers(dln.vertical_frame),
    **{
        name: [
            Call(
                f,
                {"factors": NET, "z": Z},
                {"factors": wrong.lists_of(NET, shaped=False), "z": wrong.matrices(Z)},
                ("z",),
            ),
            Call(f, {"factors": BATCHED, "z": Z}, {"z": [normal(5, 3, 2)]}),
        ]
        for name, f in {"lift": dln.lift, "horizontal_lift": dln.horizontal_lift}.items()
    },
    "cometric": of_point(dln.cometric, "g"),
    "metric": of_point(dln.metric, "z"),
    "cometric_sqrt": of_point(dln.cometric_sqrt, "z"),
    "inner": of_point(dln.inner, "z1", "z2"),
    "connection": of_point(dln.connection, "z", "w"),
    "riemannian_hessian": of_point(dln.riemannian_hessian, "gradient", "hessian_vector", "z"),
    **{
        name: [Call(f, {"factors": NET}, {"factors": wrong.lists_of(NET, shaped=False)})]
        for name, f in {
            "leaf_log_volume_density": dln.leaf_log_volume_density,
            "orbit_log_volume": dln.orbit_log_volume,
        }.items()
    },
    "gauge_eigenvalues": [
        Call(
            dln.gauge_eigenvalues,
            {"factors": UNBALANCED},
            {"factors": [*wrong.lists_of(UNBALANCED, shaped=False), NET]},
        )
    ],
    "leaf_metric": [
        Call(
            dln.leaf_metric,
            {"factors": NET, "z": Z},
            {"factors": wrong.lists_of(NET, shaped=False), "z": wrong.matrices(Z)},
            ("z",),
        )
    ],
    "log_volume_density": of_point(dln.log_volume_density, field=FIELD),
    "entropy_gradient": of_point(dln.entropy_gradient, widths=wrong.WIDTHS, field=FIELD),
    "entropy": [
        Call(
            dln.entropy,
            {"point": X, "depth": 3},
            {
                "point": wrong.no_complex(wrong.matrices(X, shaped=False)),
                "depth": wrong.DEPTH,
                "widths": wrong.WIDTHS,
                "field": FIELD,
            },
            ("point",),
        ),
        Call(
            dln.entropy, {"point": POINT}, {"depth": [*wrong.DEPTH[:-5], 4], "widths": wrong.WIDTHS}
        ),
    ],
    "free_energy": of_point(
        lambda point, **more: dln.free_energy(
            **{"point": point, "loss": LOSS, "beta": 1.3, **more}
        ),
        loss=wrong.losses_of((3, 2))[:-1],
        beta=[v for v in wrong.POSITIVE if v is not wrong.INF],
        widths=wrong.WIDTHS,
    )[:1],
    "log_stiefel_volume": [
        Call(
            dln.log_stiefel_volume,
            {"d": 4, "r": 2},
            {"d": [*wrong.COUNT, 1], "r": [*wrong.COUNT, 5], "field": wrong.CHOICE},
        )
    ],
    **{
        name: [
            Call(
                f,
                {"s": S, "depth": 3},
                {"s": [*wrong.vectors(S), -S, torch.tensor(1.0)], **PART},
                ("s",),
            )
        ]
        for name, f in {
            "depth_kernel": dln.depth_kernel,
            "log_depth_kernel": dln.log_depth_kernel,
        }.items()
    },
    "exponential": of_point(dln.exponential, "z", rtol=wrong.RTOL),
    "geodesic": [
        Call(
            dln.geodesic,
            {"point": POINT, "z": 0.1 * Z, "t": 0.5},
            {
                "point": wrong.POINTS,
                "z": wrong.matrices(Z),
                "rtol": wrong.RTOL,
                "t": [
                    *wrong.junk(),
                    None,
                    "a",
                    wrong.NAN,
                    wrong.INF,
                    [wrong.NAN],
                    ["a"],
                    wrong.HUGE,
                ],
            },
            ("z",),
        )
    ],
    "parallel_transport": of_point(dln.parallel_transport, "z", "w", rtol=wrong.RTOL),
    "logarithm": [two(dln.logarithm, "p", "q", (POINT, NEAR), SHAPES, wrong.POINTS)],
    "distance": [
        two(dln.distance, "p", "q", (POINT, NEAR), [*SHAPES, DEEP], wrong.POINTS),
        Call(dln.distance, {"p": BATCH, "q": NEAR}, {"q": [dln.EndToEnd.of(normal(5, 3, 2), 3)]}),
    ],
    "sectional_curvature": of_point(dln.sectional_curvature, "z", "w"),
    "ricci_curvature": of_point(dln.ricci_curvature, "z"),
    "scalar_curvature": of_point(dln.scalar_curvature),
    "riemann_curvature": of_point(dln.riemann_curvature, "x", "y", "z", "w"),
    "balanced_geodesic": [
        *of_layers(dln.balanced_geodesic, "v", rtol=wrong.RTOL)[:1],
        Call(
            dln.balanced_geodesic,
            {"factors": NET, "v": MOVES, "t": 0.1},
            {"t": [*wrong.junk(), None, "a", wrong.NAN, wrong.INF, [wrong.NAN], ["a"], wrong.HUGE]},
        ),
    ],
    "balanced_transport": [
        Call(
            dln.balanced_transport,
            {"factors": NET, "v": MOVES, "w": MORE},
            {
                "factors": wrong.lists_of(NET, shaped=False),
                "v": wrong.lists_of(MOVES)[:-1],
                "w": wrong.lists_of(MOVES)[:-1],
                "rtol": wrong.RTOL,
            },
        )
    ],
    **{
        name: [two(f, "factors", "other", (NET, OTHER), [FREE, OTHER[:2]], wrong.lists_of(NET))]
        for name, f in {
            "balanced_logarithm": dln.balanced_logarithm,
            "balanced_distance": dln.balanced_distance,
        }.items()
    },
}
