"""`Network`: the layers of a deep linear network, with the frames and the spectrum they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dln_geometry.geometry.points.batch import Batch
from dln_geometry.geometry.points.end_to_end import EndToEnd
from dln_geometry.geometry.points.layers import (
    balanced_frames,
    by_power_of_two,
    chain_svd,
    is_ordinary,
    moment_size,
    over_units,
    product,
    product_in_range,
)
from dln_geometry.support import Depth, as_factors, refuse_complex


class Network(tuple[Tensor, ...], Batch):
    """Layers ``(W_1, ..., W_N)`` of a deep linear network, input side first.

    A tuple of tensors, W_p of shape (..., d_p, d_{p-1}): ``network[0]`` is W_1, ``len(network)``
    is N, and `select` picks points of a batch. Balanced layers are ``W_p = Q_p Lam Q_{p-1}^T``:
    `frames` and `spectrum` are computed once, when first asked for, and every function of the
    library that is given the network uses them. They are computed again after a layer was changed
    in place, and whenever a layer requires gradients. Two networks are equal if they are the same
    object.

    Raises
    ------
    ValueError
        If the layers do not chain, or mix dtypes, devices or leading dimensions.

    Examples
    --------
    >>> network = dln.Network([[[2.0]], [[2.0]], [[2.0]]])
    >>> network
    Network(1 x 1, rank 1, depth 3, widths (1, 1, 1, 1), float32, cpu)
    >>> network.matrix, network.spectrum
    (tensor([[8.]]), tensor([2.]))
    """

    def __new__(cls, factors: Sequence[Any], name: str = "factors") -> Self:
        if isinstance(factors, cls):
            factors._kept("checked", lambda: as_factors(factors.layers, name, complex=True))
            return factors
        return super().__new__(cls, as_factors(factors, name, complex=True))

    @classmethod
    def of(cls, factors: Sequence[Any]) -> Self:
        """Return the network of some layers; a network is returned as it is."""
        return cls(factors)

    @classmethod
    def from_layers(cls, layers: Iterable[Tensor]) -> Self:
        """Return the network of layers that are known to chain, without checks."""
        return super().__new__(cls, layers)

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return ``make()``, kept under `name` until a layer is changed in place."""
        grad = torch.is_grad_enabled()
        # Changes of inference tensors are not counted.
        if any((grad and w.requires_grad) or w.is_inference() for w in self):
            return make()
        versions = [w._version for w in self]
        if self.__dict__.get("versions") != versions:
            self.__dict__.clear()
            self.__dict__["versions"] = versions
        if name not in self.__dict__:
            self.__dict__[name] = make()
        return self.__dict__[name]

    normalized = False

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """The layers as a plain tuple."""
        return tuple(self)

    @property
    def depth(self) -> Depth:
        """Number N of layers."""
        return Depth(len(self))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The layers."""
        return tuple(self)

    @property
    def widths(self) -> tuple[int, ...]:
        """``(d_0, ..., d_N)``."""
        return (self[0].shape[-1], *(w.shape[-2] for w in self))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the end-to-end matrix."""
        return self[-1].shape[-2], self[0].shape[-1]

    @property
    def matrix(self) -> Tensor:
        """The end-to-end matrix ``X = W_N ... W_1``, shape (..., m, n)."""
        return product_in_range(self)

    @property
    def imbalance(self) -> Tensor:
        """``max_p |G_p|_F / (|W_{p+1}|_F^2 + |W_p|_F^2)``, shape (...); 0 at depth 1."""
        return self._kept("moment size", lambda: moment_size(self))

    @property
    def is_balanced(self) -> bool:
        """Whether the moments of all points vanish up to the root of the machine epsilon."""
        return not bool((self.imbalance > math.sqrt(torch.finfo(self.dtype).eps)).any())

    @property
    def frames(self) -> list[Tensor]:
        """Frames ``(Q_0, ..., Q_N)`` of balanced layers, Q_p of shape (..., d_p, r).

        Columns of zeros of `spectrum` are arbitrary. ValueError if the layers are not balanced.
        """
        return self.balanced_parts()[0]

    @property
    def spectrum(self) -> Tensor:
        """Singular values ``s^{1/N}`` of every balanced layer, shape (..., r), descending."""
        return self.balanced_parts()[1]

    def balanced_parts(self, name: str = "factors") -> tuple[list[Tensor], Tensor]:
        """Return `frames` and `spectrum`; an error calls the network by this name."""
        if not self.is_balanced:
            size = f"{float(self.imbalance.max()):.1e}"
            raise ValueError(f"{name} must be balanced, got moments of relative size {size}")
        return self._kept("frames", lambda: balanced_frames(self))

    @property
    def singular_values(self) -> Tensor:
        """Singular values of X, shape (..., min(widths)) or (..., r) if balanced; descending."""
        if self.is_balanced:
            return self.spectrum ** float(len(self))
        return self._kept("values", self._values_of_product)

    def _values_of_product(self) -> Tensor:
        if is_ordinary(self):
            return chain_svd(self)[1]
        small, exponents = over_units(self)
        return by_power_of_two(chain_svd(small)[1], sum(exponents[1:], exponents[0]), 1)

    def point(self) -> EndToEnd:
        """Return the end-to-end matrix of balanced layers, small singular values included."""
        frames, lam = self.balanced_parts()
        parts = frames[-1].detach(), lam.detach() ** float(len(self)), frames[0].mH.detach()
        return EndToEnd.followed_by(parts, self, lambda: product(self), self.depth, False)

    @property
    def rank(self) -> int:
        """Number of singular values of X that are not zero; the largest of a batch."""
        s = self.singular_values
        return int((s > 0).sum(-1).max()) if s.numel() else s.shape[-1]

    def replace(self, layers: Mapping[int, Any] | Sequence[Any]) -> Network:
        """Return the network with other layers: all of them, or those at some positions."""
        if not isinstance(layers, Mapping):
            return Network(layers)
        changed = list(self)
        for p, w in layers.items():
            changed[p] = w
        return Network(changed)

    def _first(self) -> tuple[Tensor, int]:
        return self[0], 2

    def _map(self, f: Callable[[Tensor, int], Tensor]) -> Self:
        return self.from_layers(f(w, 2) for w in self)

    # Not those of tuples.
    __eq__, __hash__, __repr__ = object.__eq__, object.__hash__, Batch.__repr__

    def __reduce__(self) -> Any:
        return Network.from_layers, (tuple(self),)


# Functions of torch.func take a network for the tuple of its layers, and give back plain tuples.
pytree.register_pytree_node(Network, lambda network: (list(network), None), lambda w, _: tuple(w))


def balanced_network(
    factors: Sequence[Any], name: str = "factors", *, complex: bool = False
) -> Network:
    """Return a network, or raise unless it is balanced, of one rank throughout, and not empty.

    Complex layers must be allowed by the function that asks.
    """
    network = Network(factors, name)
    if not complex:
        refuse_complex(name, network.dtype)
    if math.prod(network.batch_shape) == 0:
        raise ValueError(f"{name} must not be an empty batch")
    spectrum = network.balanced_parts(name)[1]
    ranks = (spectrum > 0).sum(-1)
    if int(ranks.max()) == 0:
        raise ValueError(f"{name} must not all vanish, got a zero network")
    if (low := int(ranks.min())) != (high := spectrum.shape[-1]):
        raise ValueError(
            f"{name} must have one rank throughout the batch, got ranks {low} to {high}"
        )
    return network
