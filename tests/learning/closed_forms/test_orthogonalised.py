from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch

from dln_geometry.learning import closed_forms
from dln_geometry.testing import assert_close

F64 = torch.float64
WIDTHS = (5, 3, 4, 3)


def rotation(d, generator):
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64))[0]


def polar(x):
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    rank = int((s > 1e-12 * s[0]).sum())
    return u[:, :rank] @ vh[:rank]


def gradients(layers, target):
    def loss(ws):
        return (list(accumulate(ws, lambda x, w: w @ x))[-1] - target).square().sum() / 2

    return torch.func.grad(loss)(layers)


def muon(layers, target, steps, lr, decay):
    """Take steps of Muon with exact polar factors and momentum."""
    buffers = [torch.zeros_like(w) for w in layers]
    for _ in range(steps):
        found = gradients(layers, target)
        buffers = [0.8 * m + g for m, g in zip(buffers, found, strict=True)]
        layers = [
            (1 - lr * decay) * w - lr * polar(m) for w, m in zip(layers, buffers, strict=True)
        ]
    return layers


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_aligned_layers_keep_the_differences_of_their_roots(decay, generator):
    frames = [rotation(d, generator)[:, :3] for d in WIDTHS]
    spectra = 1 + torch.rand(3, 3, generator=generator, dtype=F64)
    layers = [frames[p + 1] @ spectra[p].diag() @ frames[p].mT for p in range(3)]
    phi = torch.tensor([9.0, 12.0, 15.0], dtype=F64)
    target = frames[-1] @ phi.diag() @ frames[0].mT
    before = closed_forms.root_moments(layers)
    after = muon(layers, target, 20, 0.01, decay)
    for old, new in zip(before, closed_forms.root_moments(after), strict=True):
        assert_close(new, (1 - 0.01 * decay) ** 20 * old, ops=1e4)
    for off in closed_forms.misalignment(after):
        assert float(off) < 1e-12
    # The moments, which gradient flow conserves, move.
    moved = after[1].mT @ after[1] - after[0] @ after[0].mT
    first = layers[1].mT @ layers[1] - layers[0] @ layers[0].mT
    assert float((moved - first).norm() / first.norm()) > 1e-3


def test_layers_that_are_not_aligned_do_not(generator):
    layers = [torch.randn(b, a, generator=generator, dtype=F64) for a, b in pairwise(WIDTHS)]
    target = torch.randn(3, 5, generator=generator, dtype=F64)
    after = muon(layers, target, 20, 0.01, 0.0)
    pairs = zip(closed_forms.root_moments(layers), closed_forms.root_moments(after), strict=True)
    assert min(float((new - old).norm()) for old, new in pairs) > 1e-3
    assert all(1e-3 < float(off) < 2**0.5 for off in closed_forms.misalignment(layers))


def test_roots_are_those_of_the_squares(generator):
    layers = [torch.randn(2, b, a, generator=generator, dtype=F64) for a, b in ((5, 3), (3, 4))]
    (root,) = closed_forms.root_moments(layers)
    for k in range(2):
        values, vectors = torch.linalg.eigh(layers[1][k].mT @ layers[1][k])
        right = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.mT
        values, vectors = torch.linalg.eigh(layers[0][k] @ layers[0][k].mT)
        left = vectors @ values.sqrt().diag() @ vectors.mT
        assert_close(root[k], right - left, ops=1000, scale=10.0)
