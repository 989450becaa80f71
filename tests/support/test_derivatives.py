from __future__ import annotations

import pytest
import torch

from dln_geometry.support import is_differentiated, refuse_derivatives


def test_backward_and_forward_derivatives_are_seen():
    x = torch.ones(2)
    assert not is_differentiated(x, 1.0, None, [x])
    assert is_differentiated(x, x.clone().requires_grad_())
    with torch.no_grad():
        assert not is_differentiated(x.clone().requires_grad_())
    seen = []
    torch.func.jvp(lambda y: seen.append(is_differentiated(y)) or y, (x,), (x,))
    torch.func.grad(lambda y: seen.append(is_differentiated(y)) or y.sum())(x)
    assert seen == [True, True]


def test_a_refusal_names_the_function_and_the_way_out():
    refuse_derivatives("f", torch.ones(1))
    with pytest.raises(ValueError, match=r"^f has no derivative here, .* detach it"):
        refuse_derivatives("f", torch.ones(1, requires_grad=True))
