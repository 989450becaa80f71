"""Flat directions of networks that are too large for the rank of their Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.learning.architecture.sampling import GroupSpan, SampledAxes
from dln_geometry.testing import assert_close
from tests.learning.architecture.networks.outsiders import Written

F64 = torch.float64


def flat(direction):
    return torch.cat([x.flatten() for x in direction.values()])


def test_sampled_directions_are_those_of_matrices_on_a_few_slices(generator):
    shapes = {"kernel": (7, 5, 2), "vector": (5,), "number": ()}
    params = {n: torch.randn(s, generator=generator, dtype=F64) for n, s in shapes.items()}
    places = {7: torch.tensor([2, 3]), 5: torch.tensor([0, 3, 4])}
    axes = SampledAxes(params, places)
    basis = torch.stack([flat(axes.direction(e)) for e in torch.eye(axes.count, dtype=F64)], 1)
    assert_close(basis.mT @ basis, torch.eye(axes.count, dtype=F64), ops=1000)
    gradient = {n: torch.randn(s, generator=generator, dtype=F64) for n, s in shapes.items()}
    assert_close(axes.row(gradient), flat(gradient) @ basis, scale=100.0)
    ones = {n: torch.full_like(q, n == "vector") for n, q in params.items()}
    written = [flat(ones)]
    written += [flat({n: q if n == m else 0 * q for n, q in params.items()}) for m in params]
    for name, axis in (("kernel", 0), ("kernel", 1), ("vector", 0)):
        q = params[name].movedim(axis, 0)
        at = places[len(q)].tolist()
        for i in at:
            for added in (torch.ones_like(q[0]), *(q[j] for j in at)):
                x = torch.zeros_like(q)
                x[i] = added
                moved = {n: torch.zeros_like(y) for n, y in params.items()}
                moved[name] = x.movedim(0, axis)
                written.append(flat(moved))
    explicit = torch.stack(written, 1)
    assert int(torch.linalg.matrix_rank(explicit)) == axes.count
    assert_close(basis @ (basis.mT @ explicit), explicit, ops=1000, scale=10.0)


def test_spans_have_the_dimension_of_all_generators(generator):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(4, 2, bias=False), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3),
            nn.BatchNorm1d(3), nn.Linear(3, 3),
        ).double()  # fmt: skip
    found = learning.symmetries_of(net, loss="cross_entropy")
    groups = [g for g in found if g.kind != "permutation"]
    # The rescalings inside a gauge are in it already.
    groups += [g.diagonal() for g in groups if g.kind == "gauge"]
    params = {n: p.detach() for n, p in net.named_parameters()}
    span = GroupSpan(groups, params)
    columns = []
    for s in torch.eye(span.count, dtype=F64):
        moved = span.moved(s)
        columns.append(flat({n: moved.get(n, torch.zeros_like(p)) for n, p in params.items()}))
    matrix = torch.stack(columns, 1)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=F64) for n, p in params.items()}
    assert_close(span.pulled(direction), flat(direction) @ matrix, scale=100.0)
    assert span.dimension() == int(torch.linalg.matrix_rank(matrix)) == span.count - 2
    inside = matrix @ torch.linalg.lstsq(matrix, flat(direction), driver="gelsd").solution
    assert (flat(span.rest(direction)) - (flat(direction) - inside)).norm() < 1e-8
    # Each kind moves parameters as its symmetry does.
    for group in groups:
        symmetry, one = group.symmetry(params), GroupSpan([group], params)
        s = torch.randn(one.count, generator=generator, dtype=F64)
        own = symmetry.generated(params, s.reshape(symmetry.shape(params)))
        scale = one.moved(s)
        ratio = float(scale[group.names[0]].norm() / own[group.names[0]].norm())
        for name, change in own.items():
            assert_close(scale[name], ratio * change, scale=100.0)


def small(*layers, seed=1):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(*(make() for make in layers))


def test_large_networks_are_probed(generator):
    net = small(lambda: nn.Linear(80, 150), nn.ReLU, lambda: nn.Linear(150, 70), nn.Tanh,
                lambda: nn.Linear(70, 5))  # fmt: skip
    report = learning.symmetry_coverage(net, torch.randn(20, 80, generator=generator))
    assert report.parameters > 20_000
    assert (report.found, report.true, report.bounds[0]) == (150, 150, 150)
    assert report.is_complete
    assert "too many for the rank" in report.reason
    assert "none of them in no group" in report.reason
    assert report.bounds[1] < report.parameters


def test_two_biases_of_one_sum_are_found_in_large_networks(generator):
    with torch.random.fork_rng():
        net = Written(
            lambda s, x: s.c(torch.relu(s.a(x)) @ s.b.weight.T + s.b.bias + s.d(x)).tanh(),
            a=nn.Linear(60, 150), b=nn.Linear(150, 90), d=nn.Linear(60, 90), c=nn.Linear(90, 4),
        )  # fmt: skip
    report = learning.symmetry_coverage(net, torch.randn(20, 60, generator=generator))
    shifts = [g for g in report.groups if g.kind == "shift"]
    assert {g.names for g in shifts} == {("b.bias", "d.bias")}
    assert shifts[0].terms[1].factor == -1


def test_what_no_group_explains_is_told_of_large_networks(generator):
    with torch.random.fork_rng():
        net = Written(
            lambda s, x: s.c(s.a(x) * s.b(x).tanh()),
            a=nn.Linear(90, 110), b=nn.Linear(90, 110), c=nn.Linear(110, 4),
        )  # fmt: skip
    report = learning.symmetry_coverage(net, torch.randn(20, 90, generator=generator))
    # The sizes of both factors of a gate, which the graph does not know.
    assert (report.found, report.true, report.is_complete) == (0, None, False)
    assert report.bounds[0] == 4
    assert "4 of them in no group" in report.reason


@pytest.mark.filterwarnings("ignore:symmetries that hold units")
def test_rows_that_no_input_reaches_are_told(generator):
    with torch.random.fork_rng():
        net = Written(
            lambda s, x: s.c((s.w(x) + s.p(torch.arange(x.shape[1]))).tanh()),
            w=nn.Embedding(30, 40), p=nn.Embedding(500, 40), c=nn.Linear(40, 5),
        )  # fmt: skip
    report = learning.symmetry_coverage(net, torch.randint(30, (3, 7), generator=generator))
    assert report.true is None
    assert f"{493 * 40} entries have no gradient" in report.reason
