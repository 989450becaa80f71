"""Modules in wrappers are read as themselves, under the names that users see."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from dln_geometry.learning import collapse_report, functionalize, mirrors_of, symmetries_of
from dln_geometry.testing import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def net():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def distributed(module):
    """Return what ``DistributedDataParallel`` makes, without a group of processes."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = module
    return wrapper


WRAPPERS = {
    "data parallel": (nn.DataParallel, "module."),
    "distributed": (distributed, "module."),
    "averaged": (AveragedModel, "module."),
    "compiled": (torch.compile, "_orig_mod."),
    "twice": (lambda m: nn.DataParallel(torch.compile(m)), "module._orig_mod."),
    "inside": (lambda m: nn.Sequential(torch.compile(m)), "0._orig_mod."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_modules_have_the_symmetries_of_what_they_wrap(wrapper, generator):
    wrap, prefix = WRAPPERS[wrapper]
    x = torch.randn(6, 4, generator=generator)
    wrapped = wrap(net())
    names = [n for n, _ in wrapped.named_parameters()]
    for example in (None, x):
        own, found = symmetries_of(net(), example), symmetries_of(wrapped, example)
        assert [(g.kind, g.units, [prefix + n for n in g.names]) for g in own] == [
            (g.kind, g.units, list(g.names)) for g in found
        ]
        assert {n for g in found for n in g.names} <= set(names)
    assert {n for f in mirrors_of(wrapped, x) for n in f.names} <= set(names)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_losses_of_wrapped_modules_are_those_of_what_they_wrap(wrapper, generator):
    wrap, prefix = WRAPPERS[wrapper]
    data = torch.randn(6, 4, generator=generator), torch.randn(6, 2, generator=generator)
    wrapped = wrap(net())
    before = {key: value.clone() for key, value in wrapped.state_dict().items()}
    loss, params = functionalize(net(), functional.mse_loss, data)
    other, others = functionalize(wrapped, functional.mse_loss, data)
    assert [prefix + n for n in params] == list(others)
    assert_close(other(others), loss(params))
    report = collapse_report(wrapped, functional.mse_loss, data, count=1)
    mirror = report[0].family.mirror(dict(wrapped.named_parameters()), report[0].member)
    assert all(name.startswith(prefix) for name in mirror.names)
    assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())


def test_a_module_used_twice_in_wrappers_stays_one(generator):
    with torch.random.fork_rng():
        shared = torch.compile(nn.Linear(4, 4))
        model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    assert not [g for g in symmetries_of(model) if "0._orig_mod.weight" in g.names]


def test_what_cannot_be_copied_is_named():
    with pytest.raises(TypeError, match="module must be a module of Python, got a Recursive"):
        symmetries_of(torch.jit.script(net()), torch.ones(2, 4))
    with torch.random.fork_rng():
        model = nn.Linear(3, 2)
    model.lock = (x for x in ())
    with pytest.raises(TypeError, match=r"module must be one that copy.deepcopy can copy"):
        functionalize(model, functional.mse_loss, (torch.ones(1, 3), torch.ones(1, 2)))
    # The graph alone does not need a copy.
    assert symmetries_of(model, loss="cross_entropy")
