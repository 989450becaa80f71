"""The deep linear layer: a product of N linear layers in place of one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dln_geometry.geometry.points import moments, product
from dln_geometry.learning.layers.filling import as_distribution, fill_balanced
from dln_geometry.support import (
    as_device,
    as_flag,
    as_layer_count,
    as_positive,
    as_rank,
    as_width_sequence,
)

_COMPUTED = (
    "weight must not be set, it is the product of the layers: set the entries of `weights`, or "
    "fill them by balanced_(layer, end_to_end=...)"
)


class DeepLinear(nn.Module):
    """A linear layer that is a product of N: ``y = W_N ... W_1 x + b``.

    Gradient descent moves the end-to-end matrix in the metric of depth N. It starts balanced (see
    `balanced_`), with a bias of zero.

    Parameters
    ----------
    widths : sequence of int
        ``(d_0, ..., d_N)``: input features, hidden widths, output features.
    bias : bool
        Add a bias after the last layer.
    rank, scale, distribution, generator : optional
        Of the random end-to-end matrix at the start, as in `balanced_`.
    device, dtype : optional
        Of the parameters; the defaults of torch.

    Attributes
    ----------
    weights : nn.ParameterList
        ``(W_1, ..., W_N)``, input side first, W_p of shape (d_p, d_{p-1}).
    bias : nn.Parameter of shape (d_N,), or None
    weight : Tensor of shape (d_N, d_0)
        The product of the layers; in no state dict.

    Notes
    -----
    `forward` applies the layers one by one, or multiplies them out first: whichever takes fewer
    multiplications for the number of inputs (compiled or exported, for many). The results differ
    by rounding errors. Modules that read the `weight` and the `bias` of a linear layer
    (`nn.TransformerEncoderLayer` in evaluation mode, `nn.MultiheadAttention`) take this one, too.

    Examples
    --------
    >>> layer = dln.learning.DeepLinear((5, 3, 4))
    >>> layer
    DeepLinear(widths=(5, 3, 4), bias=True)
    >>> layer(torch.ones(7, 2, 5)).shape
    torch.Size([7, 2, 4])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        widths: Sequence[int],
        *,
        bias: bool = True,
        rank: int | None = None,
        scale: float = 1.0,
        distribution: str = "gaussian",
        generator: torch.Generator | int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        bias = as_flag(bias, "bias")
        self.widths = as_width_sequence(widths)
        largest = min(self.widths)
        self.rank = None if rank is None else as_rank(rank, largest, "the smallest width")
        self.scale = as_positive(scale, "scale")
        self.distribution = as_distribution(distribution)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a real floating type, got {dtype!r}")
        if device is not None and str(device) != "meta":
            device = as_device(device)
        d = self.widths
        self.weights = nn.ParameterList(
            torch.empty(b, a, device=device, dtype=dtype) for a, b in itertools.pairwise(d)
        )
        self.bias = nn.Parameter(torch.zeros(d[-1], device=device, dtype=dtype)) if bias else None
        self.resized()
        self.reset_parameters(generator)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        depth: int,
        hidden: int | Sequence[int] | None = None,
        *,
        gauge: str | Sequence[Any] | None = None,
        generator: torch.Generator | int | None = None,
    ) -> DeepLinear:
        """Return a deep layer with the function of an `nn.Linear`: balanced factors of its weight.

        Singular values that are zero stay zero under gradient descent: a layer made from the weight
        0 cannot learn. The layer takes over bias, dtype, device, mode and requires_grad.

        Parameters
        ----------
        depth : int
            Number of layers N.
        hidden : int or sequence of int, optional
            Width of every hidden layer, or the N - 1 widths; `None` is the narrower side.
        gauge, generator : optional
            As in `balanced_`, but canonical if not given.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        if nn.parameter.is_lazy(linear.weight):
            raise ValueError("linear must be initialised, got a lazy layer: call it once")
        layers = as_layer_count(depth)
        n, m = linear.in_features, linear.out_features
        if not isinstance(hidden, Sequence):
            hidden = (min(m, n) if hidden is None else hidden,) * (layers - 1)
        if len(hidden) != layers - 1:
            raise ValueError(f"hidden must hold depth - 1 = {layers - 1} widths, got {len(hidden)}")
        weight, bias = linear.weight, linear.bias is not None
        deep = cls((n, *hidden, m), bias=bias, device="meta", dtype=weight.dtype)
        deep = deep.to_empty(device=weight.device)
        fill_balanced(list(deep.weights), end_to_end=weight, gauge=gauge, generator=generator)
        deep.weights.requires_grad_(weight.requires_grad)
        if deep.bias is not None:
            deep.bias = nn.Parameter(linear.bias.detach().clone(), linear.bias.requires_grad)
        return deep.train(linear.training)

    def resized(self) -> None:
        """Read the widths from the weights, after some were replaced by those of other widths."""
        self.widths = (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))
        d, areas = self.widths, [w.numel() for w in self.weights]
        self._layered_cost = sum(areas)
        # `product` starts at the narrower end.
        self._product_cost = d[0] * sum(areas[1:]) if d[0] <= d[-1] else d[-1] * sum(areas[:-1])

    @property
    def weight(self) -> Tensor:
        """The end-to-end matrix, as of an `nn.Linear`: a new tensor, whose changes are lost."""
        return self.end_to_end()

    @weight.setter
    def weight(self, value: Any) -> None:
        raise AttributeError(_COMPUTED)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; `weight` is none, but the product of the layers."""
        if name == "weight":
            raise AttributeError(_COMPUTED)
        super().register_parameter(name, param)

    @property
    def in_features(self) -> int:
        """Width d_0 of the input."""
        return self.widths[0]

    @property
    def out_features(self) -> int:
        """Width d_N of the output."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number N of layers."""
        return len(self.widths) - 1

    def reset_parameters(self, generator: torch.Generator | int | None = None) -> None:
        """Draw the weights anew, balanced, as at construction; set the bias to zero."""
        fill_balanced(
            list(self.weights),
            distribution=self.distribution,
            rank=self.rank,
            scale=self.scale,
            generator=generator,
        )
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def factors(self) -> tuple[Tensor, ...]:
        """Return the layers ``(W_1, ..., W_N)`` themselves, input side first."""
        return tuple(self.weights)

    def end_to_end(self) -> Tensor:
        """Return ``X = W_N ... W_1``, shape (d_N, d_0), differentiable in the layers."""
        return product(self.factors())

    def moments(self) -> tuple[Tensor, ...]:
        """Return ``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T``, p = 1..N-1: all zero if balanced."""
        return moments(self.factors())

    def collapse(self) -> nn.Linear:
        """Return an `nn.Linear` with the same function, on its own memory."""
        first, (n, *_, m), bias = self.weights[0], self.widths, self.bias is not None
        # Made on the meta device: the default initialisation would draw from the global generator.
        linear = nn.Linear(n, m, bias, "meta", first.dtype).to_empty(device=first.device)
        wide = first.dtype if first.dtype.itemsize >= 4 else torch.float32
        with torch.no_grad():
            # Round to half precision once, at the end.
            linear.weight.copy_(product([w.to(wide) for w in self.weights]))
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to inputs of shape (..., d_0); returns shape (..., d_N)."""
        inputs, area = math.prod(x.shape[:-1]), self.in_features * self.out_features
        if torch.compiler.is_compiling():
            # The number of inputs may be a symbol, which a comparison would fix: decide for many.
            merged = area < self._layered_cost
        else:
            merged = self._product_cost + inputs * area < inputs * self._layered_cost
        if merged:
            return functional.linear(x, self.end_to_end(), self.bias)
        *hidden, last = self.weights
        for w in hidden:
            x = functional.linear(x, w)
        return functional.linear(x, last, self.bias)

    def __repr__(self) -> str:
        # nn.Module would list the parameters too.
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Return the widths and whether there is a bias."""
        return f"widths={self.widths}, bias={self.bias is not None}"
