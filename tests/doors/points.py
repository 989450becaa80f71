"""Calls of the constructors of points, and of functions of layers."""

from __future__ import annotations

import torch

import dln_geometry as dln
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    BATCHED,
    DRAWN,
    F64,
    FREE,
    FREE_GAUGE,
    GAUGE,
    NET,
    PAIR,
    PART,
    POINT,
    SPECTRA,
    SPECTRUM,
    VH,
    S,
    U,
    X,
    normal,
    of_layers,
)

CALLS: dict[str, list[Call]] = {
    "EndToEnd": [
        Call(
            dln.EndToEnd,
            {"u": U, "s": S, "vh": VH, "depth": 3},
            {
                "u": [*wrong.matrices(U), 2 * U, U + 0.01, U[:, :1]],
                "s": [
                    *wrong.vectors(S),
                    -S,
                    S.flip(-1),
                    S[:1],
                    torch.tensor(1.0),
                    S - 1e3,
                    S[None],
                ],
                "vh": [*wrong.matrices(VH), 2 * VH, VH + 0.01, VH[:1]],
                **PART,
            },
            ("u", "s", "vh"),
        )
    ],
    "EndToEnd.of": [
        Call(
            dln.EndToEnd.of,
            {"x": X, "depth": 3, "rank": 2},
            {
                "x": wrong.no_complex(wrong.matrices(X, shaped=False)),
                "rank": wrong.RANK,
                **PART,
            },
            ("x",),
        )
    ],
    "Collapsed": [
        Call(
            dln.Collapsed,
            {"L": PAIR.L, "R": PAIR.R, "depth": 3},
            {
                "L": [*wrong.matrices(PAIR.L), 2 * PAIR.L, PAIR.L[:, :1], PAIR.L + 0.1],
                "R": [*wrong.matrices(PAIR.R), -PAIR.R[:, :1], PAIR.R * 1.01],
                **PART,
            },
            ("L", "R"),
        )
    ],
    "Collapsed.of": [
        Call(dln.Collapsed.of, {"point": NET}, {"point": wrong.lists_of(NET, shaped=False)})
    ],
    "Collapsed.random": [
        Call(
            dln.Collapsed.random,
            {"shape": (3, 2), "rank": 2, "depth": 3, "dtype": F64, "device": "cpu", "generator": 3},
            {
                "shape": wrong.SHAPE,
                "rank": wrong.RANK,
                "depth": wrong.DEPTH,
                "spectrum": SPECTRA,
                **DRAWN,
            },
        )
    ],
    "Network": [
        Call(dln.Network, {"factors": FREE}, {"factors": wrong.lists_of(FREE, shaped=False)})
    ],
    "random_balanced": [
        Call(
            dln.random_balanced,
            {"widths": (2, 3, 2), "rank": 2, "device": "cpu", "generator": 3},
            {
                "widths": wrong.SEQUENCE,
                "rank": wrong.RANK,
                "spectrum": SPECTRA,
                **DRAWN,
            },
        )
    ],
    "lambda_balanced": [
        Call(
            dln.lambda_balanced,
            {"x": X, "lam": 0.5, "widths": (2, 2, 3)},
            {
                "x": wrong.no_complex(wrong.matrices(X, shaped=False)),
                "lam": [*wrong.junk(), None, wrong.NAN, wrong.INF, [1.0, 2.0]],
                "widths": wrong.SEQUENCE,
            },
        )
    ],
    "with_moments": [
        Call(
            dln.with_moments,
            {"x": X, "moments": [torch.eye(2, device="cpu", dtype=F64)], "widths": (2, 2, 3)},
            {
                "x": wrong.no_complex(wrong.matrices(X, shaped=False)),
                "moments": [*wrong.junk(), None, [], [torch.eye(3)], [wrong.NAN * torch.eye(2)]],
                "widths": [w for w in wrong.SEQUENCE if w is not None],
            },
        )
    ],
    "balanced_factors": [
        Call(
            dln.balanced_factors,
            {"point": POINT},
            {
                "point": wrong.POINTS,
                "widths": wrong.WIDTHS,
                "gauge": [v for v in wrong.lists_of(GAUGE)[:-1] if v is not None]
                + ["hair", FREE_GAUGE],
            },
        ),
        Call(
            dln.balanced_factors,
            {"point": POINT, "gauge": "haar", "generator": 3},
            {"generator": wrong.GENERATOR},
        ),
    ],
    "balanced_dimension": [
        Call(
            dln.balanced_dimension,
            {"widths": (3, 3, 3), "rank": 2},
            {"widths": wrong.SEQUENCE, "rank": wrong.RANK},
        )
    ],
    "balance": [
        Call(
            dln.balance,
            {"factors": FREE},
            {"factors": wrong.lists_of(FREE, shaped=False), "sweeps": wrong.COUNT},
        )
    ],
    "end_to_end": of_layers(dln.end_to_end, layers=FREE)[:1],
    "moments": of_layers(dln.moments, layers=FREE)[:1],
    "is_balanced": of_layers(
        dln.is_balanced, layers=FREE, rtol=[*(v for v in wrong.FREE if v is not None), -1.0]
    )[:1],
    "gauge_action": [
        Call(
            dln.gauge_action,
            {"factors": NET, "gauges": FREE_GAUGE},
            {
                "factors": wrong.lists_of(NET, shaped=False),
                "gauges": [*wrong.lists_of(FREE_GAUGE)[:-1], (0 * GAUGE[0], GAUGE[1])],
            },
        ),
        Call(
            dln.gauge_action,
            {"factors": BATCHED, "gauges": FREE_GAUGE},
            {"gauges": [(normal(5, 2, 2), GAUGE[1])]},
        ),
    ],
    "effective_rank": [
        Call(
            dln.effective_rank,
            {"x": SPECTRUM},
            {"x": [*wrong.vectors(SPECTRUM), -SPECTRUM, 1.0, []], "kind": wrong.CHOICE},
            ("x",),
        ),
        Call(
            dln.effective_rank,
            {"x": POINT, "kind": "numerical"},
            {"rtol": [*(v for v in wrong.FREE if v is not None), -1.0, 1.0]},
        ),
    ],
}
