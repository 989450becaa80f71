"""Cut entries of parameters, and the numbers of their modules that say how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dln_geometry.learning.collapse.detection import MirrorFamily
from dln_geometry.learning.layers import DeepLinear

Off = Sequence[tuple[int, ...]]


def cut_places(
    families: Sequence[MirrorFamily], off: Off, chosen: Sequence[int]
) -> list[tuple[str, int, Tensor]]:
    """Return the indices to be cut from each axis of each parameter."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    for k in chosen:
        for name, (axis, positions) in families[k].axes.items():
            found.setdefault((name, axis), []).append(positions[list(off[k])].flatten())
    return [(name, axis, torch.cat(parts).unique()) for (name, axis), parts in found.items()]


def _kept_places(size: int, cut: Tensor) -> Tensor:
    keep = torch.ones(size, dtype=torch.bool, device="cpu")
    keep[cut.cpu()] = False
    return keep.nonzero()[:, 0]


def cut_parameter(model: nn.Module, name: str, axis: int, places: Tensor) -> None:
    """Cut entries of a parameter, and of what its module holds for them."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = owner._parameters[leaf]
    assert old is not None
    kept = _kept_places(old.shape[axis], places)
    new = nn.Parameter(
        old.detach().index_select(axis, kept.to(old.device)), requires_grad=old.requires_grad
    )
    depthwise = isinstance(owner, _ConvNd) and owner.groups == owner.in_channels == old.shape[0]
    for module in model.modules():
        for key, value in module._parameters.items():
            if value is old:
                module._parameters[key] = new
    _cut_norm(owner, kept)
    if leaf == "weight":
        _renumber(owner, depthwise=depthwise)
    if isinstance(owner, nn.ParameterList):
        above = model.get_submodule(path.rpartition(".")[0])
        if isinstance(above, DeepLinear):
            above.resized()


def _cut_norm(module: nn.Module, kept: Tensor) -> None:
    """Cut the running statistics of a normalisation, once."""
    if not isinstance(module, _NormBase) or module.num_features == len(kept):
        return
    for key, value in module._buffers.items():
        if value is not None and value.ndim == 1:
            module._buffers[key] = value.index_select(0, kept.to(value.device))
    module.num_features = len(kept)


def cut_plain_norms(
    trial: nn.Module, model: nn.Module, family: MirrorFamily, units: Sequence[int]
) -> None:
    """Cut normalisations without parameters that stand between those of a family."""
    named = dict(model.named_modules())
    maker = next((n for n in family.names if n not in family.readers), None)
    if maker is None:
        return
    positions = family.axes[maker][1][list(units)].flatten()
    for name in family.through:
        module = named.get(name)
        if isinstance(module, _NormBase) and not module.affine:
            kept = _kept_places(module.num_features, positions)
            _cut_norm(trial.get_submodule(name), kept)


def _renumber(module: nn.Module, *, depthwise: bool) -> None:
    """Set the sizes that a module names to those of its weight."""
    weight = module._parameters["weight"]
    assert weight is not None
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _ConvNd):
        first, second = weight.shape[:2]
        if depthwise:
            module.groups = first
        elif module.groups != 1:
            raise ValueError("it belongs to a grouped convolution")
        if isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.out_channels, module.in_channels = first, second * module.groups
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
