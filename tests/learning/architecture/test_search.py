from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from dln_geometry.learning.architecture import Part, SymmetricGroup, symmetries_of
from dln_geometry.learning.functional import functionalize
from dln_geometry.learning.symmetry import symmetry_residual
from dln_geometry.testing import assert_close
from tests.learning.networks import EPS, NETWORKS, build

CE = "cross_entropy"


def outputs(net, params, x):
    """Return what cross entropy sees, over several batches if there are any."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        return functional_call(net, params, (x,)).log_softmax(-1)


def parameters(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def found(groups):
    """Return kinds, units and names, for comparison with what is written down."""
    return {(g.kind, g.units, g.names) for g in groups}


@pytest.mark.parametrize("example", [False, True], ids=["", "example"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_claim_leaves_the_loss_unchanged(name, example, generator):
    net, x = build(name, generator)
    groups = symmetries_of(net, x if example else None, loss=CE)
    params = parameters(net)
    base = outputs(net, params, x)
    assert groups
    for group in groups:
        for _ in range(2):
            element = group.random_element(params, generator)
            moved = group.act(params, element)
            if group.kind != "permutation" or not torch.equal(element, torch.arange(group.units)):
                assert all(not torch.equal(moved[n], params[n]) for n in group.names), group
            # A gauge is as ill-conditioned as its exponential.
            condition = 1.0
            if group.kind == "gauge":
                condition = float(torch.linalg.cond(torch.linalg.matrix_exp(element)).max()) ** 2
            assert_close(outputs(net, moved, x), base, ops=3000, condition=condition)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_example_contradicts_nothing_and_changes_nothing(name, generator):
    net, x = build(name, generator)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    without, with_example = symmetries_of(net, loss=CE), symmetries_of(net, x, loss=CE)
    assert set(without) <= set(with_example)
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


# Directions that change nothing but belong to no family of the list: a bias before another layer
# without anything nonlinear between them; hidden units before a layer with weight norm, whose
# columns are scaled and the lengths of its rows corrected.
OTHERS = {
    "mlp": 0, "layer norm": 0, "batch norm": 6, "weight norm": 7, "prelu": 0, "convolution": 0,
    "conv1d": 0,
}  # fmt: skip


def flat_directions(net, draws):
    """Return how many directions change no output on much data."""
    params = parameters(net)
    rows = []
    for x in draws:
        jacobian = torch.autograd.functional.jacobian(
            lambda *values, x=x: outputs(net, dict(zip(params, values, strict=True)), x),
            tuple(params.values()),
        )
        rows.append(torch.cat([j.flatten(2).flatten(0, 1) for j in jacobian], 1))
    s = torch.linalg.svdvals(torch.cat(rows))
    nullity = int((s < 1e-9 * s[0]).sum())
    assert float(s[-nullity - 1] / s[0]) > 1e-6, "the gap must be clear"
    return nullity


def claimed_directions(net, x, generator):
    """Return how many directions the continuous groups span."""
    params = parameters(net)
    directions = []
    for group in symmetries_of(net, x, loss=CE):
        if group.kind == "permutation":
            continue
        symmetry = group.symmetry(params)
        for _ in range(math.prod(symmetry.shape(params))):
            s = torch.randn(symmetry.shape(params), generator=generator, dtype=torch.float64)
            field = symmetry.field(params, s)
            directions.append(torch.cat([field[n].flatten() for n in params]))
    return int(torch.linalg.matrix_rank(torch.stack(directions)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_claims_are_all_flat_directions_that_there_are(name, generator):
    """The null space of the Jacobian over much data, against the span of the generators."""
    excess = []
    while OTHERS[name] not in excess and len(excess) < 5:
        net, x = build(name, generator)
        batches = 1 + sum(p.numel() for p in net.parameters()) // 10
        draws = [build(name, generator)[1] for _ in range(batches)]
        excess.append(flat_directions(net, draws) - claimed_directions(net, x, generator))
    # A unit that is active on all data, or on none, adds directions: the generic number is the
    # least. It cannot be less than what is claimed.
    assert min(excess) == OTHERS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_become_symmetries(name, generator):
    net, x = build(name, generator)
    labels = torch.arange(x.shape[0]) % 3
    shape = net(x).shape
    target = labels.reshape(-1, *(1,) * (len(shape) - 2)).expand(shape[:-1]).reshape(-1)
    loss, params = functionalize(
        net, lambda y, t: functional.cross_entropy(y.reshape(-1, y.shape[-1]), t), (x, target)
    )
    for group in symmetries_of(net, loss=CE):
        if group.kind == "permutation":
            with pytest.raises(ValueError, match="kind must be continuous"):
                group.symmetry(params)
        else:
            assert symmetry_residual(loss, group.symmetry(params), params) < 1e-12, group


def test_groups_of_known_networks(generator):
    net, x = build("layer norm", generator)
    hidden, last = ("0.weight", "0.bias"), ("6.weight", "6.bias")
    assert found(symmetries_of(net, x, loss=CE)) == {
        ("translation", 1, hidden),
        ("scale", 1, hidden),
        ("permutation", 8, (*hidden, "1.weight", "1.bias", "3.weight")),
        ("rescale", 8, ("1.weight", "1.bias", "3.weight")),
        ("translation", 1, ("3.weight", "3.bias")),
        ("scale", 1, ("3.weight", "3.bias")),
        ("permutation", 6, ("3.weight", "3.bias", "4.weight", "4.bias", "6.weight")),
        ("translation", 1, last),
    }
    assert ("translation", 1, last) not in found(symmetries_of(net, x))
    net, x = build("convolution", generator)
    stream = ("1.weight", "1.bias", "4.bn2.weight", "4.bn2.bias")
    assert found(symmetries_of(net, x)) == {
        ("translation", 6, ("0.bias",)),
        ("scale", 6, ("0.weight",)),
        ("translation", 6, ("4.conv1.bias",)),
        ("scale", 6, ("4.conv1.weight",)),
        (
            "permutation",
            6,
            ("4.conv1.weight", "4.conv1.bias", "4.bn1.weight", "4.bn1.bias", "4.conv2.weight"),
        ),
        ("rescale", 6, ("4.bn1.weight", "4.bn1.bias", "4.conv2.weight")),
        # What the skip connection adds belongs together: both makers, both readers.
        ("rescale", 6, (*stream, "4.conv1.weight", "5.weight")),
        (
            "permutation",
            6,
            ("0.weight", "0.bias", "4.conv2.weight", *stream, "4.conv1.weight", "5.weight"),
        ),
        ("scale", 6, ("4.conv2.weight",)),
        ("rescale", 4, ("5.weight", "5.bias", "9.weight")),
        ("permutation", 4, ("5.weight", "5.bias", "9.weight")),
    }


def test_attention_is_read_by_heads(generator):
    net, _ = build("attention", generator)
    groups = symmetries_of(net, loss=CE)
    name = "blocks.1.attention"
    inside = (f"{name}.in_proj_weight", f"{name}.in_proj_bias")
    assert {
        ("gauge", 2, inside),
        ("gauge", 2, (*inside, f"{name}.out_proj.weight")),
        ("permutation", 2, (*inside, f"{name}.out_proj.weight")),
        ("translation", 8, inside[1:]),
        ("translation", 1, (f"{name}.out_proj.weight", f"{name}.out_proj.bias")),
        ("rescale", 8, ("blocks.1.norm1.weight", "blocks.1.norm1.bias", inside[0])),
    } <= found(groups)
    # What feeds the residual stream is shifted, but not scaled.
    assert not [g for g in groups if g.kind == "scale"]


@pytest.mark.parametrize("same", [True, False])
def test_attention_with_its_options(same, generator):
    class Cross(nn.Module):
        def __init__(self, **options):
            super().__init__()
            sizes = {} if same else {"kdim": 5, "vdim": 3}
            self.attention = nn.MultiheadAttention(6, 3, batch_first=True, **sizes, **options)

        def forward(self, q, k, v):
            return self.attention(q, k, v)[0]

    shapes = [(2, 4, 6), (2, 7, 6 if same else 5), (2, 7, 6 if same else 3)]
    data = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def kinds(**options):
        with torch.random.fork_rng():
            net = Cross(**options).double()
        without = symmetries_of(net)
        assert without == symmetries_of(net, data)
        return [g.kind for g in without]

    gauges = ["gauge", "gauge", "permutation"]
    assert kinds() == [*gauges, "translation"]
    assert kinds(bias=False) == gauges
    assert kinds(add_zero_attn=True) == gauges
    assert kinds(add_bias_kv=True) == []
    assert kinds(dropout=0.3) == ["gauge", "gauge", "translation"]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.second(functional.relu(self.first(functional.relu(self.first(x)))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(5, 4, bias=False), nn.Linear(4, 5, bias=False)
        self.up.weight = nn.Parameter(torch.zeros(5, 4))
        self.down.weight = self.up.weight

    def forward(self, x):
        return functional.linear(
            functional.relu(functional.linear(x, self.up.weight.T)), self.up.weight
        )


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        y = functional.relu(self.first(x))
        return y + self.second(y)


class Penalised(nn.Module):
    """A weight that the forward pass reads beside its layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(self.first(x).relu()) + self.first.weight.square().sum()


class Own(nn.Linear):
    """A linear layer by its class, but not by what it does."""

    def forward(self, x):
        return super().forward(x).sin() + 1


def hooked():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    return net


@pytest.mark.parametrize(
    "make",
    [
        *(Twice, Tied, Skip, Penalised, hooked),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4)),
        lambda: nn.Sequential(Own(5, 6), nn.ReLU(), nn.Linear(6, 4)),
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)
        ).eval(),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Softmax(-1), nn.Linear(6, 4)),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.AvgPool1d(2), nn.Linear(3, 4)),
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(5, 4)),
    ],
    ids=lambda make: getattr(make, "__name__", ""),
)
@pytest.mark.parametrize("example", [False, True], ids=["", "example"])
def test_what_is_no_scale_or_rescale_is_not_claimed(make, example):
    with torch.random.fork_rng():
        net = make().double()
    x = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5) if example else None
    for group in symmetries_of(net, x):
        assert group.kind in ("translation", "permutation")


def test_dropout_commutes_with_factors_alone(generator):
    with torch.random.fork_rng():
        net = nn.Sequential(
            nn.Linear(5, 6), nn.Dropout(0.4), nn.Linear(6, 7), nn.ReLU(), nn.Dropout(0.4),
            nn.Linear(7, 4),
        ).double()  # fmt: skip
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    assert [g.kind for g in symmetries_of(net, x)] == ["rescale", "rescale"]
    params = parameters(net)
    base = outputs(net, params, x)
    for group in symmetries_of(net):
        moved = group.act(params, group.random_element(params, generator))
        assert_close(outputs(net, moved, x), base, ops=1000)
    assert [g.kind for g in symmetries_of(net.eval(), x)] == ["gauge", "rescale", "permutation"]


class Branching(nn.Module):
    """Its path depends on values: it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5))
        self.used = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x):
        if x.sum() > 100:
            return x
        # A weight of the second is read on its own as well.
        return self.body(x) + self.used(x) * self.used[0].weight.sum()


@pytest.mark.parametrize("nested", [False, True])
def test_what_cannot_be_traced_is_said_and_tried(nested, generator):
    with torch.random.fork_rng():
        net = (
            nn.Sequential(Branching(), nn.Linear(5, 4)).double() if nested else Branching().double()
        )
    prefix = "0." if nested else ""
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    with pytest.warns(UserWarning, match="could be traced.*give an example_input"):
        assert symmetries_of(net) == []
    with pytest.warns(UserWarning, match="could be traced.*partly"):
        groups = symmetries_of(net, x)
    names = tuple(f"{prefix}body.{name}" for name in ("0.weight", "0.bias", "2.weight"))
    assert {("rescale", 6, names), ("permutation", 6, names)} <= found(groups)
    assert ("rescale", 6, tuple(n.replace("body", "used") for n in names)) not in found(groups)


def test_defaults_of_forward_are_taken_as_they_are(generator):
    net, x = build("attention", generator)
    groups = symmetries_of(net, x, loss=CE)
    assert groups == symmetries_of(net, loss=CE)
    mask = 1 + torch.rand(6, 5, 1, generator=generator, dtype=torch.float64)
    # With a mask the residual stream is no longer only added to and normalised.
    assert len(symmetries_of(net, (x, mask), loss=CE)) < len(groups)


def test_modules_of_torch_themselves_are_read():
    assert [g.kind for g in symmetries_of(nn.Linear(3, 4), loss=CE)] == ["translation"]
    layer = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True, dropout=0.0)
    assert ("rescale", 10, ("linear1.weight", "linear1.bias", "linear2.weight")) in found(
        symmetries_of(layer)
    )


def test_parts_and_groups(generator):
    part = Part("w", axis=1, units=2, block=2, start=1)
    w = torch.randn(3, 6, 2, generator=generator)
    slices = part.slices(w)
    assert_close(slices[1, 0].reshape(3, 2), w[:, 3])
    assert_close(part.replaced(w, slices), w)
    changed = part.replaced(w, slices + 1)
    assert_close(changed[:, 1:5], w[:, 1:5] + 1)
    assert_close(changed[:, [0, 5]], w[:, [0, 5]])
    group = SymmetricGroup("gauge", (part,), (Part("v", 0, 2, 2),))
    assert group.diagonal().units == 4
    assert group.diagonal().total().units == 1
    assert group.total() is group
    with pytest.raises(ValueError, match="must hold 'w'"):
        group.check({})
    with pytest.raises(ValueError, match="w must have at least 5 entries along axis 1, got"):
        group.check({"w": torch.zeros(3, 4)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Part(3, 0, 1), TypeError, "name must be a string"),
        (lambda: Part("w", 0, 1.5), TypeError, "units must be an integer, got 1.5"),
        (lambda: Part("w", -1, 1), ValueError, "axis must be at least 0, got -1"),
        (lambda: SymmetricGroup("twist", (Part("w", 0, 1),)), ValueError, "kind must be one of"),
        (lambda: SymmetricGroup("scale", [Part("w", 0, 1)]), TypeError, "first must be a tuple"),
        (lambda: SymmetricGroup("scale", ()), ValueError, "first must hold at least one part"),
        (
            lambda: SymmetricGroup("rescale", (Part("w", 0, 1),)),
            ValueError,
            "second must hold parts in a group of kind 'rescale'",
        ),
        (
            lambda: SymmetricGroup("scale", (Part("w", 0, 1),), (Part("v", 0, 1),)),
            ValueError,
            "second must be empty",
        ),
        (
            lambda: SymmetricGroup("rescale", (Part("w", 0, 2),), (Part("v", 0, 3),)),
            ValueError,
            "one number of units, got [2, 3]".replace("[", r"\[").replace("]", r"\]"),
        ),
        (
            lambda: SymmetricGroup("gauge", (Part("w", 0, 2, 2),), (Part("v", 0, 2, 3),)),
            ValueError,
            "one block",
        ),
        (lambda: symmetries_of(torch.ones(3)), TypeError, "module must be a torch.nn.Module"),
        (lambda: symmetries_of(nn.ReLU()), ValueError, "must have parameters, got a ReLU"),
        (lambda: symmetries_of(nn.Linear(2, 2), loss="mse"), ValueError, 'loss must be "cross_en'),
        (
            lambda: symmetries_of(nn.Sequential(nn.LazyLinear(3))),
            ValueError,
            "got '0.weight' without a shape",
        ),
    ],
)  # fmt: skip
def test_bad_input(make, error, message):
    with torch.random.fork_rng(), pytest.raises(error, match=message):
        make()


def test_epsilon_is_reported():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=1e-3), nn.Tanh(), nn.Linear(4, 2))
    assert {g.epsilon for g in symmetries_of(net) if g.kind == "scale"} == {1e-3}
    assert EPS < 1e-100
