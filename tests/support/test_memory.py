from __future__ import annotations

import pytest
import torch

from dln_geometry.support import shared_pair

ONE, FLAT = torch.zeros(3, 4), torch.zeros(24)


@pytest.mark.parametrize(
    ("tensors", "pair"),
    [
        ([ONE, torch.zeros(3, 4), ONE], (0, 2)),
        ([torch.zeros(2), ONE, ONE.T], (1, 2)),
        ([ONE[:2], ONE[1:]], (0, 1)),
        ([torch.zeros(3).expand(2, 3)], (0, 0)),
        ([ONE[:1], ONE[1:]], None),
        # Interleaved: the ranges of addresses overlap, the elements do not.
        ([FLAT[::2].reshape(3, 4), FLAT[1::2].reshape(3, 4)], None),
        ([FLAT[::2].reshape(3, 4), FLAT[::3].reshape(2, 4)], (0, 1)),
        ([ONE.to("meta"), ONE.to("meta")], None),
        ([ONE[:, :0], ONE[:, :0]], None),
        ([], None),
    ],
)
def test_tensors_with_common_elements_are_found(tensors, pair):
    assert shared_pair(tensors) == pair
