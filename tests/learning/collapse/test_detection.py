from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning.collapse import MirrorFamily, collapse_report, mirrors_of
from dln_geometry.learning.functional import functionalize
from dln_geometry.learning.mirror import Mirror
from dln_geometry.testing import assert_close
from tests.learning.networks import NETWORKS, build

F64 = torch.float64


def _wave(out):
    """A loss that sees every output, with no symmetry of its own."""
    z = out.flatten()
    return (z + torch.arange(z.numel(), dtype=z.dtype).sin()).sin().square().mean()


def _found(families):
    return {(f.kind, f.units, f.names) for f in families}


def _members(family, params, generator):
    """Yield a few members, the nearest and random ones."""
    yield family.closest(params, 1)[0][1]
    order = torch.randperm(family.units, generator=generator).tolist()
    if family.kind == "permutation":
        yield tuple(order[:2])
    elif family.kind == "opposition":
        yield tuple(order[-2:])
    elif family.kind == "rescaling":
        yield order[0]
    else:
        yield torch.randn(family.units, generator=generator, dtype=F64)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_is_a_symmetry_of_the_network(name, generator):
    net, x = build(name, generator)
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    families = mirrors_of(net, x)
    assert all(torch.equal(p, before[key]) for key, p in net.named_parameters())
    loss, params = functionalize(net, _wave, x)
    for family in families:
        for member in _members(family, params, generator):
            mirror = family.mirror(params, member)
            # Gradients may be large where normalisations almost divide by zero.
            assert mirror.is_symmetric(loss, params, rtol=1e-9, generator=generator), family


@pytest.mark.parametrize("name", ["layer norm", "linear", "convolution", "attention"])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_defects_of_a_family_are_those_of_its_mirrors(name, dtype, generator):
    net, x = build(name, generator)
    params = {key: p.detach().to(dtype) for key, p in net.named_parameters()}
    for family in mirrors_of(net, x):
        defects = family.defects(params)
        nearest = family.closest(params, 3)
        assert len(nearest) <= 3
        assert [d for d, _ in nearest] == sorted(d for d, _ in nearest)
        if family.kind in ("permutation", "opposition"):
            i, j = 0, family.units - 1
            assert_close(defects[i, j], family.mirror(params, (i, j)).defect(params))
            off = defects + torch.diag(torch.full((family.units,), torch.inf, dtype=dtype))
            assert_close(torch.tensor(nearest[0][0], dtype=dtype), off.min())
        elif family.kind == "rescaling":
            assert_close(defects[1], family.mirror(params, 1).defect(params))
            assert_close(torch.tensor(nearest[0][0], dtype=dtype), defects.min())
        else:
            scale = float(defects.max())
            for rank, (defect, n) in enumerate(nearest):
                own = family.mirror(params, n).defect(params)
                assert_close(torch.tensor(defect, dtype=dtype), own, scale=scale, ops=1000)
                assert_close(defects[-1 - rank], own, scale=scale, ops=1000)


def test_what_is_found_in_a_convolutional_network(generator):
    net, x = build("convolution", generator)
    families = _found(mirrors_of(net, x))
    channels = ("5.weight", "5.bias", "9.weight")
    assert ("permutation", 4, channels) in families
    # The sign of a filter comes out of the normalisation, and is undone by its weight.
    inner = ("4.conv1.weight", "4.conv1.bias", "4.bn1.weight")
    assert ("rescaling", 6, inner) in families
    # ReLU is not odd.
    assert not any(kind == "rescaling" and "9.weight" in names for kind, _, names in families)
    assert not any(kind == "rotation" for kind, _, _ in families)


def test_what_is_found_in_attention(generator):
    net, x = build("attention", generator)
    families = [f for f in mirrors_of(net, x) if "blocks.0" in f.names[0]]
    rotations = [f for f in families if f.kind == "rotation"]
    # Two heads, each with the pair of queries and keys and that of values and outputs.
    assert [f.units for f in rotations] == [4] * 4
    assert sum("blocks.0.attention.out_proj.weight" in f.names for f in rotations) == 2
    heads = [f for f in families if f.kind == "permutation" and f.units == 2]
    assert len(heads) == 1
    assert_close(float(heads[0].axes["blocks.0.attention.in_proj_weight"][1].numel()), 24.0)


@pytest.mark.parametrize(
    ("unit", "kinds"),
    [
        (nn.Tanh, {"permutation", "opposition", "rescaling"}),
        (nn.ReLU, {"permutation"}),
        (nn.GELU, {"permutation"}),
        (nn.Identity, {"rotation"}),
    ],
)
def test_units_decide_what_there_is(unit, kinds, generator):
    net = nn.Sequential(nn.Linear(5, 4), unit(), nn.Linear(4, 3))
    families = mirrors_of(net, torch.randn(6, 5, generator=generator))
    assert {f.kind for f in families} == kinds
    # Without an example nothing is tried, and signs are not guessed.
    assert {f.kind for f in mirrors_of(net)} == kinds - {"rescaling", "opposition"}


def _train(net, x, y, decay, steps=4000, lr=0.2):
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=decay)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimiser.step()


def _tanh_net(generator):
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) * 0.5)
    x = torch.randn(30, 3, generator=generator, dtype=F64)
    y = torch.stack([x[:, 0].tanh(), x[:, 1].sin()], -1)
    return net, x, y


@pytest.mark.slow
def test_a_report_tells_what_training_then_does(generator):
    net, x, y = _tanh_net(generator)
    decay = 0.1

    def report(**options):
        return collapse_report(net, nn.functional.mse_loss, (x, y), count=20, **options)

    assert {record.status for record in report(weight_decay=decay)} <= {"free", "collapsing"}
    _train(net, x, y, decay, steps=500)
    early = {_key(r): r for r in report(weight_decay=decay)}
    _train(net, x, y, decay, steps=6000)
    late = {_key(r): r for r in report(weight_decay=decay)}
    coming = [key for key, record in early.items() if record.status == "collapsing"]
    assert coming
    assert all(late[key].status == "collapsed" for key in coming)
    # Six units for two functions: those that are not needed are switched off or joined.
    collapsed = [record for record in late.values() if record.status == "collapsed"]
    assert len(collapsed) >= 3
    assert all(record.stability.threshold < decay for record in collapsed)
    # Without decay the same set repels, or does nothing: nothing is called collapsed by it.
    assert all(r.stability.threshold < 0 for r in report() if r.status == "collapsed")
    table = str(report(weight_decay=decay)).splitlines()
    assert table[0] == "mirrors at a weight decay of 0.1"
    assert len(table) == 2 + len(late)
    assert any(
        line.startswith("collapsed") and "0.weight, 0.bias, 2.weight" in line for line in table
    )


def _key(record):
    return record.family.kind, record.member


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_starts_at_zero_has_no_sign_of_its_own(dtype, generator):
    """The bias of a fresh normalisation is zero, and any sign of it the same."""
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)
    x = torch.randn(8, 5, generator=generator).to(dtype)
    y = torch.randn(8, 3, generator=generator).to(dtype)
    kinds = [(family.kind, family.names) for family in mirrors_of(net, x)]
    hidden = ("0.weight", "0.bias", "1.weight")
    assert sorted(kinds) == [
        ("permutation", (*hidden, "1.bias", "3.weight")),
        ("rescaling", hidden),
    ]
    report = collapse_report(net, nn.functional.mse_loss, (x, y), count=1)
    assert len(report) == 2


def test_the_rate_is_that_of_gradient_flow(generator):
    net, x, y = _tanh_net(generator)
    decay, lr = 0.3, 1e-6
    loss, params = functionalize(net, nn.functional.mse_loss, (x, y))
    record = collapse_report(net, nn.functional.mse_loss, (x, y), weight_decay=decay)[1]
    mirror = record.family.mirror(params, record.member)
    g = torch.func.grad(loss)(params)
    moved = {n: q - lr * (g[n] + decay * q) for n, q in params.items()}
    before, after = (mirror.coordinates(q).norm() for q in (params, moved))
    assert abs(float((before / after).log()) / lr - record.rate) < 1e-3 * abs(record.rate) + 1e-4


def test_a_collapsed_state_without_decay_is_escaping(generator):
    net, x, y = _tanh_net(generator)
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = net[0].weight[4], net[0].bias[4]
        net[2].weight[:, 1] = net[2].weight[:, 4]
    record = collapse_report(net, nn.functional.mse_loss, (x, y), count=1)[0]
    assert record.member == (1, 4)
    assert record.defect == 0.0
    assert record.status == ("escaping" if record.stability.threshold > 0 else "collapsed")
    strong = 1.1 * max(record.stability.threshold, 0.1)
    sure = collapse_report(net, nn.functional.mse_loss, (x, y), weight_decay=strong, count=1)[0]
    assert sure.status == "collapsed"


def test_a_set_where_the_loss_has_no_value_is_singular(generator):
    net, x = build("weight norm", generator)
    report = collapse_report(net, _wave, (x,), count=1)
    singular = [record for record in report if record.status == "singular"]
    assert singular
    assert all(record.stability is None for record in singular)
    assert "singular  rescaling" in str(report)


def test_a_large_network_is_searched_in_linear_memory(generator):
    net = nn.Sequential(nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 700))
    params = {name: p.detach() for name, p in net.named_parameters()}
    (family,) = mirrors_of(net, torch.randn(2, 700, generator=generator))
    with torch.no_grad():
        for p, axis in ((net[0].weight, 0), (net[0].bias, 0), (net[2].weight, 1)):
            p.select(axis, 655).copy_(p.select(axis, 17))
    (defect, member), (other, _) = family.closest(params, 2)
    assert member == (17, 655)
    assert defect == 0.0
    assert other > 0.5


def test_bad_input(generator):
    net, x, y = _tanh_net(generator)
    mse = nn.functional.mse_loss
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got int"):
        mirrors_of(3)
    with pytest.raises(ValueError, match="module must have parameters"):
        mirrors_of(nn.Tanh())
    with pytest.raises(ValueError, match="weight_decay must be non-negative"):
        collapse_report(net, mse, (x, y), weight_decay=-0.1)
    with pytest.raises(TypeError, match="weight_decay must be a real number"):
        collapse_report(net, mse, (x, y), weight_decay="a")
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        collapse_report(net, mse, (x, y), count=0)
    with pytest.raises(ValueError, match="loss must be a scalar"):
        collapse_report(net, lambda out, y: out - y, (x, y))
    wrong = MirrorFamily("permutation", {"2.weight": (1, torch.arange(6)[:, None])}, 6)
    with pytest.raises(ValueError, match="must have the mirror symmetry"):
        collapse_report(net, mse, (x, y), families=[wrong])
    assert isinstance(wrong.mirror(dict(net.named_parameters()), (0, 1)), Mirror)
