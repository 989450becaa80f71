"""Losses whose equilibria are known, generic starts, and a test of equal laws."""

from __future__ import annotations

import torch
from scipy import stats

import dln_geometry as dln
from dln_geometry.geometry.metric import thin_svd

F64 = torch.float64
BETA, KAPPA = 1.7, 0.6


class Ridge:
    """``N/2 sum s^{2/N}``, half the squared norm in rho: a Gaussian at every depth."""

    def __init__(self, depth):
        self.depth = depth

    def value(self, x):
        return self.depth / 2 * (torch.linalg.svdvals(x) ** (2 / self.depth)).sum(-1)

    def gradient(self, x):
        raise AssertionError("steps, flows and samplers contract or evaluate")

    def evaluate(self, x):
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        return self.value(x), (u * self._slope(s).unsqueeze(-2)) @ vh

    def contract(self, left, right):
        u, s, vh = thin_svd(left, right.mT, left.shape[-1])
        slope = self._slope(s).unsqueeze(-1)
        value = self.depth / 2 * (s ** (2 / self.depth)).sum(-1)
        return value, u @ (slope * (vh @ right)), vh.mT @ (slope * (u.mT @ left))

    def _slope(self, s):
        return s.clamp_min(1e-300) ** (2 / self.depth - 1)


class Cliff:
    """``|X|^2/2``, whose gradient is NaN in one sample of a batch after some calls."""

    def __init__(self, sample, calls=0):
        self.sample, self.calls = sample, calls

    def value(self, x):
        return 0.5 * x.square().sum((-2, -1))

    def gradient(self, x):
        g, self.calls = x.clone(), self.calls - 1
        if self.calls < 0:
            g[self.sample] = torch.nan
        return g


def start_at(shape, rank, depth, generator, chains=None, dtype=F64, spectrum=(1.4, 1.0, 0.5)):
    options = {"spectrum": spectrum[:rank], "generator": generator, "dtype": dtype}
    p = dln.Collapsed.random(shape, rank, depth, **options)
    return p if chains is None else p.expand((chains,))


def quadratic(shape, generator, dtype=F64):
    return dln.losses.Quadratic(torch.randn(*shape, generator=generator, dtype=dtype))


def assert_same_law(a, b, pvalue=1e-4):
    """Kolmogorov-Smirnov for every particle."""
    for k in range(a.shape[-1]):
        test = stats.ks_2samp(a[..., k].flatten().numpy(), b[..., k].flatten().numpy())
        assert test.pvalue > pvalue, (k, test)
