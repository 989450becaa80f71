"""Dimensions found against dimensions true, on networks of torchvision, timm and transformers."""

from __future__ import annotations

import os

import pytest
import torch

from dln_geometry import learning
from tests.learning.architecture.networks import zoo

QUICK = ("llama, tied", "mamba")
# All of them take minutes: the others run if DLN_ARCHITECTURES is set.
SLOW = ("mobilenet", "timm vit, mean", "gpt2", "bert", "t5", "gemma2", "falcon, alibi")
NAMES = zoo.ZOO if "DLN_ARCHITECTURES" in os.environ else (*QUICK, *SLOW)


@pytest.mark.filterwarnings("ignore:not everything could be traced")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_all_flat_directions_are_found(name):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        net, args, kwargs = zoo.ZOO[name]()
    report = learning.symmetry_coverage(net, *args, **kwargs)
    assert report.stops == ()
    assert report.true is not None, report.reason
    assert report.found == report.true, (name, report)
    # The rank is clear: singular values on both sides of the cut are far apart.
    assert report.gap > 1e4
