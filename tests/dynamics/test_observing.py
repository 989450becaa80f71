"""Observables of every run, by name."""

from __future__ import annotations

import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry import losses

F64 = torch.float64
LOSS = losses.Quadratic(torch.ones(3, 2, dtype=F64))


def point(generator, batch=(), depth=3):
    return dln.Collapsed.random(
        (3, 2), 2, depth, scale=0.5, batch=batch, generator=generator, dtype=F64
    )


def layers(generator):
    return [0.6 * torch.randn(*w, generator=generator, dtype=F64) for w in ((4, 2), (3, 4))]


RUNS = {
    "flow": lambda g, **o: dln.gradient_flow(LOSS, point(g), t_end=0.3, **o),
    "batch": lambda g, **o: dln.gradient_flow(LOSS, point(g, (2, 3)), t_end=0.3, save_at=4, **o),
    "core": lambda g, **o: dln.gradient_flow(
        LOSS, point(g, (3,), math.inf), t_end=0.3, save_at=4, **o
    ),
    "layers": lambda g, **o: dln.gradient_flow(LOSS, layers(g), t_end=0.3, **o),
    "free": lambda g, **o: dln.free_energy_flow(LOSS, point(g), beta=2.0, t_end=0.3, **o),
    "kirwan": lambda g, **o: dln.kirwan_ness_flow(layers(g), t_end=0.3, **o),
    "balancing": lambda g, keep_points, **o: dln.balancing_flow(layers(g), [0.0, 0.2, 0.5], **o),
    "several": lambda g, keep_points, **o: dln.balancing_flow(
        [torch.stack([w, 1.5 * w]) for w in layers(g)], [0.1, math.inf], **o
    ),
    "langevin": lambda g, **o: dln.langevin(
        LOSS, point(g), beta=2.0, t_end=0.1, dt=0.02, chains=3, generator=g, **o
    ),
    "cold": lambda g, **o: dln.langevin(LOSS, point(g), beta=2.0, kappa=0, t_end=0.1, **o),
    "upstairs": lambda g, **o: dln.brownian_motion(
        point(g).factors(), t_end=0.1, dt=0.02, upstairs=True, generator=g, **o
    ),
    "gibbs": lambda g, **o: dln.sample_gibbs(
        LOSS, point(g, (3,)), beta=2.0, draws=4, burn_in=5, generator=g, **o
    ),
    "isospectral": lambda g, **o: dln.isospectral_flow(
        torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=F64)),
        dyson_index=1, t_end=0.1, dt=0.01, generator=g, **o,
    ),
}  # fmt: skip


def size(p):
    x = p if isinstance(p, torch.Tensor) else p.matrix if hasattr(p, "matrix") else p
    x = dln.Network(x).matrix if isinstance(x, tuple) else x
    return x.abs().sum((-2, -1))


@pytest.mark.parametrize("name", RUNS)
def test_observables_are_those_of_the_kept_points(name, generator, tmp_path):
    seen = {"size": size, "pair": lambda p: torch.stack([size(p), 2 * size(p)], -1)}
    path = RUNS[name](generator, keep_points=True, observe=seen)
    expected = torch.stack([size(p) for p in path.points])
    assert torch.equal(path.observed["size"], expected)
    assert torch.equal(path.observed["pair"][..., 1], 2 * expected)
    assert path[-1].observed["size"].shape == path.batch_shape
    data = path.to_xarray()
    assert data["pair"].dims[0] == "time"
    assert data["pair"].dims[-1] == "pair_0"
    assert (data["size"].values == expected.numpy()).all()
    loaded = dln.Trajectory.load(path.save(tmp_path / "run"))
    assert torch.equal(loaded.observed["pair"], path.observed["pair"])
    if path.batch_shape:
        part = path.select(-1)
        assert torch.equal(part.observed["pair"], path.observed["pair"][:, -1])


@pytest.mark.parametrize("index", [1, 2.5, math.inf])
def test_particles_are_observed(index, generator):
    seen = {"gap": lambda x: x.diff(dim=-1)}
    motion = {"t_end": 0.1, "generator": generator, "observe": seen}
    motion |= {} if math.isinf(index) else {"dt": 0.01}
    for path in (
        dln.dyson(torch.zeros(2, 3, dtype=F64), dyson_index=index, **motion),
        dln.singular_dyson(torch.ones(2, 3, dtype=F64), (4, 3), dyson_index=index, **motion),
    ):
        assert torch.equal(path.observed["gap"], path.states.diff(dim=-1))
    path = dln.dln_dyson([2.0, 1.0], 3, beta=2.0, **{**motion, "dt": 0.01})
    assert torch.equal(path.observed["gap"], path.singular_values.diff(dim=-1))


@pytest.mark.parametrize(
    ("observe", "error", "words"),
    [
        ([size], TypeError, "observe must be a mapping"),
        ({"a": 3}, TypeError, "observe must map names to functions"),
        ({"loss": size}, ValueError, "observe must use names that a run does not"),
        ({"a b": size}, ValueError, "observe must use names"),
        ({"a": lambda p: torch.ones(5)}, ValueError, r"observe\['a'\] must return real numbers"),
    ],
)
def test_bad_observables_are_refused(observe, error, words, generator):
    for run in (RUNS["langevin"], RUNS["batch"]):
        with pytest.raises(error, match=words):
            run(generator, observe=observe)


def test_observing_the_balancing_flow_does_not_change_it(generator):
    start, times = layers(generator), [0.0, 0.3, 0.3, 4.0]
    path = dln.balancing_flow(start, times, observe={"first": lambda w: w[0]})
    for point, first, plain in zip(
        path.points, path.observed["first"], dln.balancing_flow(start, times), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(point, plain, strict=True))
        assert torch.equal(first, plain[0])
    assert path.t.tolist() == times
    assert torch.equal(path.loss[0], sum(w.square().sum() for w in start) / 2)
    assert (path.loss.diff() <= 0).all()
    assert path.defect.max() < 1e-12
    alone = dln.balancing_flow(start, math.inf, observe={})
    assert (len(alone), alone.observed) == (1, {})
    assert bool(dln.is_balanced(alone.final))


def test_the_central_flow_is_observed(generator):
    loss = lambda p: (p["a"] * p["b"] - 1).square().sum() / 2  # noqa: E731
    start = {name: torch.rand(3, generator=generator, dtype=F64) for name in ("a", "b")}
    flow = dln.learning.central_flow(loss, 0.1)
    seen = {"product": lambda p: p["a"] * p["b"], "size": lambda p: float(p["a"].norm())}
    path = flow(start, 6, save_every=2, observe=seen)
    products = [p["a"] * p["b"] for p in path.params]
    assert torch.equal(path.observed["product"], torch.stack(products))
    assert path.observed["size"].shape == (4,)
    assert flow(start, 1).observed == {}
    with pytest.raises(TypeError, match="observe must map names"):
        flow(start, 1, observe={"a": 3})
    with pytest.raises(ValueError, match="names that a run does not"):
        flow(start, 1, observe={"sharpness": lambda p: p["a"]})
