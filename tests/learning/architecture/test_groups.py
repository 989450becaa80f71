from __future__ import annotations

import pytest
import torch

from dln_geometry.learning import Part, SymmetricGroup
from dln_geometry.testing import assert_close


def test_parts_and_groups(generator):
    part = Part("w", axis=1, units=2, block=2, start=1)
    w = torch.randn(3, 6, 2, generator=generator)
    slices = part.slices(w)
    assert_close(slices[1, 0].reshape(3, 2), w[:, 3])
    assert_close(part.replaced(w, slices), w)
    changed = part.replaced(w, slices + 1)
    assert_close(changed[:, 1:5], w[:, 1:5] + 1)
    assert_close(changed[:, [0, 5]], w[:, [0, 5]])
    group = SymmetricGroup("gauge", (part,), (Part("v", 0, 2, 2),))
    assert group.diagonal().units == 4
    assert group.diagonal().total().units == 1
    assert group.total() is group
    with pytest.raises(ValueError, match="must hold 'w'"):
        group.check({})
    with pytest.raises(ValueError, match="w must have at least 5 entries along axis 1, got"):
        group.check({"w": torch.zeros(3, 4)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Part(3, 0, 1), TypeError, "name must be a string"),
        (lambda: Part("w", 0, 1.5), TypeError, "units must be an integer, got 1.5"),
        (lambda: Part("w", -1, 1), ValueError, "axis must be at least 0, got -1"),
        (lambda: SymmetricGroup("twist", (Part("w", 0, 1),)), ValueError, "kind must be one of"),
        (lambda: SymmetricGroup("scale", [Part("w", 0, 1)]), TypeError, "first must be a tuple"),
        (lambda: SymmetricGroup("scale", ()), ValueError, "first must hold at least one part"),
        (
            lambda: SymmetricGroup("rescale", (Part("w", 0, 1),)),
            ValueError,
            "second must hold parts in a group of kind 'rescale'",
        ),
        (
            lambda: SymmetricGroup("scale", (Part("w", 0, 1),), (Part("v", 0, 1),)),
            ValueError,
            "second must be empty",
        ),
        (
            lambda: SymmetricGroup("rescale", (Part("w", 0, 2),), (Part("v", 0, 3),)),
            ValueError,
            "one number of units, got [2, 3]".replace("[", r"\[").replace("]", r"\]"),
        ),
        (
            lambda: SymmetricGroup("gauge", (Part("w", 0, 2, 2),), (Part("v", 0, 2, 3),)),
            ValueError,
            "one block",
        ),
    ],
)  # fmt: skip
def test_bad_groups(make, error, message):
    with pytest.raises(error, match=message):
        make()
