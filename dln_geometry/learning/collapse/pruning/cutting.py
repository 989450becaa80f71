"""Cut entries of parameters and buffers, and the numbers of their modules that count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dln_geometry.learning.collapse.pruning.channels import Channels
from dln_geometry.learning.layers import DeepLinear, is_transposed_linear

Off = Sequence[tuple[int, ...]]
# The parameters that say the sizes of a module; of recurrent ones the inputs alone can go.
_COUNTING = ("weight", "weight_ih", "weight_ih_l0")


def is_depthwise(module: nn.Module) -> bool:
    """Tell whether a module is a convolution that gives every channel rows of its own."""
    if not isinstance(module, _ConvNd) or not isinstance(module.weight, Tensor):
        return False
    return module.groups > 1 and module.groups == module.in_channels and module.weight.shape[1] == 1


def cut_units(model: nn.Module, channels: Sequence[Channels], off: Off) -> None:
    """Cut the units of each family from all that holds them, in place."""
    places: dict[tuple[str, int], list[Tensor]] = {}
    for one, units in zip(channels, off, strict=True):
        if units:
            for name, (axis, positions) in {**one.family.axes, **one.buffers}.items():
                places.setdefault((name, axis), []).append(positions[list(units)].flatten())
    for (name, axis), parts in places.items():
        _cut_tensor(model, name, axis, torch.cat(parts))


def _cut_tensor(model: nn.Module, name: str, axis: int, cut: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = owner._parameters.get(leaf, owner._buffers.get(leaf))
    assert old is not None
    keep = torch.ones(old.shape[axis], dtype=torch.bool, device="cpu")
    keep[cut.cpu()] = False
    new = old.detach().index_select(axis, keep.nonzero()[:, 0].to(old.device))
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    for module in model.modules():
        held: Any
        for held in (module._parameters, module._buffers):
            for key in [k for k, value in held.items() if value is old]:
                several = is_depthwise(module)
                held[key] = new
                if isinstance(module, nn.RNNBase):
                    module._flat_weights = [getattr(module, n) for n in module._flat_weights_names]
                if key in _COUNTING or isinstance(module, _NormBase):
                    _renumber(module, new, depthwise=several)
    above = model.get_submodule(path.rpartition(".")[0])
    if isinstance(owner, nn.ParameterList) and isinstance(above, DeepLinear):
        above.resized()


def _renumber(module: Any, new: Tensor, *, depthwise: bool) -> None:
    """Set the sizes that a module names to those of the tensor that it now has."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = new.shape
    elif isinstance(module, _ConvNd):
        first, second = new.shape[:2]
        if depthwise:
            module.groups = first // (module.out_channels // module.in_channels)
            module.in_channels, module.out_channels = module.groups, first
        elif module.groups != 1:
            raise ValueError("it belongs to a grouped convolution")
        elif isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = first, second
        else:
            module.out_channels, module.in_channels = first, second
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        module.input_size = new.shape[1]
    elif isinstance(module, _NormBase):
        module.num_features = len(new)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * len(new) // module.num_channels
        module.num_channels = len(new)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(new)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = new.shape
    elif is_transposed_linear(module):
        module.nf = new.shape[1]
        if hasattr(module, "nx"):
            module.nx = new.shape[0]
