"""A convolution as the product of N: one with its kernel, the others of one pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dln_geometry.geometry.points import product
from dln_geometry.learning.layers.filling import fill_balanced
from dln_geometry.support import as_width_sequence

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTIONS += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class DeepConvolution(nn.Sequential):
    """Convolutions in a row with no more in between: the first has the kernel, the others a pixel.

    Of a transposed convolution the last has the kernel. In groups, each group has factors of its
    own. Made by `from_convolution`; `collapse` multiplies them again.
    """

    @classmethod
    def from_convolution(
        cls,
        layer: Any,
        depth: int,
        hidden: int | Sequence[int] | None = None,
        *,
        gauge: str | Sequence[Any] | None = None,
        generator: Any = None,
    ) -> DeepConvolution:
        """Return the balanced factors of a convolution, as `DeepLinear.from_linear` does.

        `hidden` are numbers of channels, multiples of the groups; by default no rank is lost.
        """
        groups, dtype = layer.groups, layer.weight.dtype
        matrix = kernel_matrices([layer])[0]
        if not isinstance(hidden, Sequence):
            hidden = (groups * min(matrix.shape[-2:]) if hidden is None else hidden,) * (depth - 1)
        if len(hidden) != depth - 1:
            raise ValueError(f"hidden must hold depth - 1 = {depth - 1} widths, got {len(hidden)}")
        channels = as_width_sequence((layer.in_channels, *hidden, layer.out_channels))
        if uneven := [n for n in channels if n % groups]:
            raise ValueError(f"hidden must be multiples of the {groups} groups, got {uneven[0]}")
        at = depth - 1 if layer.transposed else 0
        flat: Any = CONVOLUTIONS[layer.weight.ndim - 3]
        made: list[Any] = []
        for k in range(depth):
            options: dict[str, Any] = {"groups": groups, "device": "meta", "dtype": dtype}
            options["bias"] = k == depth - 1 and layer.bias is not None
            kind, size = (type(layer), layer.kernel_size) if k == at else (flat, 1)
            if k == at:
                names = ("stride", "padding", "dilation", "padding_mode")
                options |= {name: getattr(layer, name) for name in names}
                if layer.transposed:
                    options["output_padding"] = layer.output_padding
            one = kind(channels[k], channels[k + 1], size, **options)
            made.append(one.to_empty(device=layer.weight.device))
        fill_balanced(kernel_matrices(made), end_to_end=matrix, gauge=gauge, generator=generator)
        for one in made:
            one.weight.requires_grad_(layer.weight.requires_grad)
        if layer.bias is not None:
            bias = layer.bias.detach().clone()
            made[-1].bias = nn.Parameter(bias, layer.bias.requires_grad)
        return cls(*made).train(layer.training)

    def collapse(self) -> nn.Module:
        """Return one convolution with the same function, on its own memory."""
        layers: list[Any] = list(self)
        model = layers[-1] if layers[-1].transposed else layers[0]
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        options = {name: getattr(model, name) for name in names}
        if model.transposed:
            options["output_padding"] = model.output_padding
        first, last = layers[0], layers[-1]
        weight, bias = model.weight, last.bias
        options |= {"bias": bias is not None, "device": "meta", "dtype": weight.dtype}
        flat = type(model)(first.in_channels, last.out_channels, **options)
        flat = flat.to_empty(device=weight.device)
        wide = weight.dtype if weight.dtype.itemsize >= 4 else torch.float32
        with torch.no_grad():
            # Round to half precision once, at the end.
            kernel_matrices([flat])[0].copy_(product([w.to(wide) for w in kernel_matrices(layers)]))
            if bias is not None:
                flat.bias.copy_(bias)
        flat.weight.requires_grad_(any(one.weight.requires_grad for one in layers))
        if bias is not None:
            flat.bias.requires_grad_(bias.requires_grad)
        return flat.train(self.training)


def kernel_matrices(layers: Sequence[Any]) -> list[Tensor]:
    """Return the weights of convolutions as matrices (groups, outputs, inputs), views of them.

    A kernel belongs to the inputs, of a transposed convolution to the outputs.
    """
    found = []
    for layer in layers:
        weight = layer.weight.detach()
        rows = weight.reshape(
            layer.groups, len(weight) // layer.groups, math.prod(weight.shape[1:])
        )
        found.append(rows.mT if layer.transposed else rows)
    return found
