"""Everything public survives copies, pickles and other processes; caches stay behind."""

from __future__ import annotations

import copy
import inspect
import math
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry import learning, losses, ode
from dln_geometry.learning import closed_forms
from manifolds import geomstats_dln, pymanopt_dln
from tests.copies.objects import ALL, MODULE_LOSS, PAIR, X

FACES = (dln, learning, losses, closed_forms, ode, pymanopt_dln, geomstats_dln)
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
# Protocols, and the working parts of the integrators, which no user holds.
PARTS = {
    "ElementwiseLoss",
    "LinkLoss",
    "Loss",
    "Pattern",
    "BlockNorms",
    "ChebyshevStepper",
    "ExplicitStepper",
    "Keeper",
    "KnownField",
    "Parts",
    "RosenbrockStepper",
    "RepeatedStepper",
    "Secants",
    "Tape",
}


def told(value):
    """Return the tensors, numbers and texts of an object, whatever holds them; without caches."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return np.asarray(torch.as_tensor(value).detach()).tolist()
    if value is None or isinstance(value, str | int | float | complex | torch.dtype | torch.device):
        return repr(value)
    if inspect.isroutine(value) or inspect.isclass(value):
        return value.__qualname__
    if isinstance(value, dict):
        return [[told(key), told(part)] for key, part in value.items()]
    if isinstance(value, torch.optim.Optimizer):
        return told(value.state_dict())
    if isinstance(value, learning.ChargeMonitor):
        return told(value.record())
    if isinstance(value, dln.Network):
        return told(list(value))
    if type(value).__module__.startswith("manifolds._geomstats"):
        # Spaces and metrics know each other: what they compute tells them.
        return computed(value)
    content = [told(part) for part in value] if isinstance(value, tuple | list) else []
    content += [str(value)] if isinstance(value, BaseException) else []
    parts = getattr(value, "__dict__", {})
    return [type(value).__name__, content, told({k: parts[k] for k in parts if k not in CACHES})]


CACHES = {"_converted", "_kept", "_grad_and_value", "__notes__"}
"""What is made again when it is asked for."""


def computed(value):
    """Return some numbers that a space, metric, bundle or action of geomstats computes."""
    np.random.seed(0)  # noqa: NPY002 - geomstats draws from the global generator
    space = getattr(value, "_space", getattr(value, "_total_space", None)) or value
    numbers = [getattr(space, name, None) for name in ("dim", "shape", "widths", "rank", "depth")]
    metric = getattr(space, "metric", None)
    if metric is not None:
        point = space.random_point()
        numbers += [point, metric.inner_product(point, point, point)]
    return [type(value).__name__, *map(told, numbers)]


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@pytest.mark.parametrize("name", ALL)
def test_copies_and_pickles(name):
    value = ALL[name]()
    want = told(value)
    for how, made in COPIES.items():
        again = made(value)
        assert type(again) is type(value), how
        assert told(again) == want, how


def test_every_public_class_is_tried():
    classes = {
        name
        for face in FACES
        for name in getattr(face, "__all__", ())
        if inspect.isclass(getattr(face, name))
    }
    assert classes - PARTS <= set(ALL)


def answer(pipe):
    """In a child: tell what has come."""
    pipe.send({name: told(value) for name, value in pipe.recv().items()})


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=FORKS)])
def test_other_processes(method):
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=answer, args=(there,))
    child.start()
    values = {name: make() for name, make in ALL.items()}
    here.send(values)
    assert here.poll(120)
    got = here.recv()
    child.join()
    for name, value in values.items():
        assert got[name] == told(value), name


def test_copies_are_as_good_as_their_originals():
    """A copy continues: losses in flows, modules and monitors in training."""
    for name in ("Quadratic", "Completion", "Sensing", "Regression", "CallableLoss"):
        value = ALL[name]()
        loss = value[0] if isinstance(value, list) else value
        want = dln.gradient_flow(loss, PAIR, t_end=0.01, rtol=1e-3)
        for made in COPIES.values():
            got = dln.gradient_flow(made(loss), PAIR, t_end=0.01, rtol=1e-3)
            assert torch.equal(got.loss, want.loss)
    loss, params = MODULE_LOSS
    for made in COPIES.values():
        assert torch.equal(made(loss)(params), loss(params))
    error = ALL["FlowError"]()
    again = pickle.loads(pickle.dumps(error))
    assert torch.equal(again.trajectory.t, error.trajectory.t)
    assert again.trajectory.final.depth == 3
    assert math.isnan(pickle.loads(pickle.dumps(dln.Trajectory(t=X[0]))).depth)


def test_caches_stay_behind():
    loss = ALL["Completion"]()
    assert loss._kept
    assert loss._converted
    for made in COPIES.values():
        again = made(loss)
        assert not again._kept
        assert not again._converted
    assert loss._kept
