"""Problems of the tests of motion, and slower ways to the same results."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import nn
from torch.func import grad, hessian, jacrev, jvp

from dln_geometry.learning import Rule, flatten, functionalize, sharpness, unflatten
from dln_geometry.learning.functional import combination, gradient_of, with_exact_derivatives
from dln_geometry.ode import integrate
from dln_geometry.testing import assert_close

F64 = torch.float64
# In units of 1 / sharpness: above, an order 5 still feels the sixth.
FRACTIONS = (0.12, 0.06, 0.04, 0.03)
STEPS = (20, 40, 60, 80)


def network(generator, dtype=F64):
    """A small network by hand: three tensors, nothing symmetric, sharpness about 3."""
    options = {"generator": generator, "dtype": F64}
    params = {
        "w": torch.randn(3, 2, **options),
        "v": torch.randn(1, 3, **options),
        "b": torch.randn(3, **options),
    }
    x, y = torch.randn(7, 2, **options), torch.randn(7, 1, **options)

    def loss(p):
        hidden = torch.tanh(x.to(p["w"]) @ p["w"].mT + p["b"])
        return (hidden @ p["v"].mT - y.to(p["w"])).square().mean()

    return loss, {name: p.to(dtype) for name, p in params.items()}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(4, 2, batch_first=True, dtype=F64) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x, x, x, need_weights=False)[0]
        return x.mean(1)


def modules(kind, generator):
    if kind == "layer norm":
        module = nn.Sequential(
            nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)
        ).double()
        inputs = torch.randn(6, 3, generator=generator, dtype=F64)
    elif kind == "batch norm":
        module = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 2)
        ).double()
        inputs = torch.randn(5, 1, 4, 4, generator=generator, dtype=F64)
    else:
        module = nn.Sequential(Attention(), nn.Linear(4, 2, dtype=F64))
        inputs = torch.randn(5, 3, 4, generator=generator, dtype=F64)
    for p in module.parameters():
        nn.init.normal_(p, 0.1, 0.5, generator=generator)
    target = torch.randn(len(inputs), 2, generator=generator, dtype=F64)
    return functionalize(module, nn.functional.mse_loss, (inputs, target))


def dense(loss, params):
    """Gradient, Hessian and third derivative as arrays."""

    def flat(x):
        return loss(unflatten(x, params))

    x = flatten(params)
    return grad(flat)(x), hessian(flat)(x), jacrev(hessian(flat))(x)


def same(actual, expected, ops=1000):
    a, b = flatten(actual), flatten(expected)
    assert list(actual) == list(expected)
    assert_close(a, b, ops=ops)


def descend(loss, lr, params, steps):
    path = [params]
    for _ in range(steps):
        path.append(Rule(lr=lr).step(loss, path[-1])[0])
    return path


def flow(field, start, t_end):
    solution = integrate(
        field.field(start), flatten(start)[None], t_end=t_end, rtol=1e-12, atol=1e-14,
        save_at=[t_end],
    )  # fmt: skip
    return solution.saved["y"][-1, 0]


def rates(loss, params, generator):
    return [c / float(sharpness(loss, params, generator=generator)) for c in FRACTIONS]


def global_errors(field_of, loss, params, lrs):
    """Distances of the flow and the iterates at one time, for every learning rate."""
    errors = []
    for lr, steps in zip(lrs, STEPS, strict=True):
        last = flatten(descend(loss, lr, params, steps)[-1])
        errors.append(float((flow(field_of(lr), params, lr * steps) - last).norm()))
    return errors


def recursive_counter_terms(loss, order):
    """The counter terms by their recursion, in nested forward derivatives.

    ``F_i = - sum_{j=1}^i 1/(j+1)! sum_{k_1+..+k_{j+1} = i-j} D_{k_1} .. D_{k_j} F_{k_{j+1}}``
    with ``F_0 = -g``, ``F_i = -xi_{i-1}`` and ``D_k = F_k . grad`` (Miyagawa, arXiv 2210.15898).
    It is exact at every order, and slower by orders of magnitude above order 2.
    """
    gradient = gradient_of(with_exact_derivatives(loss))
    fields = [lambda q: combination([(-1.0, gradient(q))])]

    def along(k, h):
        return lambda q: jvp(h, (q,), (fields[k](q),))[1]

    def next_field(i):
        def field(q):
            terms = []
            for j in range(1, i + 1):
                for ks in product(range(i - j + 1), repeat=j + 1):
                    if sum(ks) == i - j:
                        h = fields[ks[-1]]
                        for k in reversed(ks[:-1]):
                            h = along(k, h)
                        terms.append((-1.0 / math.factorial(j + 1), h(q)))
            return combination(terms)

        return field

    for i in range(1, order + 2):
        fields.append(next_field(i))
    return lambda params: [combination([(-1.0, f(params))]) for f in fields[1:]]
