"""The mirrors of networks: exchanges, changes of sign and rotations of units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.mirror.isometry import Piece, as_layout, as_places, named, terms_of_units
from dln_geometry.learning.mirror.reflection import FLAT, Reflection
from dln_geometry.support import as_float_tensor, as_real


class Mirror(Reflection):
    r"""A mirror of the parameters: the reflection ``q -> (I - 2 O O^T) q``, ``O^T O = I``.

    A loss f has the mirror symmetry if ``f((I - 2 O O^T) q) = f(q)`` for every q. The set
    ``O^T q = 0`` is then invariant under gradient descent, and attracts it under enough weight
    decay or noise: the parameters "collapse" onto it, see `dcs_`. ``Mirror(o)`` takes the matrix O
    itself; `permutation`, `rescaling`, `rotation`, `gauge` and `swap` never form it.

    Parameters
    ----------
    o : array_like, shape (p, k), or mapping of str to array_like
        Orthonormal columns: for a vector of all p parameters (in the order of a dict), or, by
        name, the rows of O of each tensor, shape (*its shape, k) or (number of its entries, k).

    Attributes
    ----------
    dimension : int
        Number k of columns.
    names : tuple of str
        The tensors touched; none for a mirror of flat vectors.

    Notes
    -----
    Points q are dicts of tensors keyed as in ``named_parameters`` (methods return the tensors that
    the mirror does not touch unchanged), or, for a matrix O, flat vectors of shape (..., p).

    References
    ----------
    Ziyin, Symmetry induces structure and constraint of learning, arXiv 2309.16932.

    Examples
    --------
    >>> mirror = dln.learning.Mirror([[0.6], [-0.8]])
    >>> q = torch.tensor([2.0, 1.0])
    >>> mirror.reflect(q), mirror.coordinates(q)
    (tensor([1.5200, 1.6400]), tensor([0.4000]))

    Two hidden neurons of a network, exchanged:

    >>> net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    >>> hidden = {"0.weight": 0, "0.bias": 0, "2.weight": 1}
    >>> dln.learning.Mirror.permutation(dict(net.named_parameters()), hidden, 0, 2)
    Mirror('permutation of 0 and 2', dimension=9, names=('0.weight', '0.bias', '2.weight'))
    """

    def __init__(self, o: Any) -> None:
        parts = []
        for name, piece in o.items() if isinstance(o, Mapping) else [(FLAT, o)]:
            what = f"o[{name!r}]" if isinstance(o, Mapping) else "o"
            matrix = as_float_tensor(piece, what).detach()
            if matrix.ndim < 2 or 0 in matrix.shape:
                raise ValueError(f"{what} must have shape (..., k), got {tuple(matrix.shape)}")
            parts.append(Piece(name, tuple(matrix.shape[:-1]), dense=matrix.flatten(0, -2)))
        if not parts:
            raise ValueError("o must hold at least one matrix, got none")
        columns = {part.name: part.dimension for part in parts}
        if len(set(columns.values())) > 1:
            raise ValueError(f"o must have one number of columns, got {columns}")
        super().__init__([tuple(parts)], "matrix")

    @classmethod
    def of_terms(cls, terms: Iterable[tuple[Piece, ...]], label: str) -> Mirror:
        """Return the mirror of an isometry given by its terms; see the module `isometry`."""
        mirror = cls.__new__(cls)
        Reflection.__init__(mirror, terms, label)
        return mirror

    @classmethod
    def permutation(
        cls,
        params: Mapping[str, Tensor],
        axes: Mapping[str, Any],
        first: int | Sequence[int],
        second: int | Sequence[int],
        *,
        sign: float = 1.0,
    ) -> Mirror:
        """Return the exchange of two units: neurons, channels, heads. ``O = (e_i - e_j)/sqrt 2``.

        Collapsed, the two are identical. Odd units (tanh) can also be exchanged with a change of
        both signs, ``O = (e_i + e_j)/sqrt 2``: collapsed, the two are opposite.

        Parameters
        ----------
        params : mapping of str to Tensor
            The parameters, for their shapes.
        axes : mapping
            Where the units are: ``{name: axis}``, ``{name: (axis, positions)}`` with the rows of
            each unit, shape (d,) or (d, b), or ``{name: [several of these]}``.
        first, second : int or sequence of int
            The units, or as many units on either side.
        sign : 1.0 or -1.0
            With -1 the exchange with a change of sign.
        """
        layout, count = as_layout(axes, params)
        i = as_places(first, count, "first").reshape(-1)
        j = as_places(second, count, "second").reshape(-1)
        if i.numel() != j.numel():
            raise ValueError(f"first and second must be as many, got {i.numel()} and {j.numel()}")
        units = as_places(torch.cat([i, j]), count, "first and second")
        eye = torch.eye(i.numel(), dtype=torch.float64, device="cpu")
        frame = torch.cat([eye, -_as_sign(sign) * eye]) / math.sqrt(2)
        label = f"permutation of {first} and {second}" + (" with sign" if sign < 0 else "")
        return cls.of_terms(terms_of_units(layout, params, units, frame), label)

    @classmethod
    def rescaling(
        cls, params: Mapping[str, Tensor], axes: Mapping[str, Any], units: int | Sequence[int]
    ) -> Mirror:
        """Return the change of sign of the weights into and out of some units. ``O = e_i``.

        It is the element -1 of the rescaling ``(u, v) -> (c u, v / c)``, a symmetry of linear and
        of odd units (tanh), and of query and key, and value and output, in attention. Collapsed,
        the units are switched off. `units` is one or several; others as in `permutation`.
        """
        layout, count = as_layout(axes, params)
        chosen = as_places(units, count, "units").reshape(-1)
        return cls.of_terms(terms_of_units(layout, params, chosen, None), f"sign of {units}")

    @classmethod
    def rotation(
        cls, params: Mapping[str, Tensor], axes: Mapping[str, Any], direction: Any
    ) -> Mirror:
        """Return the reflection of the space of units in a hyperplane, ``O = n (x) I``.

        It is a symmetry wherever rotations of the units are one. Collapsed, the tensors lose a
        rank: nothing passes along n. Other parameters as in `permutation`.

        Parameters
        ----------
        direction : array_like, shape (d,) or (d, k)
            A direction n in the space of the d units, of any length but 0, or orthonormal columns.
        """
        layout, count = as_layout(axes, params)
        frame = as_float_tensor(direction, "direction").detach()
        if frame.ndim not in (1, 2) or frame.shape[0] != count or frame.numel() == 0:
            raise ValueError(
                f"direction must have shape ({count},) or ({count}, k), got {tuple(frame.shape)}"
            )
        # In double precision on the CPU, until a method uses it with tensors of another kind.
        frame = frame / frame.norm() if frame.ndim == 1 else frame
        frame = frame.double().cpu().reshape(count, -1)
        if not bool(torch.isfinite(frame).all()):
            raise ValueError("direction must not be zero")
        q, r = torch.linalg.qr(frame)
        eye = torch.eye(frame.shape[1], dtype=frame.dtype, device=frame.device)
        error = float((frame.mT @ frame - eye).abs().max())
        if not error <= 1e-3:
            raise ValueError(
                f"direction must have orthonormal columns, got an error of {error:.3e} in n^T n - I"
            )
        units = torch.arange(count, device="cpu")
        terms = terms_of_units(layout, params, units, q * r.diagonal().sign())
        return cls.of_terms(terms, "rotation")

    @classmethod
    def gauge(cls, params: Mapping[str, Tensor], first: str, second: str, direction: Any) -> Mirror:
        """Return the `rotation` of a direction n between two consecutive linear layers.

        Its fixed set is ``n^T W_p = 0``, ``W_{p+1} n = 0``, where the product has lost a rank.
        `first` and `second` are the names of W_p, shape (d_p, d_{p-1}), and of W_{p+1}.
        """
        for name in (first, second):
            named(params, name)
        mirror = cls.rotation(params, {first: 0, second: 1}, direction)
        mirror.label = f"gauge of {first} and {second}"
        return mirror

    @classmethod
    def swap(
        cls, params: Mapping[str, Tensor], first: str, second: str, *, sign: float = 1.0
    ) -> Mirror:
        """Return the exchange of two tensors, ``O = (I; -I)/sqrt 2``: a mirror of ``f(u * v)``.

        `first` and `second` are the names of different tensors u, v of one shape; with a `sign`
        of -1 the exchange is ``(u, v) -> (-v, -u)``.
        """
        u, v = named(params, first), named(params, second)
        if first == second or u.shape != v.shape:
            raise ValueError(
                f"first and second must be two tensors of one shape, got {first!r} of "
                f"{tuple(u.shape)} and {second!r} of {tuple(v.shape)}"
            )
        weights = {first: math.sqrt(0.5), second: -_as_sign(sign) * math.sqrt(0.5)}
        parts = tuple(Piece(name, tuple(u.shape), weight=w) for name, w in weights.items())
        return cls.of_terms([parts], f"swap of {first} and {second}")

    @classmethod
    def join(cls, *mirrors: Mirror) -> Mirror:
        """Return the product of mirrors that are orthogonal to each other; others are refused."""
        for mirror in mirrors:
            as_mirror(mirror)
        if len({mirror.is_flat for mirror in mirrors}) != 1:
            raise ValueError("mirrors must be one or more of the same kind of point")
        label = ", ".join(mirror.label for mirror in mirrors)
        return cls.of_terms([term for mirror in mirrors for term in mirror.terms], label)


def as_mirror(mirror: Any) -> Mirror:
    """Return a mirror, which must be a `Mirror`."""
    if not isinstance(mirror, Mirror):
        raise TypeError(f"mirror must be a Mirror, got {type(mirror).__name__}")
    return mirror


def _as_sign(sign: Any) -> float:
    if abs(as_real(sign, "sign")) != 1.0:
        raise ValueError(f"sign must be 1 or -1, got {sign!r}")
    return float(sign)
