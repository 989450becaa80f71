"""Dimensions found against dimensions true, on the networks that people train."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from dln_geometry import learning
from tests.learning.architecture.networks import models
from tests.learning.architecture.networks.outsiders import OUTSIDERS, Written, free
from tests.learning.architecture.networks.stacks import STACKS
from tests.learning.architecture.routes import rank_of

F64 = torch.float64
SMALL = {**OUTSIDERS, **STACKS}


def outputs(net, params, args):
    with torch.no_grad():
        return functional_call(net, params, args)


def acted(net, group, generator, args):
    """Return how much a random element changes the outputs, relative to them."""
    params = {n: p.detach() for n, p in net.named_parameters()}
    element = group.random_element(params, generator)
    small = tuple(0.3 * a for a in element) if isinstance(element, tuple) else element
    small = 0.3 * element if isinstance(element, torch.Tensor) and element.dtype == F64 else small
    base, moved = (_joined(outputs(net, p, args)) for p in (params, group.act(params, small)))
    return float((moved - base).norm() / base.norm())


@pytest.mark.filterwarnings("ignore:not everything could be traced")
@pytest.mark.parametrize("name", models.MODELS)
def test_all_flat_directions_are_found(name, generator):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net, args = models.MODELS[name]()
    report = learning.symmetry_coverage(net, *args)
    assert report.true is not None
    assert (report.found, report.stops) == (report.true, ()), (name, report)
    assert report.true == models.KNOWN.get(name, report.true)
    assert report.is_complete
    for group in report.groups:
        # The epsilon of a normalisation breaks a scale a little.
        assert acted(net, group, generator, args) < 1e-9, (name, group)


def _joined(value):
    """Return all outputs as one tensor."""
    return torch.cat([x.flatten() for x in value]) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", SMALL)
def test_no_more_and_no_less_is_found_than_there_is(name, generator):
    """Against the rank of a Jacobian that is computed without the search."""
    make, width, true = SMALL[name]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net = make().double()
    x = torch.randn(20, width, generator=generator, dtype=F64)
    report = learning.symmetry_coverage(net, x)
    assert (report.found, report.true, report.stops) == (true, true, ()), report
    if name != "spectral":
        # The singular vectors of a spectral norm are no functions of the weight for autograd.
        far = 2 * torch.randn(60, width, generator=generator, dtype=F64)
        own = {n: p.detach() for n, p in net.named_parameters()}
        ranks = []
        # A unit may be on for all inputs at one point.
        for _ in range(2):
            noise = {
                n: torch.randn(p.shape, generator=generator, dtype=F64) for n, p in own.items()
            }
            params = {n: p + noise[n] / 2 for n, p in own.items()}
            ranks.append(rank_of(lambda at: _joined(functional_call(net, at, (far,))), params))
        assert sum(p.numel() for p in own.values()) - max(ranks) == true
        for group in report.groups:
            assert acted(net, group, generator, (far,)) < 1e-9, (name, group)


def test_what_is_not_understood_is_told(generator):
    with torch.random.fork_rng():
        net = models.Custom()
    x = torch.randn(7, 4, generator=generator)
    report = learning.symmetry_coverage(net, x)
    assert len(report.stops) == 1
    assert "dln_tests::twist" in report.stops[0]
    assert "models.py" in report.stops[0]
    assert report.missing == ()
    seen = []

    def rule(x, w):
        seen.append(tuple(w.shape))
        return [("linear", w.shape[0])]

    learning.register_operator("dln_tests::twist", rule)
    report = learning.symmetry_coverage(net, x)
    assert report.stops == ()
    assert seen
    assert report.found == report.true
    assert "gauge" in {g.kind for g in report.groups}


def everyday(s, x):
    """Operators that no other network here calls, and a power of a tensor."""
    x = x * torch.pow(torch.full((), 0.5), torch.arange(1, 5))
    y = functional.scaled_dot_product_attention(*(3 * [s.a(x).unflatten(-1, (2, 2))]))
    y = functional.logsigmoid(functional.hardswish(y)).flatten(1)[:, None]
    y = functional.interpolate(y, scale_factor=2, mode="linear")
    y = functional.interpolate(y[..., None], scale_factor=2, mode="bicubic").flatten(1)
    return s.b(functional.smooth_l1_loss(y, torch.zeros_like(y), reduction="none"))


def test_everyday_operators_have_rules(generator):
    with torch.random.fork_rng():
        net = Written(everyday, a=nn.Linear(4, 4), b=nn.Linear(32, 2)).double()
    report = learning.symmetry_coverage(net, torch.randn(9, 4, generator=generator, dtype=F64))
    assert report.stops == ()
    assert report.found <= report.true


def sets():
    """Units behind a mean of ReLU are on for all inputs, or for none, at most parameters."""
    first = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    return Written(
        lambda s, x: s.r(s.p(x).mean(1)),
        p=first, r=nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 8])
def test_the_true_dimension_is_that_where_units_switch(seed, generator):
    """4 and 4 rescalings, 9 matrices and 3 shifts between the layers; dead units have more."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        net, x = sets().double(), torch.randn(20, 5, 3, dtype=F64)
    report = learning.symmetry_coverage(net, x)
    assert (report.found, report.true) == (20, 20), report
    far = 2 * torch.randn(60, 5, 3, generator=generator, dtype=F64)
    for group in report.groups:
        assert acted(net, group, generator, (far,)) < 1e-9, group


def test_units_in_a_row_switch_at_some_parameters(generator):
    """2 rescalings of each layer: at random parameters some of these units are off, or all on."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        layers = [nn.Linear(3, 2), *(m for _ in range(3) for m in (nn.ReLU(), nn.Linear(2, 2)))]
    net = nn.Sequential(*layers).double()
    report = learning.symmetry_coverage(net, torch.randn(20, 3, generator=generator, dtype=F64))
    assert (report.found, report.true) == (6, 6), report


def test_what_the_masks_of_an_example_do_not_reach_is_no_symmetry(generator):
    """Two inputs that are always alike are two inputs: hidden units span 2 of 3 dimensions."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net = Written(lambda s, x: s.b(torch.tanh(s.a(x))), a=nn.Linear(2, 3), b=nn.Linear(3, 2))
        net = net.double()
    x = torch.randint(2, (20, 1), generator=generator).double().expand(20, 2).clone()
    groups = [g for g in learning.symmetries_of(net, x) if "b.weight" in g.names]
    assert {g.kind for g in groups} == {"permutation"}


def covered(*inputs, rule=None):
    """Report on a small network, whose operators may have a rule that is no rule."""
    if rule is not None:
        learning.register_operator("aten::frac", rule)
    try:
        return learning.symmetry_coverage(
            Written(lambda s, x: s.a(x).frac(), a=nn.Linear(3, 2)), *inputs
        )
    finally:
        learning.register_operator("aten::frac", lambda x: ())


@pytest.mark.filterwarnings("ignore:not everything could be traced")
def test_what_has_no_gradient_or_no_entries_is_told(generator):
    x = torch.randn(5, 3, generator=generator, dtype=F64)
    with torch.random.fork_rng():
        detached = Written(lambda s, x: s.a(x).detach(), a=nn.Linear(3, 2)).double()
        empty = Written(lambda s, x: s.a(x @ s.w), w=free(3, 0), a=nn.Linear(1, 2))
        empty.a.weight = free(2, 0)
        empty = empty.double()
        sparse = Written(lambda s, x: torch.sparse.mm(x, s.w), w=free(3, 2)).double()
    report = learning.symmetry_coverage(detached, x)
    assert (report.found, report.true) == (0, None)
    assert "no gradient" in report.reason
    assert learning.symmetry_coverage(empty, x).found == 0
    report = learning.symmetry_coverage(sparse, x.to_sparse())
    assert (report.found, report.true) == (0, 0)


def test_all_exponents_of_one_product_are_found(generator):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        layers = {"a": nn.Linear(4, 3, bias=False), "b": nn.Linear(4, 3, bias=False)}
        net = Written(lambda s, x: s.a(x) * s.b(x) * s.g.square(), g=free(3), **layers).double()
        net.g.data.normal_()
    # Each unit of a by e^s, of b by e^t, and its gain by e^(-(s + t) / 2).
    report = learning.symmetry_coverage(net, torch.randn(8, 4, generator=generator, dtype=F64))
    assert (report.found, report.true) == (6, 6)


def test_what_a_narrow_layer_with_a_bias_never_makes_is_not_read(generator):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        layers = {"p": nn.Linear(2, 4), "a": nn.Linear(4, 3), "c": nn.Linear(3, 2)}
        net = Written(
            lambda s, x: torch.cat([s.c(s.a(s.p(x)).tanh()), s.p(x).tanh()], -1), **layers
        ).double()
    # Two directions of the four are read by each of three units, which have biases.
    report = learning.symmetry_coverage(net, torch.randn(9, 2, generator=generator, dtype=F64))
    assert (report.found, report.true) == (6, 6)


def test_products_and_copies_without_double_precision(generator):
    def experts(s, x):
        y = torch._grouped_mm(x, s.w, offs=torch.tensor([3, 6], dtype=torch.int32))
        # Three columns: the strides of a copy let pairs be complex, those of a view do not.
        pairs = y[..., :2].double().float().reshape(-1, 1, 2)
        return s.a(torch.view_as_real(torch.view_as_complex(pairs)).flatten(1))

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net = Written(experts, w=free(2, 4, 4), a=nn.Linear(2, 3))
        net.w.data.normal_()
    x = torch.randn(6, 4, generator=generator)
    report = learning.symmetry_coverage(net, x)
    # Unused columns of both matrices, and the gauge between each of them and the last layer.
    assert (report.found, report.true) == (16 + 4, 16 + 4)
    assert report.gap > 1e6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: learning.symmetry_coverage(models.Custom()), ValueError, "inputs must be the arg"),
        (lambda: learning.register_operator(3, len), TypeError, "op must be an operator of torch"),
        (lambda: learning.register_operator("mul", len), ValueError, 'op must be a name such as'),
        (lambda: learning.register_operator("a::b", 3), TypeError, "rule must be a function"),
        (lambda: covered(torch.ones(0, 3)), ValueError, "example_input must give outputs with"),
        (lambda: covered([[0.5] * 3] * 4), ValueError, "float, float, and 4 more"),
        (lambda: covered(torch.ones(2, 3).to("meta")), ValueError, "must be what the module can"),
        (lambda: covered(torch.ones(2, 3), rule=lambda x: 3), ValueError, "pairs of an algebra"),
        (lambda: covered(torch.ones(2, 3), rule=lambda x: 1 / 0), ValueError, "got ZeroDivision"),
        (
            lambda: covered(torch.ones(2, 3), rule=lambda x: [("linear", "a")]),
            ValueError,
            "rule of aten::frac must return pairs",
        ),
    ],
)  # fmt: skip
def test_bad_input(make, error, message):
    with torch.random.fork_rng(), pytest.raises(error, match=message):
        make()
