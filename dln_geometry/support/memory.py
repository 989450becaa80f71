"""Find tensors that share memory: a change of one in place would change the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shared_pair(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Return the places of two tensors that share an element, `None` if no two do.

    Both places are the same if a tensor holds one element several times (an expanded one). Tensors
    that lie side by side in one storage share nothing.
    """
    storages: dict[tuple[int, torch.dtype], list[int]] = {}
    for k, x in enumerate(tensors):
        if x.numel() and not x.is_meta and x.layout == torch.strided:
            storages.setdefault((x.untyped_storage().data_ptr(), x.dtype), []).append(k)
    for places in storages.values():
        if len(places) == 1 and tensors[places[0]].is_contiguous():
            continue
        size = tensors[places[0]].untyped_storage().nbytes() // tensors[places[0]].itemsize
        owner, numbers = torch.full((size,), -1, device="cpu"), torch.arange(size, device="cpu")
        for k in places:
            x = tensors[k]
            own = numbers.as_strided(x.size(), x.stride(), x.storage_offset()).reshape(-1)
            taken = owner[own]
            if bool((taken >= 0).any()):
                return int(taken.max()), k
            owner[own] = k
            if int((owner == k).sum()) < x.numel():
                return k, k
    return None
