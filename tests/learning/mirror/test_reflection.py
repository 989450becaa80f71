from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning.collapse import curvature
from dln_geometry.learning.mirror import Mirror
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.testing import assert_close
from tests.learning.mirror.routes import F64, HIDDEN, NETWORKS, matrix, mirrors, mlp


@pytest.mark.parametrize("name", NETWORKS)
def test_the_losses_of_real_networks_have_the_mirrors_claimed(name, generator):
    for loss, params, mirror in mirrors(name, generator):
        assert mirror.residual(loss, params, generator=generator) < 1e-12
        assert mirror.is_symmetric(loss, params, generator=generator)
        # The values themselves, without the help of the method.
        assert_close(loss(mirror.reflect(params)), loss(params))
        assert all(
            not torch.equal(mirror.reflect(params)[key], params[key]) for key in mirror.names
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_on_the_symmetric_set_gradient_and_hessian_have_blocks(name, generator):
    for loss, params, mirror in mirrors(name, generator):
        q = mirror.project(params)
        o = matrix(mirror, params)
        assert_close(o.mT @ o, torch.eye(mirror.dimension, dtype=F64))
        names = list(params)

        def flat_loss(v, loss=loss, q=q, names=names):
            pieces = v.split([q[n].numel() for n in names])
            return loss({n: p.reshape(q[n].shape) for n, p in zip(names, pieces, strict=True)})

        v = torch.cat([q[n].flatten() for n in names])
        gradient = torch.func.grad(flat_loss)(v)
        assert float((o.mT @ gradient).abs().max()) < 1e-10 * float(gradient.abs().max())
        h = torch.autograd.functional.hessian(flat_loss, v)
        along = h @ o
        off_diagonal = along - o @ (o.mT @ along)
        assert float(off_diagonal.abs().max()) < 1e-10 * float(h.abs().max())
        assert_close(curvature(loss, mirror, q), o.mT @ along, scale=h.abs().max())
        # At a generic point there is no such block.
        w = torch.cat([params[n].flatten() for n in names])
        elsewhere = torch.func.grad(flat_loss)(w)
        assert float((o.mT @ elsewhere).abs().max()) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_reflection_and_projection_are_those_of_the_matrix(name, dtype, generator):
    for _, params, mirror in mirrors(name, generator):
        o = matrix(mirror, params).to(dtype)
        q = {key: x.to(dtype) for key, x in params.items()}
        v = torch.cat([x.flatten() for x in q.values()])
        for actual, expected in (
            (mirror.reflect(q), v - 2 * o @ (o.mT @ v)),
            (mirror.project(q), v - o @ (o.mT @ v)),
        ):
            assert list(actual) == list(q)
            assert all(x.dtype == dtype for x in actual.values())
            assert_close(torch.cat([x.flatten() for x in actual.values()]), expected)
        assert_close(mirror.coordinates(q), o.mT @ v)
        touched = torch.cat([q[key].flatten() for key in mirror.names])
        size = (touched.numel() / mirror.dimension) ** 0.5
        assert_close(mirror.defect(q), size * (o.mT @ v).norm() / touched.norm())
        assert float(mirror.defect(mirror.project(q))) < 1e-5
        # The other route: the dense matrix as a mirror of the flat vector, and of the dict.
        dense = Mirror(o)
        assert_close(dense.reflect(v), v - 2 * o @ (o.mT @ v))
        assert_close(dense.reflect(q)[mirror.names[0]], mirror.reflect(q)[mirror.names[0]])


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_matrix_may_be_given_by_name_and_vectors_may_be_batches(dtype, generator):
    o = torch.linalg.qr(torch.randn(14, 3, generator=generator, dtype=dtype)).Q
    batch = torch.randn(2, 4, 14, generator=generator, dtype=dtype)
    mirror = Mirror(o)
    assert_close(mirror.coordinates(batch), batch @ o)
    assert_close(mirror.reflect(batch), batch - 2 * batch @ o @ o.mT)
    assert mirror.defect(batch).shape == (2, 4)
    assert_close(mirror.defect(batch)[1, 2], mirror.defect(batch[1, 2]))
    assert not mirror.defect(torch.zeros(14, dtype=dtype))
    q = {"a": batch[0, 0, :6].reshape(2, 3), "b": batch[0, 0, 6:]}
    shaped = Mirror({"a": o[:6].reshape(2, 3, 3), "b": o[6:]})
    flat = Mirror({"a": o[:6], "b": o[6:]})
    for m in (shaped, flat):
        assert_close(m.coordinates(q), o.mT @ batch[0, 0])
        assert_close(m.reflect(q)["a"], mirror.reflect(batch[0, 0])[:6].reshape(2, 3))


def test_gradients_and_transforms_pass_through(generator):
    loss, params = mlp(generator)
    mirror = Mirror.permutation(params, HIDDEN, 1, 4)
    direct = torch.func.grad(lambda q: loss(mirror.reflect(q)))(params)
    mirrored = mirror.reflect(torch.func.grad(loss)(mirror.reflect(params)))
    for name in params:
        assert_close(direct[name], mirrored[name])


def test_false_claims_carry_their_residual(generator):
    loss, params = mlp(generator, nn.ReLU)
    odd = Mirror.rescaling(params, HIDDEN, 2)
    assert not odd.is_symmetric(loss, params, generator=generator)
    turned = Mirror.rotation(params, HIDDEN, torch.ones(6))
    for mirror in (odd, turned):
        with pytest.raises(SymmetryError, match="must have the mirror symmetry .*residual") as e:
            mirror.require(loss, params)
        assert e.value.residual > 1e-3
    # A point that happens to be symmetric does not hide it.
    assert odd.residual(loss, odd.project(params), generator=generator) > 1e-3


def test_bad_points(generator):
    mirror = Mirror(torch.eye(4)[:, :2])
    with pytest.raises(ValueError, match=r"q must have shape \(4,\), got \(5,\)"):
        mirror.reflect(torch.ones(5))
    with pytest.raises(ValueError, match="q must be finite"):
        mirror.project(torch.full((4,), float("inf")))
    with pytest.raises(TypeError, match="must be a real floating tensor, got int"):
        mirror.reflect(3)
    with pytest.raises(ValueError, match=r"c must have shape \(\.\.\., 2\), got \(3,\)"):
        mirror.embed(torch.ones(3))
    q = {"w": torch.ones(4, 3), "v": torch.ones(3, 4)}
    named = Mirror.gauge(q, "w", "v", torch.ones(4))
    with pytest.raises(TypeError, match="must be a mapping with the tensors 'w', 'v', got Tensor"):
        named.reflect(torch.ones(24))
    with pytest.raises(ValueError, match="params must hold 'v', got 'w'"):
        named.reflect({"w": q["w"]})
    with pytest.raises(ValueError, match=r"q\['v'\] must have shape \(3, 4\), got \(4, 3\)"):
        named.defect({"w": q["w"], "v": q["w"]})


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda q: q, ValueError, r"real scalar of shape \(\), got \(4,\)"),
        (lambda q: 3.0, TypeError, "loss must return a tensor, got float"),
        (lambda q: torch.tensor(1.0), ValueError, "must depend on the parameters"),
        (lambda q: q.sum() / 0, ValueError, "loss must be finite"),
    ],
)
def test_bad_losses(loss, error, message):
    with pytest.raises(error, match=message):
        Mirror(torch.eye(4)[:, :2]).residual(loss, torch.ones(4))
