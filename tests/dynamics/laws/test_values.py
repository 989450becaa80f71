"""Laws as values: against quadrature, against each other, and against matrices drawn."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from dln_geometry import laws
from dln_geometry.testing import assert_close, assert_order
from tests.doors import wrong

F64 = torch.float64
LAWS = {
    "Fuss-Catalan 1": laws.fuss_catalan(1),
    "Fuss-Catalan 2.5": laws.fuss_catalan(2.5),
    "Fuss-Catalan 6": laws.fuss_catalan(6),
    "its singular values": laws.fuss_catalan(3).power(0.5, 1.7),
    "Ullman 0.4": laws.ullman(0.4, 1.7),
    "Ullman 1": laws.ullman(1, 0.6),
    "Ullman 3.3": laws.ullman(3.3, 1.7),
    "quarter circle": laws.quarter_circle(1.3),
    "semicircle": laws.semicircle(1.3),
    "Marchenko-Pastur": laws.marchenko_pastur((4, 9), 0.7),
    "Marchenko-Pastur, square": laws.marchenko_pastur((5, 5), 0.7),
    "product of layers": laws.gaussian_product((3, 2, 5, 4), 0.4),
    "product of layers, hard edge": laws.gaussian_product((4, 6, 5, 4)),
    "energy": laws.gibbs_energy((3, 2), 2, 3, beta=2.3, kappa=0.8),
}
EACH = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())


def integral(law, f, upper):
    """Integrate ``f(x) density(x)`` up to a point, with nodes that crowd at both ends."""
    y = np.linspace(-5.8, 5.8, 801)
    # Double exponential nodes in (0, 1), exact near 0.
    left = 1 / (1 + np.exp(-np.pi * np.sinh(y)))
    slope = np.pi * np.cosh(y) * left * (1 - left)
    x = torch.tensor(law.low + (upper - law.low) * left, dtype=F64)
    values = f(x) * law.density(x)
    weights = torch.tensor(slope * (y[1] - y[0]) * (upper - law.low), dtype=F64)
    return float((values * weights)[torch.isfinite(values)].sum())


@EACH
def test_distribution_and_moments_are_integrals_of_the_density(law):
    top = min(law.high, 40.0)
    assert abs(integral(law, torch.ones_like, top) - 1) < 1e-9
    for order in (1, 2, 3) if law.low < 0 else (1, 2, 0.5):
        found = integral(law, lambda x, k=order: x**k, top)
        assert abs(found - law.moment(order)) < 1e-10 * max(law.moment(order), 1.0)
    assert law.moment(0) == 1.0
    for q in (0.05, 0.4, 0.83):
        x = float(law.quantile(torch.tensor(q, dtype=F64)))
        assert abs(integral(law, torch.ones_like, x) - q) < 1e-9


@EACH
def test_quantiles_invert_the_distribution(law):
    q = torch.tensor([1e-12, 1e-4, 0.3, 0.5, 0.9, 1 - 1e-9], dtype=F64)
    # The closed forms lose digits at a left edge away from zero.
    assert_close(law.distribution(law.quantile(q)), q, ops=1e4)
    assert law.quantile([0.0, 1.0]).tolist() == pytest.approx([law.low, law.high])
    beyond = torch.tensor([law.low - 1, min(law.high, 1e3) + 1], dtype=F64)
    if math.isfinite(law.high):
        assert law.density(beyond).tolist() == [0.0, 0.0]
        assert law.distribution(beyond).tolist() == [0.0, 1.0]
    single = law.distribution(law.quantile(q).float())
    assert single.dtype == torch.float32
    assert float((single - q).abs().max()) < 1e-4


@EACH
def test_samples_have_the_law(law, generator):
    x = law.sample((20, 30), generator=generator).flatten().sort().values
    assert x.dtype == F64
    steps = (torch.arange(len(x), dtype=F64) + 0.5) / len(x)
    distance = float((law.distribution(x) - steps).abs().max())
    # Kolmogorov's distance exceeds this once in a million.
    assert distance < 2.7 / math.sqrt(len(x))


@EACH
def test_values_can_be_copied(law):
    assert pickle.loads(pickle.dumps(law)) == law == copy.deepcopy(law)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_fuss_catalan_is_the_law_of_products_of_layers(depth, generator):
    size = 300
    layers = torch.randn(depth, size, size, generator=generator, dtype=F64) / math.sqrt(size)
    x = torch.linalg.svdvals(torch.linalg.multi_dot([*layers, torch.eye(size, dtype=F64)]))
    rank = (torch.arange(size, 0, -1, dtype=F64) - 0.5) / size
    singular = laws.fuss_catalan(depth).power(0.5)
    assert float((singular.distribution(x) - rank).abs().max()) < 5 / size
    for k in range(4):
        exact = laws.fuss_catalan_moment(k, depth)
        assert laws.fuss_catalan(depth).moment(k) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("widths", [(300, 200, 400, 250), (200, 200, 300), (300, 400, 200, 200)])
def test_products_of_layers_of_any_widths(widths, generator):
    x = torch.eye(widths[0], dtype=F64)
    for before, after in itertools.pairwise(widths):
        x = torch.randn(after, before, generator=generator, dtype=F64) @ x / math.sqrt(before)
    r = min(widths)
    squares = torch.linalg.svdvals(x)[:r].square()
    law = laws.gaussian_product(widths)
    rank = (torch.arange(r, 0, -1, dtype=F64) - 0.5) / r
    assert float((law.distribution(squares) - rank).abs().max()) < 5 / r
    for k in (1, 2, 0.5):
        assert float((squares**k).mean()) == pytest.approx(law.moment(k), rel=0.1)


def test_products_of_layers_are_the_known_laws():
    """Fuss and Catalan's at equal widths, Marchenko and Pastur's for one layer."""
    q = torch.tensor([1e-4, 0.3, 0.9, 0.999], dtype=F64)
    pairs = [
        (laws.gaussian_product([7, 7, 7, 7]), laws.fuss_catalan(3)),
        (laws.gaussian_product((9, 4), 0.7), laws.marchenko_pastur((4, 9), 0.7).power(2)),
    ]
    for law, known in pairs:
        x = known.quantile(q)
        assert_close(law.quantile(q), x, ops=1e4)
        assert_close(law.density(x), known.density(x), ops=1e4)
        assert law.high == pytest.approx(known.high, rel=1e-11)
        assert law.low == pytest.approx(known.low, rel=1e-11)
        for k in (1, 3, 0.5, -0.2):
            assert law.moment(k) == pytest.approx(known.moment(k), rel=1e-10)


def test_quarter_circle_is_what_the_others_come_to():
    x = torch.linspace(0.01, 1.69, 12, dtype=F64)
    quarter = laws.quarter_circle(1.7)
    square = laws.marchenko_pastur((5, 5), 1.7**2 / 20)
    for law in (laws.ullman(2, 1.7), laws.fuss_catalan(1).power(0.5, 0.85), square):
        assert_close(law.density(x), quarter.density(x))
        assert_close(law.distribution(x), quarter.distribution(x))
        assert law.moment(1.3) == pytest.approx(quarter.moment(1.3))


def test_ullman_is_the_equilibrium_of_charges_in_a_power():
    """The force ``int 2 s/(s^2-t^2) mu(dt)`` of the law is ``2 b s^{q-1}``, b of its radius 1.

    By midpoint sums over quantiles, between two of which the principal value has no error of its
    own. The edge, ``1 - t ~ (1 - share)^{2/3}``, leaves one of order 5/3.
    """
    q = 0.8
    law = laws.ullman(q, 1.0)
    b = math.sqrt(math.pi) * math.gamma(q / 2 + 1) / math.gamma((q + 1) / 2)
    s = law.quantile(torch.tensor([0.16, 0.4, 0.7, 0.96], dtype=F64))
    sizes, errors = (250, 500, 1000, 2000), []
    for n in sizes:
        t = law.quantile((torch.arange(n, dtype=F64) + 0.5) / n)
        force = (2 * s[:, None] / (s[:, None] ** 2 - t**2)).mean(-1)
        errors.append(float((force / (2 * b * s ** (q - 1)) - 1).abs().max()))
    assert_order([1 / n for n in sizes], errors, 5 / 3)
    assert errors[-1] < 1e-4


def test_density_at_zero_is_its_limit():
    assert laws.ullman(0.7).density(0.0) == math.inf
    assert float(laws.ullman(1.5).density(0.0)) == pytest.approx(2 * 1.5 / math.pi / 0.5)
    assert float(laws.fuss_catalan(3).power(1 / 6).density(0.0)) == pytest.approx(0.0, abs=1e-30)


def test_methods_refuse_what_means_nothing():
    law = laws.fuss_catalan(2)
    for method, name in (("density", "x"), ("distribution", "x"), ("quantile", "q")):
        for value in wrong.vectors(torch.tensor([0.2, 0.4], dtype=F64)):
            with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
                getattr(law, method)(value)
    for value in wrong.FREE:
        with pytest.raises((TypeError, ValueError), match=r"\bk\b"):
            law.moment(value)
    with pytest.raises(ValueError, match="q must lie in"):
        law.quantile([0.5, 1.1])
    with pytest.raises(ValueError, match="k must be finite and above"):
        law.moment(-0.4)
    with pytest.raises(ValueError, match="k must be an integer"):
        laws.semicircle().moment(0.5)
    with pytest.raises(ValueError, match="law of positive numbers"):
        laws.semicircle().power(2.0)
    with pytest.raises(ValueError, match="depth must be finite"):
        laws.fuss_catalan(math.inf)
