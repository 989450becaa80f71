"""Bayesian regression against samples of all layers, quadrature, and mpmath."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import dln_geometry as dln
from dln_geometry.testing import assert_close, assert_mean
from dln_geometry.thermodynamics import bayesian_regression, renormalized_scales

F64 = torch.float64
VARIANCES = [1.3, 0.7, 1.1, 0.9]
WIDTHS = [(5, 1), (5, 4, 1), (5, 1, 3, 1), (5, 7, 6, 7, 1)]


def normal(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=F64)


def layers_of(widths, variances, draws, generator):
    return [
        normal(draws, after, before, generator=generator) * (v / before) ** 0.5
        for before, after, v in zip(widths[:-1], widths[1:], variances, strict=True)
    ]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_closed_form_is_the_integral_over_the_scale(widths, generator):
    inputs, outputs = normal(3, 5, generator=generator), normal(3, generator=generator)
    options = {"variances": VARIANCES[: len(widths) - 1]}
    one = bayesian_regression(inputs, outputs, widths, **options)
    two = bayesian_regression(inputs, outputs, widths, method="quadrature", **options)
    assert one.method == "meijer"
    assert abs(one.log_evidence - two.log_evidence) < 1e-10
    assert max(one.error, two.error) < 1e-10
    assert_close(one.posterior_mean, torch.linalg.pinv(inputs) @ outputs)
    assert_close(one.posterior_covariance, two.posterior_covariance, ops=1e4)
    assert abs(one.scale / two.scale - 1) < 1e-10


@pytest.mark.parametrize("widths", WIDTHS[1:], ids=str)
def test_meijer_function_is_that_of_mpmath(widths, generator):
    mp = pytest.importorskip("mpmath")
    inputs, outputs = normal(2, 5, generator=generator), normal(2, generator=generator)
    found = bayesian_regression(inputs, outputs, widths, variances=1.2)
    q = float((torch.linalg.pinv(inputs) @ outputs).square().sum())
    m = 1.2 / 5 * math.prod(2.4 / d for d in widths[1:-1])
    shapes = [mp.mpf(d) / 2 for d in widths[1:-1]]
    value = mp.log(mp.meijerg([[], []], [[mp.mpf(1), *shapes], []], mp.mpf(q) / (2 * mp.mpf(m))))
    value -= mp.log(mp.pi * q) + sum(mp.loggamma(b) for b in shapes)
    value -= 0.5 * float(torch.logdet(inputs @ inputs.T))
    assert abs(float(value) - found.log_evidence) < 1e-10


@pytest.mark.parametrize(("samples", "widths"), [(4, (3, 4, 2, 1)), (2, (3, 2, 1))])
def test_posterior_with_noise_is_that_of_weighted_layers(samples, widths, generator):
    """Draw all layers from the prior, and weight them by the likelihood."""
    inputs, outputs = normal(samples, 3, generator=generator), normal(samples, generator=generator)
    variances, noise = VARIANCES[: len(widths) - 1], 0.8
    found = bayesian_regression(inputs, outputs, widths, noise=noise, variances=variances)
    w = dln.end_to_end(layers_of(widths, variances, 15_000, generator)).squeeze(-2)
    misfit = (outputs - w @ inputs.T).square().sum(-1) / (2 * noise**2)
    weight = (-misfit - samples / 2 * math.log(2 * math.pi * noise**2)).exp()
    assert_mean(weight, torch.tensor(found.log_evidence, dtype=F64).exp())
    share = weight / weight.mean()
    moved = w - found.posterior_mean
    # Of ratios: the residuals have mean zero.
    assert_mean(share.unsqueeze(-1) * moved, torch.zeros(3, dtype=F64))
    outer = moved.unsqueeze(-1) * moved.unsqueeze(-2) - found.posterior_covariance
    assert_mean(share[:, None, None] * outer, torch.zeros(3, 3, dtype=F64))


def test_noise_may_vanish_and_data_may_determine_the_vector(generator):
    inputs, outputs = normal(2, 4, generator=generator), normal(2, generator=generator)
    sharp = bayesian_regression(inputs, outputs, (4, 3, 5, 1))
    for noise in (1e-3, 1e-4):
        near = bayesian_regression(inputs, outputs, (4, 3, 5, 1), noise=noise)
        assert abs(near.log_evidence - sharp.log_evidence) < 30 * noise**2
        assert (near.posterior_covariance - sharp.posterior_covariance).abs().max() < 30 * noise**2
    w = normal(4, generator=generator)
    more = normal(6, 4, generator=generator)
    known = bayesian_regression(more, more @ w, (4, 3, 1))
    assert_close(known.posterior_mean, w, ops=1000)
    assert_close(known.posterior_covariance, torch.zeros(4, 4, dtype=F64), scale=1.0)
    with pytest.raises(ValueError, match="noise must be positive"):
        bayesian_regression(more, normal(6, generator=generator), (4, 3, 1))
    with pytest.raises(ValueError, match="evidence without noise is infinite"):
        bayesian_regression(inputs, torch.zeros(2), (4, 2, 1))
    zero = bayesian_regression(inputs, torch.zeros(2), (4, 9, 1))
    again = bayesian_regression(inputs, torch.zeros(2), (4, 9, 1), method="quadrature")
    assert abs(zero.log_evidence - again.log_evidence) < 1e-10
    single = bayesian_regression(inputs.float(), outputs.float(), (4, 3, 5, 1))
    assert single.posterior_mean.dtype == torch.float32
    assert abs(single.log_evidence - sharp.log_evidence) < 1e-4


def data_of(width):
    """Return half as many samples as inputs, with outputs of one size at infinite width."""
    half = width // 2
    inputs = torch.eye(half, width, dtype=F64)
    return inputs, torch.full((half,), 1.4 / width**0.5, dtype=F64)


@pytest.mark.parametrize("hidden", [1, 3])
def test_asymptotics_come_nearer_like_the_inverse_of_the_width(hidden):
    widths, gaps, told = [40, 80, 160, 320], [], []
    for d in widths:
        inputs, outputs = data_of(d)
        shape = (d, *[d] * hidden, 1)
        exact = bayesian_regression(inputs, outputs, shape)
        saddle = bayesian_regression(inputs, outputs, shape, method="saddle")
        limit = float(renormalized_scales(inputs, outputs, shape))
        gaps.append([abs(limit / exact.scale - 1), abs(saddle.log_evidence - exact.log_evidence)])
        told.append(saddle.error)
    slopes = np.polyfit(np.log(widths), np.log(gaps), 1)[0]
    assert np.abs(slopes + 1).max() < 0.15
    # The error that is told is the next term.
    assert abs(told[-1] / gaps[-1][1] - 1) < 0.05


def test_deep_and_wide_networks_have_a_lognormal_scale():
    """At fixed depth over width the normal law of log S comes nearer like 1/width."""
    inputs, outputs = data_of(8)
    gaps, told = [], []
    for d in (8, 16, 32, 64):
        shape = (8, *[d] * d, 1)
        exact = bayesian_regression(inputs, outputs, shape, noise=0.1)
        near = bayesian_regression(inputs, outputs, shape, noise=0.1, method="lognormal")
        gaps.append(abs(near.log_evidence - exact.log_evidence))
        told.append(near.error)
    assert abs(np.polyfit(np.log([8, 16, 32, 64]), np.log(gaps), 1)[0] + 1) < 0.15
    assert 0.5 < told[-1] / gaps[-1] < 2


def log_wishart(k, shape, mean):
    """Return the log-density of k = sum of outer products / shape, but for numbers of shape."""
    scaled = torch.linalg.solve(mean, k).diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * ((shape - 3) * torch.logdet(k) - shape * (torch.logdet(mean) + scaled))


@pytest.mark.parametrize("hidden", [1, 2])
def test_scales_of_two_outputs_are_those_of_weighted_wishart_matrices(hidden, rng):
    """Given the layers above, K is Wishart: draw near the limit, weight by prior and likelihood."""
    gaps = []
    for d in (20, 80):
        half = 2 * d // 5
        inputs = torch.eye(half, d, dtype=F64)
        ramp = torch.linspace(-1.0, 1.0, half, dtype=F64)
        outputs = torch.stack([torch.full((half,), 1.3, dtype=F64), 1.2 * ramp], 1) / (d / 5) ** 0.5
        u = renormalized_scales(inputs, outputs, (d, *[d] * hidden, 2))
        r = outputs.T @ outputs * d
        frame = torch.linalg.eigh(r)[1].flip(-1)
        each = frame @ torch.diag(u ** (1 / hidden)) @ frame.T
        above = torch.eye(2, dtype=F64).expand(6_000, 2, 2)
        weight = torch.zeros(6_000, dtype=F64)
        for _ in range(hidden):
            drawn = rng.standard_normal((6_000, 2, 2 * d)) / (2 * d) ** 0.5
            values, vectors = torch.linalg.eigh(above)
            root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
            factor = root @ torch.linalg.cholesky(each) @ torch.from_numpy(drawn)
            k = factor @ factor.mT
            weight = weight + log_wishart(k, d, above)
            weight = weight - log_wishart(k, 2 * d, root @ each @ root)
            above = k
        fit = torch.linalg.inv(above).mul(r).sum((-2, -1)) + half * torch.logdet(above)
        share = torch.softmax(weight - 0.5 * fit, 0)
        assert 1 / share.square().sum() > 300
        mean = (frame.T @ (share[:, None, None] * above).sum(0) @ frame).diagonal()
        gaps.append(float((mean / u - 1).abs().max()))
    assert gaps[1] < min(0.03, 0.6 * gaps[0]), gaps
