"""Symmetries and the equation of motion."""

from __future__ import annotations

from tests.learning.wrong_calls.values import (
    FLAG,
    MODULES,
    NUMBER,
    OPTIONAL,
    POSITIVE,
    RULE,
    SEED,
    VECTORS,
    Call,
    L,
    angle,
    loss,
    q,
    rule,
    step,
    two,
    vector,
)

MOTION: dict[str, Call] = {
    "central_flow": Call(
        lambda **k: L.central_flow(k["loss"], k["lr"], k["modes"])(k["params"], k["steps"]),
        lambda: {"loss": loss, "lr": 0.1, "modes": 1, "params": q(), "steps": 1},
        {"loss": MODULES, "lr": POSITIVE | RULE},
    ),
    "hessian_spectrum": Call(
        L.hessian_spectrum,
        lambda: {
            "loss": loss,
            "params": q(),
            "top": 1,
            "bottom": 1,
            "probes": 1,
            "steps": 2,
            "reduction": "mean",
            "generator": 0,
        },
        {"top": {"0"}, "bottom": {"0"}, "probes": {"0"}, "generator": SEED},
    ),
    # Symmetries.
    "Symmetry": Call(
        L.Symmetry,
        lambda: {
            "action": lambda params, s: {"w": params["w"] * s.exp()},
            "shape": (),
            "degree": 1,
        },
        {
            "action": {"function", "lazy"} | MODULES,
            "shape": {"list"},
            "degree": OPTIONAL | {"0"},
        },
    ),
    "Translation": Call(
        lambda **k: L.Translation(**k).field(q()),
        lambda: {"name": "w", "direction": [1.0, 2.0]},
        {"direction": {"-1", "2.7", "True"}},
        {"direction": "direction"},
    ),
    "Translation axis": Call(
        lambda **k: L.Translation(**k).field(two()),
        lambda: {"name": "a", "axis": 0},
        {"axis": {"-1", "0"}},
    ),
    "Scale": Call(
        lambda **k: L.Scale(**k).field(two()),
        lambda: {"names": ["a", "b"], "axis": 0},
        {"axis": {"None", "-1", "0"}},
        {"names": "name|names"},
    ),
    "Rescale": Call(
        lambda **k: L.Rescale(**k).field(two()),
        lambda: {"first": "a", "second": "b", "axes": (0, 1)},
        {"axes": OPTIONAL},
        {"first": "first|name", "second": "second|name", "axes": "axes|axis"},
    ),
    "Rotation": Call(
        lambda **k: L.Rotation(**k).field(two()),
        lambda: {"names": "a", "generator": [[0.0, -1.0], [1.0, 0.0]], "axis": 0},
        {"generator": OPTIONAL, "axis": {"-1", "0"}},
        {"names": "name|names"},
    ),
    "Gauge": Call(
        lambda **k: L.Gauge(**k).field(two()),
        lambda: {
            "first": "a",
            "second": "b",
            "generator": [[0.0, -1.0], [1.0, 0.5]],
            "axes": (0, 1),
        },
        {"generator": OPTIONAL},
        {"first": "first|name", "second": "second|name", "axes": "axes|axis"},
    ),
    "symmetry_residual": Call(
        L.symmetry_residual,
        lambda: {"loss": angle, "symmetry": L.Scale("w"), "params": q()},
        {},
        VECTORS,
    ),
    "is_symmetric": Call(
        L.is_symmetric,
        lambda: {"loss": angle, "symmetry": L.Scale("w"), "params": q(), "rtol": 1e-5},
        {"rtol": OPTIONAL | {"2.7"}},
        VECTORS,
    ),
    "check_symmetric": Call(
        L.check_symmetric,
        lambda: {"loss": angle, "symmetry": L.Scale("w"), "params": q(), "rtol": 1e-5},
        {"rtol": OPTIONAL | {"2.7"}},
        VECTORS,
    ),
    # Motion.
    "counter_terms": Call(
        lambda loss, order, params: L.counter_terms(loss, order)(params),
        lambda: {"loss": loss, "order": 1, "params": q()},
        {"order": {"0"}},
    ),
    "equation_of_motion": Call(
        lambda params, **k: L.equation_of_motion(**k)(params),
        lambda: {
            "loss": loss,
            "lr": 0.01,
            "order": 1,
            "check": True,
            "generator": 0,
            "params": q(),
        },
        {"order": {"-1", "0"}, "check": FLAG, "generator": SEED},
    ),
    "EquationOfMotion.field": Call(
        lambda like: L.equation_of_motion(loss, 0.01, -1).field(like),
        lambda: {"like": q()},
        {"like": {"missing", "nan dict"}},
    ),
    "modified_loss": Call(
        lambda loss, lr, params: L.modified_loss(loss, lr)(params),
        lambda: {"loss": loss, "lr": 0.1, "params": q()},
        {"lr": POSITIVE | RULE},
    ),
    "discretization_error": Call(
        lambda loss, lr, order, params: L.discretization_error(loss, lr, order)(params),
        lambda: {"loss": loss, "lr": 0.1, "order": 0, "params": q()},
        {"lr": POSITIVE, "order": {"-1", "0"}},
    ),
    "accumulated_error": Call(
        lambda **k: list(L.accumulated_error(**k)),
        lambda: {"loss": loss, "lr": 0.1, "order": 0, "iterates": [q(), q()]},
        {"lr": POSITIVE, "order": {"-1", "0"}, "iterates": {"list"}},
    ),
    "max_learning_rate": Call(
        L.max_learning_rate,
        lambda: {"loss": loss, "params": q(), "eps": 0.1, "order": 0, "generator": 0},
        {"eps": POSITIVE, "order": {"-1", "0"}, "generator": SEED},
    ),
    "equation_of_motion_from_iterates": Call(
        lambda params, **k: L.equation_of_motion_from_iterates(**k)(params),
        lambda: {"step": step, "lr": 0.1, "order": 2, "params": q()},
        {"lr": POSITIVE, "params": {"missing"}},
    ),
    "motion_of_iterates": Call(
        L.motion_of_iterates,
        lambda: {"iterates": [q(), step(q()), step(step(q()))], "lr": 0.1},
        {"lr": POSITIVE},
    ),
    "momentum_step": Call(
        lambda loss, rule, state: L.momentum_step(loss, rule)(state),
        lambda: {"loss": loss, "rule": rule(), "state": L.with_velocity(q(), q())},
        {"rule": RULE},
        {"state": "state|params|velocity"},
    ),
    "with_velocity": Call(
        L.with_velocity,
        lambda: {"params": q(), "velocity": q()},
        {"params": {"nan dict"}, "velocity": {"nan dict"}},
        VECTORS,
    ),
    "without_velocity": Call(
        L.without_velocity,
        lambda: {"state": L.with_velocity(q(), q())},
        {"state": {"missing", "nan dict"}},
    ),
    "scale_velocity": Call(
        L.scale_velocity,
        lambda: {
            "params": {"w": vector(1.0, 0.0)},
            "gradient": {"w": vector(0.0, 1.0)},
            "lr": 0.1,
            "weight_decay": 0.1,
            "order": 0,
        },
        {"lr": POSITIVE, "weight_decay": NUMBER, "order": {"-1", "0"}},
        {"params": "params|gradient"},
    ),
    "translation_rate": Call(
        L.translation_rate,
        lambda: {"lr": 0.1, "weight_decay": 0.1, "order": 1},
        {"lr": POSITIVE, "weight_decay": NUMBER, "order": OPTIONAL | {"-1", "0"}},
    ),
    "hessian_product": Call(
        lambda loss, params, v: L.hessian_product(loss, params)(v),
        lambda: {"loss": loss, "params": q(), "v": q()},
    ),
    "sharpness": Call(
        L.sharpness,
        lambda: {"loss": loss, "params": q(), "rtol": 0.1, "max_products": 100, "generator": 0},
        {"rtol": OPTIONAL | {"2.7"}, "generator": SEED},
    ),
}
