"""Find the units of a model that are off, and set all of their weights to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree as pytree

from dln_geometry.learning.collapse.detection import MirrorFamily
from dln_geometry.learning.collapse.pruning.channels import Call, Channels
from dln_geometry.learning.collapse.pruning.cutting import is_depthwise
from dln_geometry.learning.collapse.pruning.grouped import whole_groups
from dln_geometry.learning.layers import is_transposed_linear

MIXED = "its removal changes the outputs"
# Each shows a channel that varies with probability 1/2 at least.
_SHAKES = 6


@torch.no_grad()
def outputs_of(model: nn.Module, call: Call) -> list[Tensor]:
    """Return the floating tensors among the outputs of a model."""
    try:
        made = model(*call[0], **call[1])
    except Exception as error:
        raise TypeError(f"example_input must be what the model takes: {error}") from error
    return [y for y in pytree.tree_leaves(made) if isinstance(y, Tensor) and y.is_floating_point()]


@torch.no_grad()
def silenced_units(
    model: nn.Module, channels: Sequence[Channels], call: Call
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the units of each family that are off, and those that are off but must stay.

    All weights of the first become zero, and the constants that they gave go into biases. It goes
    on while units that became zero empty others.
    """
    params = dict(model.named_parameters())
    expected = outputs_of(model, call)
    off: list[set[int]] = [set() for _ in channels]
    stay: list[set[int]] = [set() for _ in channels]
    news = True
    while news:
        news = False
        for known, held, one in zip(off, stay, channels, strict=True):
            if held:
                continue
            family = one.family
            fresh: set[int] = set()
            unread = _zero_units(family, params, family.readers)
            makers = [n for n in family.names if n not in family.readers]
            unmade = _zero_units(family, params, [n for n in makers if params[n].ndim > 1])
            for name in makers:
                if _is_gain(model, name):
                    gone = _zero_units(family, params, [name])
                    unmade = [a or b for a, b in zip(unmade, gone, strict=True)]
            constants: Mapping[str, Tensor] | None = None
            idle = {k for k in range(family.units) if unread[k] or unmade[k]}
            candidates = sorted(whole_groups(model, one, idle | known) - known)
            touched = _touched(model, family, params) if candidates else []
            old = [p.detach().clone() for p in touched]
            for unit in candidates:
                if len(known) + len(fresh) == family.units - 1:
                    break
                if not unread[unit]:
                    if constants is None:
                        constants = _lasting_constants(model, family, params, call)
                    if not _is_folded(model, family, params, unit, constants):
                        continue
                for name, (axis, positions) in family.axes.items():
                    params[name].movedim(axis, 0)[positions[unit].to(params[name].device)] = 0.0
                fresh.add(unit)
            if not whole_groups(model, one, fresh | known) >= fresh:
                # Some units of a group are read, or it is the last one.
                for p, before in zip(touched, old, strict=True):
                    p.copy_(before)
                continue
            if not fresh:
                continue
            if change_of_outputs(outputs_of(model, call), expected):
                # Something between the layers mixes the units, such as a layer normalisation.
                for p, before in zip(touched, old, strict=True):
                    p.copy_(before)
                held |= fresh
            else:
                known |= fresh
                news = True
    return [tuple(sorted(x)) for x in off], [tuple(sorted(x)) for x in stay]


def _touched(model: nn.Module, family: MirrorFamily, params: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the parameters that change if units of a family go: theirs, and biases of readers."""
    readers: list[Any] = [model.get_submodule(n.rpartition(".")[0]) for n in family.readers]
    biases = [getattr(m, "bias", None) for m in readers]
    return [params[n] for n in family.axes] + [b for b in biases if isinstance(b, Tensor)]


def change_of_outputs(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Say how outputs differ beyond rounding; an empty string if they do not."""
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return "its removal changes the shape of outputs"
        bound = 1e3 * torch.finfo(b.dtype).eps * float(b.abs().max()) if b.numel() else 0.0
        if b.numel() and not float((a - b).abs().max()) <= bound:
            return MIXED
    return ""


def _zero_units(
    family: MirrorFamily, params: Mapping[str, Tensor], names: Sequence[str]
) -> list[bool]:
    """Tell of each unit whether its slices of these parameters are zero; no parameters: False."""
    zero = torch.full((family.units,), bool(names), device="cpu")
    for name in names:
        axis, positions = family.axes[name]
        rows = params[name].detach().movedim(axis, 0)
        rows = rows.reshape(rows.shape[0], -1)[positions.to(rows.device)]
        zero &= (rows.reshape(family.units, -1) == 0).all(1).cpu()
    return zero.tolist()


def _is_gain(model: nn.Module, name: str) -> bool:
    """Tell whether a parameter multiplies each channel: a gain or a depthwise convolution."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return leaf == "weight" and (isinstance(owner, _NormBase | nn.GroupNorm) or is_depthwise(owner))


def _lasting_constants(
    model: nn.Module, family: MirrorFamily, params: Mapping[str, Tensor], call: Call
) -> dict[str, Tensor]:
    """Return the constant channels, NaN where they vary if the weights that make them are others.

    A channel may be constant because one summand has the gain zero, while another is off behind
    its ReLU, on the example alone. One layer with one gain has no other summand.
    """
    found = _constants(model, family, params, call)
    names = [n for n in family.axes if n not in family.readers]
    gains = sum(_is_gain(model, n) for n in names)
    if gains < 2 and sum(params[n].ndim > 1 for n in names) < 2:
        return found
    source = torch.Generator("cpu").manual_seed(0)
    makers = [params[n] for n in names]
    old = [p.detach().clone() for p in makers]
    for _ in range(_SHAKES):
        for p, before in zip(makers, old, strict=True):
            # Zeros stay.
            p.copy_(before * torch.randn(p.shape, generator=source, device="cpu").to(p))
        for name, values in _constants(model, family, params, call).items():
            found[name] = torch.where(values.isnan(), values, found[name])
    for p, before in zip(makers, old, strict=True):
        p.copy_(before)
    return found


def _constants(
    model: nn.Module, family: MirrorFamily, params: Mapping[str, Tensor], call: Call
) -> dict[str, Tensor]:
    """Return the input channels of the layers that read a family; NaN where not constant."""
    found: dict[str, Tensor] = {}

    def witness(name: str, axis: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].detach().movedim(axis, 0).flatten(1)
            low, high = rows.amin(1), rows.amax(1)
            value = torch.where(low == high, low, torch.nan)
            before = found.get(name)
            found[name] = value if before is None or before.equal(value) else value * torch.nan

        return hook

    handles = []
    for name in family.readers:
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Linear) or is_transposed_linear(owner):
            handles.append(owner.register_forward_pre_hook(witness(name, -1)))
        elif isinstance(owner, _ConvNd):
            handles.append(owner.register_forward_pre_hook(witness(name, 1 - params[name].ndim)))
    try:
        outputs_of(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_folded(
    model: nn.Module,
    family: MirrorFamily,
    params: Mapping[str, Tensor],
    unit: int,
    constants: Mapping[str, Tensor],
) -> bool:
    """Add what a constant unit gives to the biases of its readers; False if that cannot be."""
    pushes = []
    for name in family.readers:
        axis, positions = family.axes[name]
        weight, seen = params[name], constants.get(name)
        own = positions[unit].to(weight.device)
        if seen is None or len(seen) != weight.shape[axis]:
            return False
        values = seen[own]
        if bool((values == 0).all()):
            continue
        module: Any = model.get_submodule(name.rpartition(".")[0])
        if _is_padded(module) or bool(values.isnan().any()):
            return False
        columns = weight.movedim(axis, 0)[own]
        sums = columns.reshape(len(own), columns.shape[1], -1).sum(-1)
        pushes.append((module, values.to(weight) @ sums))
        if module.bias is None:
            return False
    for module, push in pushes:
        module.bias += push
    return True


def with_biases(model: nn.Module) -> list[Any]:
    """Give linear layers and convolutions without biases those of zero; return these layers."""
    made = []
    for module in model.modules():
        if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and module.bias is None:
            layer: Any = module
            zero = layer.weight.new_zeros(layer.weight.shape[0])
            layer.bias = nn.Parameter(zero, layer.weight.requires_grad)
            made.append(layer)
    return made


def _is_padded(module: nn.Module) -> bool:
    """Tell whether a convolution meets zeros at its borders, beside its inputs."""
    if not isinstance(module, _ConvNd):
        return False
    if isinstance(module, _ConvTransposeNd):
        return True
    none = module.padding == "valid" or (
        not isinstance(module.padding, str) and not any(module.padding)
    )
    return module.padding_mode == "zeros" and not none
