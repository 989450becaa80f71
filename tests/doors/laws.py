"""Calls of laws and of thermodynamics."""

from __future__ import annotations

import dln_geometry as dln
from dln_geometry import laws
from tests.doors import wrong
from tests.doors.calls import Call
from tests.doors.shared import (
    KIND,
    SPECTRUM,
    VALUES,
    normal,
    without,
)

VARIANCES = [v for v in wrong.POSITIVE if not isinstance(v, list | None)]


CALLS: dict[str, list[Call]] = {
    "laws.beta_hermite": [
        Call(
            laws.beta_hermite,
            {"n": 3, "dyson_index": 1.5, "generator": 3},
            {
                "n": wrong.COUNT,
                "dyson_index": without(wrong.POSITIVE, wrong.INF),
                "t": wrong.LATER,
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
                "t": wrong.LATER,
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
                {"x": wrong.vectors(SPECTRUM), "radius": wrong.LATER},
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
                {"s": wrong.vectors(SPECTRUM), "shape": wrong.SHAPE, "t": wrong.LATER},
                ("s",),
            )
        ]
        for name in ("marchenko_pastur_density", "marchenko_pastur_distribution")
    },
    "laws.marchenko_pastur_edges": [
        Call(
            laws.marchenko_pastur_edges,
            {"shape": (3, 2)},
            {"shape": wrong.SHAPE, "t": wrong.LATER},
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
                "field": wrong.CHOICE,
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
                "field": wrong.CHOICE,
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
                "field": wrong.CHOICE,
                "entropy": wrong.FLAG,
                "degree": [v for v in wrong.POSITIVE if v is not None],
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
                "field": wrong.CHOICE,
                "entropy": wrong.FLAG,
            },
        )
    ],
}
