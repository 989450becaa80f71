"""Architectures, monitors, mirrors and constraints."""

from __future__ import annotations

import torch

from tests.learning.wrong_calls.values import (
    FLAG,
    NUMBER,
    OPTIONAL,
    POINT,
    POSITIVE,
    SEARCHED,
    SEED,
    SWAPPED,
    Call,
    L,
    data,
    monitored,
    net,
    product,
    rewritten,
    square,
    swapped,
    two,
    vector,
)


def _controlled():
    module = rewritten()
    return module, torch.optim.SGD(L.dcs_parameter_groups(module, 0.1), lr=0.1)


NETWORKS: dict[str, Call] = {
    # Architecture.
    "Part": Call(
        L.Part,
        lambda: {"name": "w", "axis": 0, "units": 2, "block": 1, "start": 0},
        {"name": {"text", "empty text"}, "axis": {"0"}, "start": {"0"}},
    ),
    "SymmetricGroup": Call(
        L.SymmetricGroup,
        lambda: {
            "kind": "rescale",
            "first": (L.Part("a", 0, 2),),
            "second": (L.Part("b", 1, 2),),
            "through": (),
            "epsilon": 0.0,
        },
        {"epsilon": NUMBER},
    ),
    "symmetries_of": Call(
        L.symmetries_of,
        lambda: {"module": net(), "example_input": data(), "loss": "cross_entropy"},
        {"example_input": OPTIONAL, "loss": OPTIONAL},
        SEARCHED,
    ),
    "sparsify": Call(
        L.sparsify,
        lambda: {"model": net(), "example_input": data(), "threshold": 0.1, "names": "*.weight"},
        {
            "threshold": NUMBER | OPTIONAL,
            "names": OPTIONAL,
        },
        {"model": "model|module|example_input|names", "example_input": "example_input|data"},
    ),
    "symmetry_coverage": Call(
        lambda module, example_input, loss: L.symmetry_coverage(module, example_input, loss=loss),
        lambda: {"module": net(), "example_input": data(), "loss": "cross_entropy"},
        {"loss": OPTIONAL},
        SEARCHED | {"example_input": "inputs|example_input|data"},
    ),
    "register_operator": Call(
        lambda op: L.register_operator(op, lambda *args: ()), lambda: {"op": "dln_tests::none"}, {}
    ),
    "ChargeMonitor": Call(
        L.ChargeMonitor,
        lambda: monitored(
            groups=None,
            example_input=data(),
            loss="cross_entropy",
            every=20,
            window=1,
            history=10,
            units=False,
            moments=3,
            on_break="warn",
            tolerance=1e-3,
            writer=None,
            prefix="charges",
            flush_every=2,
        ),
        {
            "groups": OPTIONAL,
            "example_input": OPTIONAL,
            "loss": OPTIONAL,
            "window": OPTIONAL,
            "history": OPTIONAL,
            "units": FLAG,
            "moments": {"0"},
            "tolerance": OPTIONAL | POSITIVE,
            "writer": OPTIONAL,
            "prefix": {"text", "empty text"},
        },
        {**SEARCHED, "optimizer": "optimizer|groups"},
    ),
    "ChargeMonitor.load_state_dict": Call(
        lambda state: L.ChargeMonitor(**monitored()).load_state_dict(state),
        lambda: {"state": L.ChargeMonitor(**monitored()).state_dict()},
    ),
    # Mirrors.
    "Mirror": Call(
        lambda o, q: L.Mirror(o).reflect(q),
        lambda: {"o": [[0.6], [-0.8]], "q": vector(1.0, 2.0)},
        {"q": {"missing", "shape"}},
        {"q": r"\bq\b|params"},
    ),
    "Mirror.permutation": Call(
        L.Mirror.permutation,
        lambda: {"params": two(), "axes": {"a": 0, "b": 1}, "first": 0, "second": 1, "sign": 1.0},
        {"first": {"0"}, "sign": {"-1"}},
        {"axes": "axes|params"},
    ),
    "Mirror.swap": Call(
        L.Mirror.swap,
        lambda: {"params": two(), "first": "a", "second": "b", "sign": 1.0},
        {"sign": {"-1"}},
        SWAPPED,
    ),
    "mirrors_of": Call(
        L.mirrors_of,
        lambda: {"module": net(), "example_input": data(), "loss": "cross_entropy"},
        {"example_input": OPTIONAL, "loss": OPTIONAL},
        SEARCHED,
    ),
    "collapse_report": Call(
        L.collapse_report,
        lambda: {
            "module": net(),
            "loss_fn": square,
            "data": data(),
            "weight_decay": 0.1,
            "count": 1,
            "tol": 1e-3,
            "loss": None,
            "families": (),
            "generator": 0,
        },
        {
            "weight_decay": NUMBER,
            "tol": NUMBER,
            "loss": OPTIONAL,
            "families": OPTIONAL | {"list"},
            "generator": SEED,
        },
        {"loss_fn": "loss", "data": "data|loss"},
    ),
    "stability": Call(
        L.stability,
        lambda: {
            "loss": product,
            "mirror": swapped(),
            "params": two(),
            "tol": 1e-6,
            "generator": 0,
        },
        {"tol": OPTIONAL | POSITIVE, "generator": SEED},
        POINT,
    ),
    "curvature": Call(
        L.curvature,
        lambda: {"loss": product, "mirror": swapped(), "params": two()},
        {},
        POINT,
    ),
    "batch_curvatures": Call(
        L.batch_curvatures,
        lambda: {
            "losses": [product, product],
            "mirror": swapped(),
            "params": two(),
            "direction": vector(1.0, 0.0, 2.0, 1.0),
        },
        {"direction": OPTIONAL},
        {**POINT, "losses": "loss"},
    ),
    "lyapunov": Call(
        L.lyapunov,
        lambda: {
            "curvatures": [1.0, 2.0, -0.5],
            "lr": 0.1,
            "weight_decay": 0.1,
            "momentum": 0.5,
            "steps": 50,
            "generator": 0,
        },
        {"lr": POSITIVE, "weight_decay": NUMBER, "momentum": {"0"}, "generator": SEED},
    ),
    "noise_threshold": Call(
        L.noise_threshold,
        lambda: {
            "curvatures": [1.0, 2.0, -0.5],
            "weight_decay": 0.1,
            "steps": 50,
            "generator": 0,
        },
        {"weight_decay": NUMBER, "generator": SEED},
    ),
    # Constraints.
    "dcs_": Call(
        L.dcs_,
        lambda: {
            "module": net(),
            "name": "0.weight",
            "o": None,
            "groups": "nuclear",
            "rank": 3,
            "depth": 2,
            "spread": 0.1,
        },
        {"module": {"frozen"}, "o": OPTIONAL, "rank": OPTIONAL, "spread": OPTIONAL | POSITIVE},
        {"module": "module|parameter", "name": "name|parameter", "groups": "groups|rank"},
    ),
    "dcs_ o": Call(
        L.dcs_,
        lambda: {"module": net(), "name": "2.bias", "o": [[0.6], [-0.8]]},
        {"o": OPTIONAL},
        {"module": "module|parameter", "name": "name|parameter"},
    ),
    "dcs_norm": Call(L.dcs_norm, lambda: {"module": rewritten()}),
    "dcs_penalty": Call(
        L.dcs_penalty, lambda: {"module": rewritten(), "kappa": 0.1}, {"kappa": NUMBER}
    ),
    "dcs_parameter_groups": Call(
        L.dcs_parameter_groups,
        lambda: {"module": rewritten(), "kappa": 0.1, "weight_decay": 0.1},
        {"kappa": NUMBER, "weight_decay": NUMBER},
    ),
    "SparsityControl": Call(
        lambda target, rate, threshold: L.SparsityControl(
            *_controlled(), target, rate=rate, threshold=threshold
        ),
        lambda: {"target": 0.5, "rate": 0.1, "threshold": 1e-3},
        {"rate": POSITIVE, "threshold": NUMBER},
    ),
    "syre_": Call(
        L.syre_,
        lambda: {
            "module": net(),
            "names": ["0.weight"],
            "sigma": 0.1,
            "anisotropy": 0.5,
            "generator": 0,
        },
        {
            "module": {"frozen"},
            "names": OPTIONAL,
            "sigma": OPTIONAL | NUMBER,
            "anisotropy": {"0"},
            "generator": SEED,
        },
        {"module": "module|parameter", "names": "name|parameter"},
    ),
}
