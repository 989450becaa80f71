from __future__ import annotations

import pytest
import torch

from dln_geometry.learning.mirror import Mirror
from dln_geometry.testing import assert_close
from tests.learning.mirror.routes import F64


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: Mirror.permutation(q, {"x": 0}, 0, 1), ValueError, "must hold 'x'"),
        (lambda q: Mirror.permutation(q, {"w": 2}, 0, 1), ValueError, "between 0 and 1, got 2"),
        (lambda q: Mirror.permutation(q, {"w": 0.5}, 0, 1), TypeError, "must be an integer"),
        (lambda q: Mirror.permutation(q, {"w": 0}, 0, 4), ValueError, "between 0 and 3, got 4"),
        (
            lambda q: Mirror.permutation(q, {"w": 0}, 1, 1),
            ValueError,
            "first and second must be distinct",
        ),
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
