"""Calls of laws, diagnostics, the integrator, checks and figures."""

from __future__ import annotations

import torch

import dln_geometry as dln
from dln_geometry import exact, laws, ode, plot, testing
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    ATOL,
    AXES,
    CHAINS,
    F64,
    FILE,
    KEPT,
    KIND,
    LIMIT,
    LOSS,
    PAIR,
    PATH,
    POINT,
    REAL_JUNK,
    SAVED,
    SPECTRUM,
    VALUES,
    X,
    decay,
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


UNBALANCED = dln.lambda_balanced(X, 0.5, (X.shape[1], X.shape[1], X.shape[0]))


def first_of(points):
    return points[:, 0]


def len_of(a):
    return a


def doubled(x, generator, store=None, every=None):
    return 2 * x


def swept(run, axes, **options):
    return dln.sweep(run, axes, **options)["len_of"].values


def entered(**arguments):
    """Enter and leave the style."""
    with plot.style(**arguments):
        pass


# Times and radii may be arrays, and zero.
LATER = [*wrong.junk(), None, "1.5", wrong.NAN, wrong.INF, wrong.HUGE, -1.0, [wrong.NAN], True]

VARIANCES = [v for v in wrong.POSITIVE if not isinstance(v, list | None)]

CALLS: dict[str, list[Call]] = {
    "laws.beta_hermite": [
        Call(
            laws.beta_hermite,
            {"n": 3, "dyson_index": 1.5, "generator": 3},
            {
                "n": wrong.COUNT,
                "dyson_index": without(wrong.POSITIVE, wrong.INF),
                "t": LATER,
                "size": wrong.BATCH,
                **KIND,
            },
        )
    ],
    "laws.beta_laguerre": [
        Call(
            laws.beta_laguerre,
            {"shape": (3, 2), "dyson_index": 1.5, "generator": 3},
            {
                "shape": wrong.SHAPE,
                "dyson_index": without(wrong.POSITIVE, wrong.INF),
                "t": LATER,
                "size": wrong.BATCH,
                **KIND,
            },
        )
    ],
    "laws.hermite_zeros": [
        Call(
            laws.hermite_zeros,
            {"n": 3},
            {"n": wrong.COUNT, "dtype": wrong.DTYPE, "device": wrong.DEVICE},
        )
    ],
    "laws.laguerre_zeros": [
        Call(
            laws.laguerre_zeros,
            {"n": 3, "excess": 1.5},
            {
                "n": wrong.COUNT,
                "excess": [*wrong.FREE, -1.0],
                "dtype": wrong.DTYPE,
                "device": wrong.DEVICE,
            },
        )
    ],
    "laws.tridiagonal_eigenvalues": [
        Call(
            laws.tridiagonal_eigenvalues,
            {"main": VALUES, "off": SPECTRUM},
            {
                "main": [*wrong.vectors(VALUES), VALUES[:2]],
                "off": [*wrong.vectors(SPECTRUM), VALUES],
            },
            ("main", "off"),
        )
    ],
    "laws.semicircle_radius": [
        Call(
            laws.semicircle_radius,
            {"n": 3, "t": 1.5},
            {"n": wrong.COUNT, "t": [*wrong.junk(), -1.0, "a"]},
        )
    ],
    **{
        f"laws.{name}": [
            Call(
                getattr(laws, name),
                {"x": SPECTRUM, "radius": 2.5},
                {"x": wrong.vectors(SPECTRUM), "radius": LATER},
                ("x",),
            )
        ]
        for name in ("semicircle_density", "semicircle_distribution")
    },
    **{
        f"laws.{name}": [
            Call(
                getattr(laws, name),
                {"s": SPECTRUM, "shape": (3, 2)},
                {"s": wrong.vectors(SPECTRUM), "shape": wrong.SHAPE, "t": LATER},
                ("s",),
            )
        ]
        for name in ("marchenko_pastur_density", "marchenko_pastur_distribution")
    },
    "laws.marchenko_pastur_edges": [
        Call(
            laws.marchenko_pastur_edges,
            {"shape": (3, 2)},
            {"shape": wrong.SHAPE, "t": LATER},
        )
    ],
    "laws.gibbs_log_density": [
        Call(
            laws.gibbs_log_density,
            {"s": SPECTRUM, "shape": (3, 2), "depth": 3, "beta": 1.3},
            {
                "s": [*wrong.vectors(SPECTRUM), -SPECTRUM],
                "shape": wrong.SHAPE,
                "depth": wrong.DEPTH,
                "beta": wrong.POSITIVE,
                "kappa": wrong.POSITIVE,
                "entropy": wrong.FLAG,
                "energy": [v for v in wrong.junk() if not callable(v)],
                "widths": wrong.WIDTHS,
            },
            ("s",),
        )
    ],
    "laws.gibbs_energy_moment": [
        Call(
            laws.gibbs_energy_moment,
            {"order": 2, "shape": (3, 2), "rank": 2, "depth": 3, "beta": 1.3},
            {
                "order": [*wrong.junk(), None, "a", wrong.NAN, wrong.INF, -99, True],
                "shape": wrong.SHAPE,
                "rank": [*wrong.COUNT, 3],
                "depth": [*wrong.DEPTH, wrong.INF],
                "beta": wrong.POSITIVE,
                "kappa": wrong.POSITIVE,
                "entropy": wrong.FLAG,
                "degree": [v for v in wrong.POSITIVE if v is not None],
            },
        )
    ],
    "laws.fuss_catalan_moment": [
        Call(
            laws.fuss_catalan_moment,
            {"order": 2, "depth": 3},
            {"order": wrong.COUNT, "depth": [*wrong.DEPTH, wrong.INF, 2.5]},
        )
    ],
    "thermodynamics.partition_function": [
        Call(
            dln.thermodynamics.partition_function,
            {"loss": None, "shape": (3, 2), "depth": 3, "beta": 1.3},
            {
                "loss": [v for v in wrong.junk() if not callable(v)],
                "shape": wrong.SHAPE,
                "depth": wrong.DEPTH,
                "beta": wrong.POSITIVE,
                "kappa": wrong.POSITIVE,
                "entropy": wrong.FLAG,
                "field": wrong.CHOICE,
                "method": wrong.CHOICE,
                "rank": [*(v for v in wrong.COUNT if v is not None), 3],
                "steps": [*wrong.COUNT, 3],
                "generator": wrong.GENERATOR,
            },
        )
    ],
    "thermodynamics.bayesian_regression": [
        Call(
            lambda **options: (
                dln.thermodynamics.bayesian_regression(**options).posterior_covariance
            ),
            {"inputs": normal(2, 3), "outputs": normal(2), "widths": (3, 4, 1)},
            {
                "inputs": [*wrong.matrices(normal(2, 3)), normal(4, 2, 3)],
                "outputs": [*wrong.vectors(normal(2)), normal(3), normal(2, 2)],
                "widths": [*wrong.SEQUENCE, (2, 4, 1), (3, 4, 2)],
                "noise": [*wrong.FREE, -1.0],
                "variances": [*VARIANCES, [1.0], [1.0, -1.0]],
                "method": wrong.CHOICE,
            },
            ("inputs", "outputs"),
        )
    ],
    "thermodynamics.renormalized_scales": [
        Call(
            dln.thermodynamics.renormalized_scales,
            {"inputs": normal(3, 5), "outputs": normal(3, 2), "widths": (5, 4, 2)},
            {
                "inputs": [*wrong.matrices(normal(3, 5)), normal(4, 3, 5)],
                "outputs": [*wrong.vectors(normal(3)), normal(4, 2), normal(2, 3, 2)],
                "widths": [*wrong.SEQUENCE, (2, 4, 2), (5, 4, 1)],
                "variances": [*VARIANCES, [1.0], [1.0, -1.0]],
            },
            ("inputs", "outputs"),
        )
    ],
    "thermodynamics.sample_exact": [
        Call(
            dln.thermodynamics.sample_exact,
            {"loss": None, "shape": (3, 2), "depth": 3, "beta": 1.3, "generator": 3}
            | {"entropy": False},
            {
                "loss": [v for v in wrong.junk() if not callable(v)],
                "shape": wrong.SHAPE,
                "depth": [*wrong.DEPTH, wrong.INF],
                "beta": wrong.POSITIVE,
                "kappa": wrong.POSITIVE,
                "entropy": wrong.FLAG,
                "field": wrong.CHOICE,
                "rank": [*(v for v in wrong.COUNT if v is not None), 3],
                "size": [*wrong.junk(), -1, (2, -1)],
                "generator": wrong.GENERATOR,
            },
        )
    ],
    "thermodynamics.phase_diagram": [
        Call(
            dln.thermodynamics.phase_diagram,
            {"sizes": [2], "depths": [2, 3], "betas": 1.5, "integrals": False},
            {
                "loss": [v for v in wrong.junk() if not callable(v)],
                "sizes": [*wrong.junk(), None, "ab", [0], [1.5], -1],
                "depths": [*wrong.junk(), None, "ab", [0.5], wrong.NAN],
                "betas": [*wrong.junk(), None, "ab", [0.0], wrong.NAN],
                "kappa": wrong.POSITIVE,
                "entropy": wrong.FLAG,
                "field": wrong.CHOICE,
                "integrals": wrong.FLAG,
            },
        )
    ],
    "laws.fuss_catalan": [
        Call(laws.fuss_catalan, {"depth": 3}, {"depth": [*wrong.DEPTH, wrong.INF]})
    ],
    "laws.gaussian_product": [
        Call(
            laws.gaussian_product,
            {"widths": (3, 2, 4)},
            {
                "widths": [*wrong.SEQUENCE, (3,), (3, 0), (3, -1), (3, wrong.NAN)],
                "variances": [*wrong.junk(), (1.0,), (1.0, -1.0), 0.0],
            },
        )
    ],
    "laws.ullman": [
        Call(laws.ullman, {"exponent": 0.5}, {"exponent": wrong.POSITIVE, "radius": wrong.POSITIVE})
    ],
    **{
        f"laws.{f.__name__}": [Call(f, {"radius": 1.5}, {"radius": wrong.POSITIVE})]
        for f in (laws.quarter_circle, laws.semicircle)
    },
    "laws.marchenko_pastur": [
        Call(laws.marchenko_pastur, {"shape": (3, 2)}, {"shape": wrong.SHAPE, "t": wrong.POSITIVE})
    ],
    "laws.gibbs_energy": [
        Call(
            laws.gibbs_energy,
            {"shape": (3, 2), "rank": 2, "depth": 3, "beta": 1.3},
            {
                "shape": wrong.SHAPE,
                "rank": [*wrong.COUNT, 3],
                "depth": [*wrong.DEPTH, wrong.INF],
                "beta": wrong.POSITIVE,
                "kappa": wrong.POSITIVE,
                "entropy": wrong.FLAG,
                "degree": [v for v in wrong.POSITIVE if v is not None],
            },
        )
    ],
    "sweep": [
        Call(
            swept,
            {"run": len_of, "axes": {"a": [1.0, 2.0]}},
            {
                "run": [*(v for v in wrong.junk() if not callable(v)), None, 3],
                "axes": [*(v for v in wrong.junk() if not isinstance(v, dict)), 3, {}],
                "executor": [*wrong.junk(), 3, "ab"],
                **KEPT,
                "progress": wrong.PROGRESS,
            },
        )
    ],
    "ensemble": [
        Call(
            dln.ensemble,
            {"run": doubled, "inputs": torch.ones(3, 2), "seed": 1},
            {
                "run": [*(v for v in wrong.junk() if not callable(v)), None, 3],
                "inputs": [None, 3, "ab", [], {}, [None], torch.ones(()), POINT],
                "executor": [*wrong.junk(), 3, "ab"],
                "seed": [v for v in wrong.GENERATOR if v is not None],
                "members": [v for v in wrong.COUNT if v is not None],
                "store": wrong.STORE,
                "every": [-1.0, "a", {"days": 1}],
                "progress": wrong.PROGRESS,
            },
        )
    ],
    "laws.ridge_mean_square": [
        Call(
            laws.ridge_mean_square,
            {"shape": (3, 2), "rank": 2, "depth": 3, "beta": 1.3},
            {
                "shape": wrong.SHAPE,
                "rank": [*wrong.COUNT, 3],
                "depth": [*wrong.DEPTH, wrong.INF],
                "beta": wrong.POSITIVE,
                "kappa": wrong.POSITIVE,
                "entropy": wrong.FLAG,
            },
        )
    ],
    **{
        f"exact.{f.__name__}": [
            Call(
                f,
                {"s0": SPECTRUM, "target": SPECTRUM.flip(0), "depth": 3, "t": SPECTRUM},
                {
                    "s0": [*wrong.vectors(SPECTRUM), -SPECTRUM],
                    "target": [*wrong.vectors(SPECTRUM), VALUES],
                    "t": [*wrong.vectors(SPECTRUM), -SPECTRUM],
                    "depth": wrong.DEPTH,
                    "normalized": wrong.NORMALIZED,
                },
                ("s0", "target", "t"),
            )
        ]
        for f in (exact.quadratic, exact.quadratic_residual)
    },
    "exact.two_layers": [
        Call(
            exact.two_layers,
            {"factors": UNBALANCED, "target": X, "t": [0.0, 0.5]},
            {
                "factors": [*wrong.junk(), None, [X]],
                "target": wrong.matrices(X),
                "t": LATER[:-1],
            },
        )
    ],
    **{
        f"diagnostics.{name}": [
            Call(
                getattr(dln.diagnostics, name),
                {"trajectory": CHAINS},
                {
                    "trajectory": wrong.TRAJECTORY,
                    "burn_in": [*wrong.COUNT, 8],
                    "thin": [*wrong.COUNT, 0, 5],
                    **({"method": wrong.CHOICE} if name == "effective_sample_size" else {}),
                },
            )
        ]
        for name in dln.diagnostics.__all__
    },
    "ode.integrate": [
        Call(
            ode.integrate,
            {"field": decay, "y0": torch.ones(2, 3, dtype=F64), "t_end": 0.5},
            {
                "field": [v for v in wrong.junk() if not callable(v)] + [None, "a"],
                "y0": [
                    *wrong.matrices(torch.ones(2, 3, dtype=F64), shaped=False),
                    torch.ones(2, 3, 4),
                ],
                "t_end": without(wrong.POSITIVE, 0),
                "rtol": wrong.RTOL,
                "atol": [*ATOL, [0.1] * 3],
                "blocks": [
                    *wrong.junk(),
                    "ab",
                    2,
                    (1, 1),
                    (0, 3),
                    (-1, 4),
                    (1.5, 1.5),
                    (None,),
                    wrong.NAN,
                    [True, 2],
                ],
                "method": wrong.CHOICE,
                "save_at": SAVED,
                "stop": [
                    *wrong.junk(),
                    3,
                    "ab",
                    {"a": 1},
                    {"a": (1.5, 1.0)},
                    {"a": (0, wrong.NAN)},
                    {"a": (-1, 1.0)},
                    {"a": (0, "b")},
                ],
                "max_steps": LIMIT,
                "max_evaluations": LIMIT,
                "max_seconds": [v for v in wrong.FREE if v is not None and v is not wrong.INF]
                + [-1.0],
                "record": [v for v in wrong.junk() if not callable(v)] + ["a", 3],
                "progress": [v for v in wrong.junk() if not callable(v)] + ["a", 3],
                "checkpoint": [v for v in wrong.junk() if not callable(v)] + ["a", 3],
                "checkpoint_every": [*wrong.FREE, -1.0],
                "resume": [*wrong.junk(), 3, "ab", {}, {"version": 2}, {"version": 1}],
                "correct": [*wrong.junk(), 3, "ab", (1, 2), (decay,)],
            },
        )
    ],
    "Trajectory": [
        Call(PATH.at, {"t": 0.05}, {"t": [*ATOL, 0.2, [0.1, 0.2]]}),
        Call(dln.Trajectory.load, {"path": FILE}, {"path": wrong.STORE}),
    ],
    "testing.assert_close": [
        Call(
            testing.assert_close,
            {"actual": VALUES, "expected": VALUES},
            {
                "actual": [*REAL_JUNK, None, "ab", [[1.0], [1.0, 2.0]]],
                "expected": [*REAL_JUNK, None, "ab", [[1.0], [1.0, 2.0]]],
                "ops": [*wrong.POSITIVE],
                "scale": [v for v in wrong.POSITIVE if v is not None],
                "condition": wrong.POSITIVE,
            },
            ("actual", "expected"),
        )
    ],
    "testing.assert_mean": [
        Call(
            testing.assert_mean,
            {"samples": SPECTRUM, "expected": 1.5},
            {
                "samples": [*wrong.junk(), None, "ab", [1.0], 1.0],
                "sigmas": wrong.POSITIVE,
                "expected": [*REAL_JUNK, None, "ab"],
            },
        )
    ],
    "testing.assert_order": [
        Call(
            testing.assert_order,
            {"steps": [0.1, 0.2, 0.4, 0.8], "errors": [0.1, 0.2, 0.4, 0.8], "order": 1},
            {
                "steps": [*wrong.junk(), None, "ab", [0.1, 0.2], [0.1] * 4, [-1.0, 0.2, 0.4, 0.8]],
                "errors": [*wrong.junk(), None, "ab", [0.1, 0.2]],
                "order": wrong.FREE,
                "tol": wrong.POSITIVE,
                "at_least": wrong.FLAG,
            },
        )
    ],
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
            {"x": [*wrong.matrices(X, shaped=False), normal(2, 3, 2)], "ax": AXES},
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
