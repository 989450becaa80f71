from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning.collapse import collapse_report, mirrors_of
from dln_geometry.learning.functional import functionalize
from dln_geometry.testing import assert_close
from tests.learning.collapse.routes import wave
from tests.learning.networks import NETWORKS, build

F64 = torch.float64


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
    loss, params = functionalize(net, wave, x)
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
    assert [f.units for f in rotations] == [3] * 4
    assert sum("blocks.0.attention.out_proj.weight" in f.names for f in rotations) == 2
    heads = [f for f in families if f.kind == "permutation" and f.units == 2]
    assert len(heads) == 1
    assert_close(float(heads[0].axes["blocks.0.attention.in_proj_weight"][1].numel()), 18.0)


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


def test_bad_modules():
    with pytest.raises(TypeError, match="module must be a torch.nn.Module, got int"):
        mirrors_of(3)
    with pytest.raises(ValueError, match="module must have parameters"):
        mirrors_of(nn.Tanh())
