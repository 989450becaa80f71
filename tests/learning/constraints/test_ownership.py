from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from dln_geometry.learning import dcs_, syre_
from dln_geometry.testing import assert_close


def _twice():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def _one_parameter():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


def _one_memory():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight.data = net[0].weight.data.T
    return net


def _inference():
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(3, 3))


def _not_finite():
    net = nn.Sequential(nn.Linear(3, 3))
    nn.init.constant_(net[0].weight, math.nan)
    return net


DOORS = {"dcs_": lambda net: dcs_(net, "0.weight"), "syre_": syre_}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_twice, "'0.weight' must not be tied, got one under"),
        (_one_parameter, "'0.weight' must not be tied, got one under"),
        (_one_memory, "'0.weight' must not be tied, got one under"),
        (_inference, "'0.weight' must be made outside torch.inference_mode"),
        (_not_finite, "'0.weight' must be finite"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' must have a shape, got a lazy"),
        (lambda: nn.Sequential(nn.Linear(3, 3, device="meta")), "'0.weight' must have values"),
    ],
)
def test_parameters_that_cannot_be_rewritten_are_refused(door, make, message):
    net = make()
    with pytest.raises(ValueError, match=message):
        door(net)
    assert not any(parametrize.is_parametrized(m) for m in net.modules())


def test_several_parameters_are_rewritten_at_once(generator):
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    x = torch.randn(7, 3, generator=generator)
    before = net(x)
    dcs_(net, ["0.weight", "2.weight"], groups="row")
    assert_close(net(x), before)
    both = [nn.utils.parametrize.is_parametrized(net[k], "weight") for k in (0, 2)]
    assert both == [True, True]


@pytest.mark.parametrize("door", [dcs_, syre_])
@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (3, TypeError, "must be a name or several, got int"),
        ([3], TypeError, "name must be that of a parameter, a string, got 3"),
        ([], ValueError, "must hold at least one name"),
        (["0.weight", "0.weight"], ValueError, "must hold each name once"),
        (["0.weight", "2.weight"], ValueError, "module must have the parameter '2.weight'"),
    ],
)
def test_bad_names_change_nothing(door, names, error, message):
    net = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(error, match=message):
        door(net, names)
    assert not parametrize.is_parametrized(net[0])


def test_a_rank_too_small_for_one_parameter_changes_none():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    nn.init.eye_(net[1].weight)
    with pytest.raises(ValueError, match="rank must be at least that of the parameter, 3"):
        dcs_(net, ["0.weight", "1.weight"], groups="nuclear", rank=2)
    with pytest.raises(ValueError, match="name must be one parameter with o, got 2"):
        dcs_(net, ["0.weight", "0.bias"], torch.eye(6))
    assert not any(parametrize.is_parametrized(m) for m in net.modules())
