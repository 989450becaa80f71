from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import functionalize
from dln_geometry.learning.collapse import curvature
from dln_geometry.learning.mirror import Mirror
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.testing import assert_close

F64 = torch.float64
HIDDEN = {"0.weight": 0, "0.bias": 0, "2.weight": 1}


def _fill(net, generator, dtype=F64):
    net = net.to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            z = torch.randn(p.shape, generator=generator, dtype=dtype)
            p.copy_(z / p[0].numel() ** 0.5 if p.ndim > 1 else 0.5 + 0.4 * z)
    return net


def _mlp(generator, unit=nn.Tanh, dtype=F64):
    net = _fill(nn.Sequential(nn.Linear(5, 6), unit(), nn.Linear(6, 3)), generator, dtype)
    x = torch.randn(9, 5, generator=generator, dtype=dtype)
    y = torch.randn(9, 3, generator=generator, dtype=dtype)
    return functionalize(net, functional.mse_loss, (x, y))


def _conv(generator):
    """A convolution with batch norm and pooling, whose channels are flattened into features."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    x = torch.randn(7, 2, 6, 6, generator=generator, dtype=F64)
    y = torch.randint(3, (7,), generator=generator)
    return functionalize(_fill(net, generator), functional.cross_entropy, (x, y))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def _attention(generator):
    x = torch.randn(6, 5, 8, generator=generator, dtype=F64)
    y = torch.randint(3, (6,), generator=generator)
    return functionalize(_fill(Block(), generator), functional.cross_entropy, (x, y))


def _linear_chain(generator, depth=3, width=4):
    widths = (5, *[width] * (depth - 1), 3)
    params = {
        f"w{p}": torch.randn(widths[p], widths[p - 1], generator=generator, dtype=F64) / 2
        for p in range(1, depth + 1)
    }
    a = torch.randn(3, 5, generator=generator, dtype=F64)

    def loss(q):
        x = q["w1"]
        for p in range(2, depth + 1):
            x = q[f"w{p}"] @ x
        return (x - a).sin().square().sum()

    return loss, params


def _mirrors(name, generator):
    """Yield a loss, its parameters, and mirrors that it has."""
    if name == "mlp":
        loss, params = _mlp(generator)
        yield loss, params, Mirror.permutation(params, HIDDEN, 1, 4)
        yield loss, params, Mirror.permutation(params, HIDDEN, [0, 2], [5, 3])
        yield loss, params, Mirror.permutation(params, HIDDEN, 0, 3, sign=-1.0)
        yield loss, params, Mirror.rescaling(params, HIDDEN, [2, 4])
    elif name == "convolution":
        loss, params = _conv(generator)
        features = torch.arange(16).reshape(4, 4)
        channels = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0}
        axes = {**channels, "5.weight": (1, features)}
        yield loss, params, Mirror.permutation(params, axes, 0, 3)
        # A normalisation does not see the scale before it, but the sign: it comes out again.
        before = {"0.weight": 0, "0.bias": 0, "1.weight": 0}
        yield loss, params, Mirror.rescaling(params, before, 1)
    elif name == "attention":
        loss, params = _attention(generator)
        query, key = torch.arange(8), torch.arange(8) + 8
        pairs = torch.stack([query, key], -1)
        inside = {"attention.in_proj_weight": (0, pairs), "attention.in_proj_bias": (0, pairs)}
        yield loss, params, Mirror.rescaling(params, inside, 5)
        values = torch.arange(16, 24)[:4]
        outside = {
            "attention.in_proj_weight": (0, values), "attention.in_proj_bias": (0, values),
            "attention.out_proj.weight": (1, range(4)),
        }  # fmt: skip
        n = torch.randn(4, generator=generator, dtype=F64)
        yield loss, params, Mirror.rotation(params, outside, n)
        heads = torch.arange(24).reshape(3, 2, 4).movedim(1, 0).reshape(2, 12)
        rows = {"attention.in_proj_weight": (0, heads), "attention.in_proj_bias": (0, heads)}
        columns = {"attention.out_proj.weight": (1, torch.arange(8).reshape(2, 4))}
        yield loss, params, Mirror.permutation(params, {**rows, **columns}, 0, 1)
    else:
        loss, params = _linear_chain(generator)
        n = torch.randn(4, generator=generator, dtype=F64)
        yield loss, params, Mirror.gauge(params, "w1", "w2", n)
        frame = torch.linalg.qr(torch.randn(4, 2, generator=generator, dtype=F64)).Q
        yield loss, params, Mirror.gauge(params, "w2", "w3", frame)


NETWORKS = ("mlp", "convolution", "attention", "chain")


def _matrix(mirror, params):
    """Return O as a matrix on the concatenated parameters."""
    columns = mirror.embed(torch.eye(mirror.dimension, dtype=F64))
    return torch.cat(
        [
            columns[name].flatten(1).mT
            if name in columns
            else torch.zeros(q.numel(), mirror.dimension, dtype=F64)
            for name, q in params.items()
        ]
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_losses_of_real_networks_have_the_mirrors_claimed(name, generator):
    for loss, params, mirror in _mirrors(name, generator):
        assert mirror.residual(loss, params, generator=generator) < 1e-12
        assert mirror.is_symmetric(loss, params, generator=generator)
        # The values themselves, without the help of the method.
        assert_close(loss(mirror.reflect(params)), loss(params))
        assert all(
            not torch.equal(mirror.reflect(params)[key], params[key]) for key in mirror.names
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_on_the_symmetric_set_gradient_and_hessian_have_blocks(name, generator):
    for loss, params, mirror in _mirrors(name, generator):
        q = mirror.project(params)
        o = _matrix(mirror, params)
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
    for _, params, mirror in _mirrors(name, generator):
        o = _matrix(mirror, params).to(dtype)
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


@pytest.mark.parametrize("kind", ["permutation", "rescaling", "rotation"])
def test_a_tensor_may_be_met_on_several_axes(kind, generator):
    q = {"w": torch.randn(5, 2, 5, 4, generator=generator, dtype=F64)}
    n = torch.randn(5, 2, generator=generator, dtype=F64)
    n = torch.linalg.qr(n).Q
    if kind == "permutation":
        mirror = Mirror.permutation(q, {"w": [0, 2]}, 1, 3)
        r = torch.eye(5, dtype=F64)[[0, 3, 2, 1, 4]]
    elif kind == "rescaling":
        mirror = Mirror.rescaling(q, {"w": [0, 2]}, [4, 2])
        r = torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0], dtype=F64))
    else:
        mirror = Mirror.rotation(q, {"w": [0, 2]}, n)
        r = torch.eye(5, dtype=F64) - 2 * n @ n.mT
    expected = torch.einsum("ai,ijkl,ck->ajcl", r, q["w"], r)
    assert_close(mirror.reflect(q)["w"], expected)
    # The dimension is that of the eigenvalue -1.
    full = torch.kron(r, r)
    assert mirror.dimension == 8 * int((torch.linalg.eigvalsh(full) < 0).sum())


def test_swaps_of_a_product(generator):
    q = {name: torch.randn(3, 4, generator=generator, dtype=F64) for name in ("u", "v")}
    a = torch.randn(3, 4, generator=generator, dtype=F64)

    def loss(q):
        return (q["u"] * q["v"] - a).square().sum()

    for sign in (1.0, -1.0):
        mirror = Mirror.swap(q, "u", "v", sign=sign)
        moved = mirror.reflect(q)
        assert_close(moved["u"], sign * q["v"])
        assert_close(moved["v"], sign * q["u"])
        assert mirror.is_symmetric(loss, q, generator=generator)
    both = Mirror.join(Mirror.swap(q, "u", "v"), Mirror.swap(q, "u", "v", sign=-1.0))
    # Together they are the change of both signs.
    assert_close(both.reflect(q)["u"], -q["u"])


def test_memory_is_linear_in_the_parameters():
    q = {"w": torch.zeros(1000, 1000), "v": torch.zeros(1000, 1000)}
    n = torch.ones(1000)
    for mirror in (
        Mirror.rotation(q, {"w": 0, "v": 1}, n),
        Mirror.permutation(q, {"w": 0, "v": 1}, range(500), range(500, 1000)),
        Mirror.rescaling(q, {"w": [0, 1]}, range(400)),
        Mirror.swap(q, "w", "v"),
    ):
        held = [
            x
            for term in mirror.terms
            for part in term
            for slot in part.slots
            for x in (slot.index, slot.frame)
            if x is not None
        ]
        assert sum(x.numel() for x in held) <= 1_010_000
        assert mirror.dimension >= 2000


def test_gradients_and_transforms_pass_through(generator):
    loss, params = _mlp(generator)
    mirror = Mirror.permutation(params, HIDDEN, 1, 4)
    direct = torch.func.grad(lambda q: loss(mirror.reflect(q)))(params)
    mirrored = mirror.reflect(torch.func.grad(loss)(mirror.reflect(params)))
    for name in params:
        assert_close(direct[name], mirrored[name])


def test_false_claims_carry_their_residual(generator):
    loss, params = _mlp(generator, nn.ReLU)
    odd = Mirror.rescaling(params, HIDDEN, 2)
    assert not odd.is_symmetric(loss, params, generator=generator)
    turned = Mirror.rotation(params, HIDDEN, torch.ones(6))
    for mirror in (odd, turned):
        with pytest.raises(SymmetryError, match="must have the mirror symmetry .*residual") as e:
            mirror.require(loss, params)
        assert e.value.residual > 1e-3
    # A point that happens to be symmetric does not hide it.
    assert odd.residual(loss, odd.project(params), generator=generator) > 1e-3


def test_bad_matrices(generator):
    with pytest.raises(ValueError, match="orthonormal columns, got an error of 1.000e"):
        Mirror(torch.ones(2, 1))
    with pytest.raises(ValueError, match="orthonormal columns"):
        Mirror(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"o must have shape \(\.\.\., k\), got \(3,\)"):
        Mirror(torch.ones(3))
    with pytest.raises(ValueError, match="o must be finite"):
        Mirror([[float("nan")]])
    with pytest.raises(TypeError, match="o must be a real array"):
        Mirror("o")
    with pytest.raises(ValueError, match="o must hold at least one matrix"):
        Mirror({})
    with pytest.raises(ValueError, match="one number of columns"):
        Mirror({"a": torch.eye(3), "b": torch.zeros(3, 2)})
    q = {"w": torch.ones(4, 3)}
    first, second = (Mirror.permutation(q, {"w": 0}, 0, i) for i in (1, 2))
    with pytest.raises(ValueError, match="not orthogonal to each other"):
        Mirror.join(first, second)
    assert Mirror.join(first, Mirror.permutation(q, {"w": 0}, 2, 3)).dimension == 6


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
    ("call", "error", "message"),
    [
        (lambda q: Mirror.permutation(q, {"x": 0}, 0, 1), ValueError, "must hold 'x'"),
        (lambda q: Mirror.permutation(q, {"w": 2}, 0, 1), ValueError, "between 0 and 1, got 2"),
        (lambda q: Mirror.permutation(q, {"w": 0.5}, 0, 1), TypeError, "must be an integer"),
        (lambda q: Mirror.permutation(q, {"w": 0}, 0, 4), ValueError, "between 0 and 3, got 4"),
        (lambda q: Mirror.permutation(q, {"w": 0}, 1, 1), ValueError, "first and second must be distinct"),
        (lambda q: Mirror.permutation(q, {"w": 0}, [0, 1], 2), ValueError, "as many, got 2 and 1"),
        (lambda q: Mirror.permutation(q, {"w": 0, "v": 0}, 0, 1), ValueError, "number of units"),
        (lambda q: Mirror.permutation(q, {}, 0, 1), TypeError, "non-empty mapping"),
        (
            lambda q: Mirror.permutation(q, {"w": (0, [0, 9])}, 0, 1),
            ValueError,
            "between 0 and 3, got 9",
        ),
        (
            lambda q: Mirror.permutation(q, {"w": (0, [0, 0])}, 0, 1),
            ValueError,
            "positions of 'w' must be distinct",
        ),
        (lambda q: Mirror.permutation(q, {"w": [0, 0]}, 0, 1), ValueError, "must be distinct"),
        (
            lambda q: Mirror.rescaling(q, {"w": 0}, 1.5),
            TypeError,
            "units must be integers, got torch.float",
        ),
        (lambda q: Mirror.rescaling(q, {"w": 0}, []), ValueError, "units must be one or more"),
        (lambda q: Mirror.rescaling(q, {"w": 0}, [1, 1]), ValueError, "units must be distinct"),
        (lambda q: Mirror.rescaling(q, {"w": 0}, "ab"), TypeError, "units must be integers"),
        (lambda q: Mirror.rescaling(q, {"w": 0}, True), TypeError, "integers, got torch.bool"),
        (lambda q: Mirror.rescaling(q, {"w": (0, [[[1]]])}, 0), ValueError, r"got \(1, 1, 1\)"),
        (lambda q: Mirror.rotation(q, {"w": 0}, torch.ones(3)), ValueError, r"shape \(4,\)"),
        (lambda q: Mirror.rotation(q, {"w": 0}, torch.zeros(4)), ValueError, "must not be zero"),
        (lambda q: Mirror.rotation(q, {"w": 0}, torch.ones(4, 2)), ValueError, "orthonormal"),
        (lambda q: Mirror.swap(q, "w", "v"), ValueError, "two tensors of one shape"),
        (lambda q: Mirror.swap(q, "w", "w"), ValueError, "two tensors of one shape"),
        (lambda q: Mirror.swap(q, "w", "w2", sign=2.0), ValueError, "sign must be 1 or -1"),
        (lambda q: Mirror.rescaling({"w": 3}, {"w": 0}, 0), TypeError, "floating tensor, got int"),
        (lambda q: Mirror.join(), ValueError, "one or more of the same kind"),
    ],
)
def test_bad_constructions(call, error, message):
    q = {"w": torch.ones(4, 3), "v": torch.ones(3, 5), "w2": torch.ones(4, 3)}
    with pytest.raises(error, match=message):
        call(q)


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
