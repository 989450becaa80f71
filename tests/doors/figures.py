"""Calls of figures."""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import plot
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    AXES,
    FILE,
    LOSS,
    PAIR,
    PATH,
    SPECTRUM,
    VALUES,
    X,
    normal,
    without,
)

NO_FUNCTIONS = [v for v in wrong.junk() if not callable(v)]

SPANS = [*wrong.junk(), None, "ab", 3, (1.0,), (1.0, 0.0), (0.0, wrong.INF), (wrong.NAN, 1.0)]

RECORD = dln.learning.ChargeRecord(
    torch.arange(3), ("scale",), *(torch.ones(3, 1) for _ in range(3))
)

LAYERS = dln.kirwan_ness_flow(([[1.0]], [[3.0]]), t_end=0.1, keep_points=True)

DENSE = dln.gradient_flow(LOSS, PAIR, t_end=0.1, dense=True)


def first_of(points):
    return points[:, 0]


def entered(**arguments):
    """Enter and leave the style."""
    with plot.style(**arguments):
        pass


CALLS: dict[str, list[Call]] = {
    "plot.loss": [
        Call(plot.loss, {"trajectory": PATH}, {"trajectory": wrong.TRAJECTORY, "ax": AXES})
    ],
    "plot.entropy": [
        Call(
            plot.entropy,
            {"trajectory": PATH},
            {
                "trajectory": wrong.TRAJECTORY,
                "ax": AXES,
                "widths": wrong.WIDTHS,
                "relative": wrong.FLAG,
            },
        )
    ],
    "plot.singular_values": [
        Call(
            plot.singular_values,
            {"trajectory": PATH},
            {"trajectory": wrong.TRAJECTORY, "ax": AXES, "count": wrong.COUNT, "log": wrong.FLAG},
        )
    ],
    "plot.matrix": [
        Call(
            plot.matrix,
            {"x": X},
            {
                "x": [
                    *wrong.junk(),
                    None,
                    "ab",
                    normal(2),
                    normal(2, 3, 2),
                    torch.ones(0, 2),
                    1.0,
                    X.to(torch.complex128),
                    X.to_sparse(),
                    [[1.0], [1.0, 2.0]],
                ],
                "ax": AXES,
            },
        )
    ],
    "plot.spectrum": [
        Call(
            plot.spectrum,
            {"x": X},
            {
                "x": [*wrong.no_complex(wrong.matrices(X, shaped=False)), normal(2, 3, 2)],
                "ax": AXES,
            },
        )
    ],
    "plot.style": [
        Call(
            entered,
            {"width": "page"},
            {"width": [*wrong.POSITIVE, "wide"], "aspect": wrong.POSITIVE},
        )
    ],
    "plot.figure": [
        Call(
            plot.figure,
            {"rows": 1, "cols": 2},
            {
                "rows": wrong.COUNT,
                "cols": wrong.COUNT,
                "width": [*without(wrong.POSITIVE, None), "wide"],
                "aspect": wrong.POSITIVE,
                "pyplot": wrong.FLAG,
            },
        )
    ],
    "plot.depth_color": [Call(plot.depth_color, {"depth": 3}, {"depth": wrong.DEPTH})],
    "plot.depth_label": [
        Call(
            plot.depth_label, {"depth": 3}, {"depth": wrong.DEPTH, "word": [*wrong.junk(), None, 3]}
        )
    ],
    "plot.panel_letters": [
        Call(
            plot.panel_letters,
            {"axes": plot.figure()[1]},
            {
                "axes": [*AXES, None, ["ax"]],
                "letters": [*(v for v in wrong.junk() if type(v) is not list), 3, "ab", []],
            },
        )
    ],
    "plot.save": [
        Call(
            plot.save,
            {"figure": plot.spectrum(X), "path": FILE.with_name("figure")},
            {
                "figure": [*wrong.junk(), None, "figure", 3],
                "path": [*wrong.junk(), None, 3],
                "formats": [*wrong.junk(), None, "docx", 3, [], ["docx"], [3]],
            },
        )
    ],
    "plot.observable": [
        Call(
            plot.observable,
            {"trajectory": PATH, "name": "loss"},
            {
                "trajectory": [v for v in wrong.TRAJECTORY if not isinstance(v, dln.Trajectory)],
                "name": [None, 3, "unknown"],
                "ax": AXES,
                "log": [v for v in wrong.FLAG if v is not None],
            },
        )
    ],
    "plot.particles": [
        Call(
            plot.particles,
            {"trajectory": PATH},
            {"trajectory": wrong.TRAJECTORY, "ax": AXES, "law": NO_FUNCTIONS},
        )
    ],
    "plot.histogram": [
        Call(
            plot.histogram,
            {"values": VALUES},
            {"values": [*wrong.vectors(VALUES), []], "ax": AXES, "density": NO_FUNCTIONS},
        )
    ],
    "plot.landscape": [
        Call(
            plot.landscape,
            {"f": first_of, "count": 5},
            {
                "f": [*NO_FUNCTIONS, None],
                "ax": AXES,
                "x": SPANS,
                "y": SPANS,
                "count": [*wrong.COUNT, 1],
                "levels": wrong.COUNT,
                "lines": wrong.FLAG,
            },
        )
    ],
    "plot.phase_portrait": [
        Call(
            plot.phase_portrait,
            {"velocity": torch.neg, "count": 5},
            {
                "velocity": [*NO_FUNCTIONS, None],
                "ax": AXES,
                "x": SPANS,
                "y": SPANS,
                "count": [*wrong.COUNT, 1],
            },
        )
    ],
    "plot.spectral_plane": [
        Call(
            plot.spectral_plane,
            {"path": PATH},
            {"path": [*wrong.vectors(SPECTRUM), SPECTRUM], "ax": AXES, "modes": [3, (0,), (0, 9)]},
        )
    ],
    "plot.scalar_fibre": [
        Call(
            plot.scalar_fibre,
            {"product": 1.0, "flows": 1},
            {
                "product": wrong.POSITIVE,
                "ax": [*AXES, plot.figure()[1]],
                "flows": wrong.COUNT,
                "reach": [*wrong.POSITIVE, 0.5],
                "generator": wrong.GENERATOR,
            },
        )
    ],
    "plot.depths": [
        Call(
            plot.depths,
            {"runs": {3: PATH}},
            {"runs": [*wrong.junk(), None, {}, {3: 1}], "ax": AXES, "name": ["unknown"]},
        )
    ],
    "plot.charges": [
        Call(plot.charges, {"record": RECORD}, {"record": [*wrong.junk(), None, 3], "ax": AXES})
    ],
    "plot.balancedness": [
        Call(
            plot.balancedness,
            {"trajectory": LAYERS},
            {"trajectory": [*wrong.TRAJECTORY, PATH], "ax": AXES},
        )
    ],
    "plot.animation": [
        Call(
            plot.animation,
            {"trajectory": DENSE, "path": FILE.with_name("flow.gif"), "frames": 2},
            {
                "trajectory": [*wrong.TRAJECTORY, PATH],
                "path": [*wrong.junk(), None, 3, "a.txt"],
                "frames": [*wrong.COUNT, 1],
                "seconds": wrong.POSITIVE,
                "width": wrong.POSITIVE,
            },
        )
    ],
}
