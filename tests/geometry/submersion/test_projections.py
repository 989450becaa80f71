from __future__ import annotations

import itertools
import math

import pytest
import torch

import dln_geometry as dln
from dln_geometry.geometry.submersion import (
    horizontal,
    horizontal_frame,
    lift,
    pushforward,
    tangent,
    vertical,
    vertical_frame,
)
from dln_geometry.testing import assert_close
from tests.geometry.submersion.routes import (
    ambient,
    condition,
    draw,
    flat,
    network,
    numerical_tangent,
)


@network
def test_pushforward_and_lift_against_autodiff(widths, rank, spectrum, generator):
    factors = [
        torch.randn(b, a, generator=generator, dtype=torch.float64)
        for a, b in itertools.pairwise(widths)
    ]
    v = ambient(factors, generator)
    z = torch.randn(widths[-1], widths[0], generator=generator, dtype=torch.float64)

    def multiply(*layers):
        x = layers[0]
        for w in layers[1:]:
            x = w @ x
        return x

    value, pushed = torch.func.jvp(multiply, tuple(factors), v)
    assert_close(dln.end_to_end(factors), value)
    assert_close(pushforward(factors, v), pushed)
    _, pull = torch.func.vjp(multiply, *factors)
    for a, b in zip(lift(factors, z), pull(z), strict=True):
        assert_close(a, b)


@network
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_frames_are_orthonormal_and_have_the_right_size(widths, rank, spectrum, dtype, generator):
    factors = draw(widths, rank, spectrum, generator, dtype, batch=(2,))
    across, along = flat(horizontal_frame(factors)), flat(vertical_frame(factors))
    m, n = widths[-1], widths[0]
    assert across.shape[-2] == rank * (m + n - rank)
    hidden = widths[1:-1]
    assert along.shape[-2] == sum(d * rank - rank * (rank + 1) // 2 for d in hidden)
    frame = torch.cat((across, along), -2)
    assert frame.shape[-2] == dln.balanced_dimension(widths, rank)
    eye = torch.eye(frame.shape[-2], dtype=dtype).expand(2, -1, -1)
    assert_close(frame @ frame.mT, eye, condition=condition(spectrum, len(factors)))


@network
def test_projections_against_frames_and_numerical_tangent_space(widths, rank, spectrum, generator):
    factors = draw(widths, rank, spectrum, generator)
    v = ambient(factors, generator)
    kappa = condition(spectrum, len(factors))
    for project, frame in ((horizontal, horizontal_frame), (vertical, vertical_frame)):
        basis = flat(frame(factors))
        assert_close(
            flat(project(factors, v)), basis.mT @ (basis @ flat(v)), scale=4, condition=kappa
        )
    basis = numerical_tangent(widths, rank, factors)
    assert basis.shape[0] == dln.balanced_dimension(widths, rank)
    expected = basis.mT @ (basis @ flat(v))
    assert_close(flat(tangent(factors, v)), expected, ops=1000, scale=4, condition=kappa)


@network
def test_projections_are_idempotent_and_self_adjoint(widths, rank, spectrum, generator):
    factors = draw(widths, rank, spectrum, generator)
    v, w = ambient(factors, generator), ambient(factors, generator)
    kappa = condition(spectrum, len(factors))
    size = float(flat(v).norm() * flat(w).norm())
    for project in (horizontal, vertical, tangent):
        once = project(factors, v)
        assert_close(flat(project(factors, once)), flat(once), scale=4, condition=kappa)
        left, right = flat(once) @ flat(w), flat(v) @ flat(project(factors, w))
        assert_close(left, right, scale=size, condition=kappa)
    crossed = flat(horizontal(factors, vertical(factors, v)))
    assert_close(crossed, torch.zeros_like(crossed), scale=4, condition=kappa)


@network
def test_horizontal_is_lift_of_the_inverse_cometric(widths, rank, spectrum, generator):
    factors = draw(widths, rank, spectrum, generator)
    depth = len(factors)
    v = ambient(factors, generator)
    point = dln.EndToEnd.of(dln.end_to_end(factors), depth, rank=rank)
    moved = pushforward(factors, v)
    if depth == 1:
        left = torch.eye(widths[1], dtype=torch.float64) - point.u @ point.u.mT
        right = torch.eye(widths[0], dtype=torch.float64) - point.vh.mT @ point.vh
        moved = moved - left @ moved @ right
    expected = lift(factors, dln.metric(point, moved))
    ratio = condition(spectrum, 1)
    assert_close(flat(horizontal(factors, v)), flat(expected), scale=4, condition=ratio**2)


@network
def test_submersion_is_an_isometry_on_horizontal_vectors(widths, rank, spectrum, generator):
    factors = draw(widths, rank, spectrum, generator)
    depth = len(factors)
    point = dln.EndToEnd.of(dln.end_to_end(factors), depth, rank=rank)
    v = horizontal(factors, ambient(factors, generator))
    w = horizontal(factors, ambient(factors, generator))
    downstairs = dln.inner(point, pushforward(factors, v), pushforward(factors, w))
    size = float(flat(v).norm() * flat(w).norm())
    assert_close(downstairs, flat(v) @ flat(w), scale=size, condition=condition(spectrum, 1))


@network
def test_kernel_of_the_differential_is_vertical(widths, rank, spectrum, generator):
    factors = draw(widths, rank, spectrum, generator)
    across, along = horizontal_frame(factors), vertical_frame(factors)
    if along[0].shape[0]:
        pushed = pushforward(factors, along)
        scale = len(factors) * float(max(torch.linalg.matrix_norm(w, 2) for w in factors)) ** (
            len(factors) - 1
        )
        assert_close(
            pushed,
            torch.zeros_like(pushed),
            scale=scale,
            condition=condition(spectrum, len(factors)),
        )
    # The horizontal space is orthogonal to all gauge directions, not to the rotations alone.
    for p, d in enumerate(widths[1:-1]):
        a = torch.randn(d, d, generator=generator, dtype=torch.float64)
        gauge = [torch.zeros_like(w) for w in factors]
        gauge[p], gauge[p + 1] = a @ factors[p], -factors[p + 1] @ a
        overlap = flat(across) @ flat(gauge)
        size = float(flat(gauge).norm())
        kappa = condition(spectrum, len(factors))
        assert_close(overlap, torch.zeros_like(overlap), scale=size, condition=kappa)
        gauge[p], gauge[p + 1] = (a - a.mT) @ factors[p], -factors[p + 1] @ (a - a.mT)
        assert_close(flat(vertical(factors, gauge)), flat(gauge), scale=2 * size, condition=kappa)


@pytest.mark.parametrize("depth", [2, 3, 7])
def test_gram_of_the_gauge_directions_is_a_jacobi_matrix(depth):
    lam = torch.tensor([1.3, 0.6], dtype=torch.float64)
    layers = [torch.diag(lam)] * depth
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    directions = []
    for p in range(depth - 1):
        v = [torch.zeros(2, 2, dtype=torch.float64) for _ in range(depth)]
        v[p], v[p + 1] = turn @ layers[p], -layers[p + 1] @ turn
        directions.append(flat(v))
    directions = torch.stack(directions)
    gram = directions @ directions.mT
    k = torch.arange(1, depth, dtype=torch.float64)
    cosines = 2 * lam.prod() * torch.cos(k * math.pi / depth)
    eigenvalues = 2 * (lam.square().sum() - cosines)
    assert_close(torch.linalg.eigvalsh(gram), eigenvalues)
    # Their normalised eigenvectors are the frame, up to sign.
    overlap = flat(vertical_frame(layers)) @ directions.mT / eigenvalues.sqrt().unsqueeze(-1)
    sines = torch.sin(torch.outer(k, k) * math.pi / depth) * math.sqrt(2 / depth)
    assert_close(overlap.abs(), sines.abs())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("depth", [200, 1000])
def test_deep_networks(depth, dtype, generator):
    widths = (3,) * (depth + 1)
    spectrum = (2.0, 2.0, 1e-6)
    factors = draw(widths, 3, spectrum, generator, dtype)
    v = ambient(factors, generator)
    parts = horizontal(factors, v), vertical(factors, v)
    whole = tangent(factors, v)
    # A frame is carried from layer to layer; its errors add up along the way.
    for part in (*parts, whole):
        size = float(flat(v).norm())
        inner = flat(part).double() @ (flat(v) - flat(part)).double()
        assert_close(inner.to(dtype), torch.zeros((), dtype=dtype), ops=depth, scale=size**2)
    gauge = [torch.zeros_like(w) for w in factors]
    p = depth // 3
    a = torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype)
    gauge[p], gauge[p + 1] = (a - a.mT) @ factors[p], -factors[p + 1] @ (a - a.mT)
    assert_close(flat(vertical(factors, gauge)), flat(gauge), ops=3 * depth)


def test_small_layers_do_not_underflow(generator):
    factors = draw((3,) * 401, 2, (0.5**400, 0.1**300), generator)
    v = ambient(factors, generator)
    part = horizontal(factors, v)
    inner = flat(part) @ (flat(v) - flat(part))
    assert_close(inner, 0.0, scale=float(flat(v).norm()) ** 2)
    assert float(flat(part).norm()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batches(dtype, generator):
    spectrum = torch.tensor([[2.0, 0.5], [1.0, 1.0], [0.3, 0.1]], dtype=dtype)
    factors = draw((4, 3, 3, 2), 2, spectrum, generator, dtype)
    v = ambient(factors, generator)
    for project in (horizontal, vertical, tangent):
        whole = project(factors, v)
        for b in range(3):
            one = project([w[b] for w in factors], [a[b] for a in v])
            assert_close(flat([a[b] for a in whole]), flat(one))
    # A vector may carry dimensions of its own in front, or none.
    stacked = tangent(factors, [torch.stack((a, 2 * a)) for a in v])
    assert_close(flat([a[1] for a in stacked]), 2 * flat(tangent(factors, v)))
    single = [a[0] for a in v]
    same = [a[:1].expand_as(a) for a in v]
    assert_close(flat(tangent(factors, single)), flat(tangent(factors, same)))
    assert all(a.dtype == dtype for a in tangent(factors, v))


def test_scalar_network_by_hand():
    layers = ([[2.0]], [[2.0]], [[2.0]])
    move = ([[1.0]], [[2.0]], [[6.0]])
    # One direction is left: all layers grow alike.
    for part in horizontal(layers, move):
        assert_close(part, [[3.0]], ops=10)
    for part in vertical(layers, move):
        assert_close(part, [[0.0]], scale=1)


BALANCED_DOORS = [
    lambda w: horizontal(w, w),
    lambda w: vertical(w, w),
    lambda w: tangent(w, w),
    horizontal_frame,
    vertical_frame,
]


@pytest.mark.parametrize("door", BALANCED_DOORS)
def test_points_must_be_balanced_and_of_one_rank(door, generator):
    layers = draw((3, 3, 3), 3, (2.0, 1.0, 0.5), generator)
    with pytest.raises(ValueError, match=r"balanced, got moments of relative size 5\.\de-01"):
        door((layers[0], 3 * layers[1]))
    spectrum = torch.tensor([[2.0, 1.0, 0.5], [2.0, 1.0, 0.0]], dtype=torch.float64)
    mixed = draw((3, 3, 3), 3, spectrum, generator)
    with pytest.raises(ValueError, match=r"one rank throughout the batch, got ranks 2 to 3"):
        door(mixed)
    with pytest.raises(ValueError, match="factors must not all vanish"):
        door((torch.zeros(2, 2), torch.zeros(2, 2)))
    with pytest.raises(ValueError, match="factors must chain"):
        door((torch.eye(2), torch.eye(3)))


@pytest.mark.parametrize("door", [horizontal, vertical, tangent, pushforward])
def test_vectors_must_match_the_layers(door, generator):
    layers = draw((3, 3, 2), 2, (2.0, 1.0), generator)
    with pytest.raises(ValueError, match="v must hold one matrix for each of 2 layers, got 1"):
        door(layers, layers[:1])
    with pytest.raises(ValueError, match=r"v\[1\] must have shape \(\.\.\., 2, 3\)"):
        door(layers, (layers[0], layers[0]))
    with pytest.raises(TypeError, match="v must be a sequence of matrices, got Tensor"):
        door(layers, layers[0])
    with pytest.raises(ValueError, match=r"v\[0\] must be finite"):
        door(layers, (math.nan * layers[0], layers[1]))


def test_covectors_must_match_the_product(generator):
    layers = draw((3, 3, 2), 2, (2.0, 1.0), generator)
    with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., 2, 3\)"):
        lift(layers, torch.ones(3, 2))


@pytest.mark.parametrize("name", ["tangent", "horizontal", "vertical", "horizontal_frame"])
def test_derivatives_in_the_layers_at_equal_values_are_refused(name, generator):
    spectrum = torch.tensor([1.5, 1.5, 0.7], dtype=torch.float64)
    layers = dln.random_balanced((3, 4, 3), spectrum=spectrum, generator=generator)
    leaves = [w.detach().requires_grad_() for w in layers]
    v = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in layers]
    out = getattr(dln, name)(leaves, *(() if name.endswith("frame") else (v,)))
    total = out.sum() if isinstance(out, torch.Tensor) else sum(x.sum() for x in out)
    with pytest.raises(ValueError, match="no derivative where singular values are equal"):
        torch.autograd.grad(total, leaves)
