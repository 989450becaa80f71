from __future__ import annotations

import pytest
import torch
from torch.func import jvp, vmap

from dln_geometry.learning import counter_terms, flatten, sharpness
from dln_geometry.testing import assert_close
from tests.learning.motion.routes import F64, dense, modules, network, recursive_counter_terms, same


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_counter_terms_are_the_printed_formulas(dtype, generator):
    loss, params = network(generator, dtype)
    g, h, t = dense(loss, params)
    tgg = torch.einsum("ijk,j,k->i", t, g, g)
    tgu = torch.einsum("ijk,j,k->i", t, g, h @ g)
    expected = [h @ g / 2, h @ h @ g / 3 + tgg / 12, h @ h @ h @ g / 4 + h @ tgg / 12 + tgu / 12]
    for order in range(3):
        terms = counter_terms(loss, order)(params)
        assert len(terms) == order + 1
        for xi, xi_dense in zip(terms, expected, strict=False):
            assert {name: x.dtype for name, x in xi.items()} == dict.fromkeys(params, dtype)
            assert_close(flatten(xi), xi_dense, ops=1000)


@pytest.mark.parametrize("kind", ["layer norm", "batch norm", "attention"])
def test_closed_forms_are_the_recursion_on_real_networks(kind, generator):
    loss, params = modules(kind, generator)
    for a, b in zip(
        counter_terms(loss, 2)(params), recursive_counter_terms(loss, 2)(params), strict=True
    ):
        same(a, b, ops=3000)


@pytest.mark.slow
def test_every_order_is_the_recursion(generator):
    loss, params = network(generator)
    expected = recursive_counter_terms(loss, 3)(params)
    for order in (1, 3):
        for a, b in zip(counter_terms(loss, order)(params), expected, strict=False):
            same(a, b, ops=10000)


@pytest.mark.parametrize("order", [0, 1, 2, 5])
def test_counter_terms_of_a_quadratic_are_the_logarithm(order, generator):
    """All orders: xi_a = H^(a+1) g / (a + 2)."""
    a = torch.randn(4, 4, generator=generator, dtype=F64) / 2
    q = torch.randn(4, generator=generator, dtype=F64)
    h = a + a.mT
    terms = counter_terms(lambda p: p["q"] @ a @ p["q"], order)({"q": q})
    for k, xi in enumerate(terms):
        expected = torch.linalg.matrix_power(h, k + 2) @ q / (k + 2)
        assert_close(xi["q"], expected, ops=10000)


def test_numbers_as_parameters_keep_their_precision():
    terms = counter_terms(lambda p: (0.5 * p["q"] * 2.0).square(), 3)({"q": torch.tensor(1.5)})
    assert [xi["q"].dtype for xi in terms] == [torch.float32] * 4


def test_counter_terms_can_be_differentiated_and_mapped(generator):
    loss, params = network(generator)
    v = {name: torch.randn(p.shape, generator=generator, dtype=F64) for name, p in params.items()}
    terms = counter_terms(loss, 2)
    _, slope = jvp(lambda p: terms(p)[2], (params,), (v,))
    step = 1e-5
    ahead, behind = (
        flatten(terms({name: p + s * v[name] for name, p in params.items()})[2])
        for s in (step, -step)
    )
    difference = (ahead - behind) / (2 * step)
    assert (flatten(slope) - difference).norm() < 1e-7 * difference.norm()
    many = {name: torch.stack([p, 0.5 * p]) for name, p in params.items()}
    mapped = vmap(lambda p: terms(p)[2])(many)
    for k, factor in enumerate((1.0, 0.5)):
        alone = terms({name: factor * p for name, p in params.items()})[2]
        same({name: x[k] for name, x in mapped.items()}, alone)


def test_memory_is_linear_in_the_parameters(generator):
    """A dense Hessian of 120000 parameters would take 58 GB."""
    x = torch.randn(3, 400, generator=generator)
    params = {"w": torch.randn(300, 400, generator=generator) / 20}

    def loss(p):
        return (x @ p["w"].mT).sin().sum()

    for term in counter_terms(loss, 2)(params):
        assert term["w"].shape == params["w"].shape
        assert bool(torch.isfinite(term["w"]).all())
    assert float(sharpness(loss, params, generator=generator)) > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f, q: counter_terms(f, -1), ValueError, "order must be at least 0"),
        (lambda f, q: counter_terms(f, True), TypeError, "order must be an integer"),
    ],
)  # fmt: skip
def test_orders_that_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(lambda p: p["q"].square().sum(), {"q": torch.ones(2)})
