"""Critical points of quadratic losses: made from modes of the target, and told apart.

With ``X P^T`` in the place of X a regression is the distance from one target ``Y = U S V^T``. At
every critical point ``X = sum_S s_i u_i v_i^T`` over some modes S of the target, as many as the
rank of X, and hidden changes of basis bring the layers to ``1 (+) Z_p``, the identity on the modes
and remainders Z_p, whose product vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import Network, chain_svd, haar_stiefel
from dln_geometry.landscape.hessian import (
    layer_hessian,
    partial_products,
    single_network,
    whitened,
)
from dln_geometry.support import (
    as_count,
    as_flag,
    as_float_tensor,
    as_generator,
    as_positive,
    as_width_sequence,
    normal,
    shown,
)


@dataclass(frozen=True)
class CriticalPoint:
    """What `classify` found of a critical point.

    Attributes
    ----------
    kind : str
        ``"global minimiser"``, ``"strict saddle"`` (a direction of negative curvature exists) or
        ``"non-strict saddle"`` (none exists). There are no other kinds.
    modes : tuple of int
        The modes S of the target that X has learned, from 0; of equal singular values the first.
    tightened : bool
        Whether for each pair of layers one of the three products around them has the rank of X.
    value, gradient : float
        The loss, and the norm of its gradient in all layers.
    index, nullity : int or None
        Numbers of negative and of zero eigenvalues of the Hessian in all layers.

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[1.0]])
    >>> dln.landscape.classify(loss, ([[0.0]], [[0.0]], [[0.0]])).kind
    'non-strict saddle'
    """

    kind: str
    modes: tuple[int, ...]
    tightened: bool
    value: float
    gradient: float
    index: int | None
    nullity: int | None

    @property
    def is_strict(self) -> bool:
        """Whether a direction of negative curvature exists."""
        return self.kind == "strict saddle"


def classify(
    loss: Any, factors: Sequence[Any], *, rtol: float = 1e-6, spectrum: bool = True
) -> CriticalPoint:
    """Tell which kind of critical point of a quadratic loss the layers are.

    A critical point is a global minimiser if X is a best matrix of the rank that the widths allow.
    Else it is a strict saddle if a mode outside of S is larger than one in S, or if the layers are
    not tightened, and a non-strict saddle if neither holds.

    Parameters
    ----------
    loss : losses.Quadratic or losses.Regression
        With data of one network; inputs of a regression must span their space.
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``.
    rtol : float
        Relative size of gradients and of singular values that counts as zero.
    spectrum : bool
        Find `index` and `nullity`, by the eigenvalues of the Hessian in all layers.

    Raises
    ------
    ValueError
        If the gradient is not zero, or the layers are a batch.

    References
    ----------
    Achour, Malgouyres, Gerchinovitz, arXiv 2107.13289 (targets of distinct singular values).

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[2.0, 0.0], [0.0, 1.0]])
    >>> layers = dln.landscape.critical_factors(loss, (2, 2, 2, 2), [1], generator=0)
    >>> point = dln.landscape.classify(loss, layers)
    >>> point.kind, point.modes, point.index
    ('strict saddle', (1,), 1)
    """
    network = single_network(factors, loss)
    rtol, spectrum = as_positive(rtol, "rtol"), as_flag(spectrum, "spectrum")
    layers = [w.detach().double() for w in network]
    plain = whitened(loss, layers[0])
    above, below = partial_products(layers)
    x = above[0] @ layers[0]
    g = plain.gradient(x)
    slopes = [a.mT @ g @ b.mT for a, b in zip(above, below, strict=True)]
    size = torch.linalg.matrix_norm
    gradient = float(torch.stack([size(v) for v in slopes]).norm())
    top = max(float(size(plain.gradient(torch.zeros_like(x)))), float(size(g)))
    steepest = max(float(size(a) * size(b)) for a, b in zip(above, below, strict=True))
    if gradient > rtol * max(top * steepest, torch.finfo(torch.float64).tiny):
        raise ValueError(
            f"factors must be a critical point of the loss, got a gradient of norm {gradient:.2e}"
        )
    target = torch.linalg.svdvals(plain.target)
    learned = chain_svd([layers[0] @ plain.inputs.mT, *layers[1:]])[1]
    learned = learned[learned > rtol * max(float(target[0]), float(learned[0]))].tolist()
    modes = _matched(learned, target, rtol)
    rank, most = len(modes), min(network.widths)
    level = rtol * float(target[0])
    missed = [float(s) for k, s in enumerate(target) if k not in modes and float(s) > level]
    tightened = _is_tightened(layers, rank, rtol)
    best = rank == most or not missed
    inverted = any(s > float(target[a]) + level for s in missed for a in modes)
    if best and not inverted:
        kind = "global minimiser"
    else:
        kind = "strict saddle" if inverted or not tightened else "non-strict saddle"
    index = nullity = None
    if spectrum:
        e = torch.linalg.eigvalsh(layer_hessian(loss, layers))
        zero = rtol * max(float(e.abs().max()), torch.finfo(e.dtype).tiny)
        index, nullity = int((e < -zero).sum()), int((e.abs() <= zero).sum())
    return CriticalPoint(kind, modes, tightened, plain.value(x), gradient, index, nullity)


def _matched(values: list[float], target: Tensor, rtol: float) -> tuple[int, ...]:
    """Return the modes of the target with these singular values, each once."""
    free = list(range(len(target)))
    modes = []
    for value in values:
        gaps = {k: abs(float(target[k]) - value) / float(target[0]) for k in free}
        nearest = min(free, key=lambda k: (round(gaps[k], 12), k))
        if gaps[nearest] > rtol**0.5:
            raise ValueError(
                "factors must be a critical point of the loss, got a singular value "
                f"{value:.6g} of X that the target has not"
            )
        free.remove(nearest)
        modes.append(nearest)
    return tuple(sorted(modes))


def _is_tightened(layers: Sequence[Tensor], rank: int, rtol: float) -> bool:
    """Tell whether around each pair of layers one of three products has the rank of X."""

    def ranks(parts: list[Tensor]) -> list[int]:
        found = []
        for a in parts:
            s = torch.linalg.svdvals(a)
            found.append(int((s > rtol * s[0]).sum()) if float(s[0]) > 0 else 0)
        return found

    above, below = (ranks(parts) for parts in partial_products(layers))
    for j in range(len(layers)):
        between = torch.eye(len(layers[j]), dtype=layers[j].dtype, device=layers[j].device)
        for i in range(j + 1, len(layers)):
            if rank not in (above[i], ranks([between])[0], below[j]):
                return False
            between = layers[i] @ between
    return True


def critical_factors(
    loss: Any,
    widths: Sequence[int],
    modes: Sequence[int],
    *,
    zeros: int | None = None,
    generator: torch.Generator | int | None = None,
) -> Network:
    """Return layers that are a critical point of a quadratic loss, with these modes learned.

    Hidden layers are in random bases, in general not balanced. Their remainders Z_p beside the
    modes are zero in `zeros` layers and random in the others: with 2 of them the point is a strict
    saddle (unless nothing is left to learn), with 3 or more it is tightened.

    Parameters
    ----------
    loss : losses.Quadratic or losses.Regression
        As in `classify`.
    widths : sequence of int
        ``(d_0, ..., d_N)``; those of the ends are the sides of the matrices.
    modes : sequence of int
        Modes of the target, from 0, each once; their singular values must be positive.
    zeros : int, optional
        Number of layers, at least 2, without remainder, at random places; by default all.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; a fresh one if not given.

    References
    ----------
    Achour, Malgouyres, Gerchinovitz, arXiv 2107.13289.

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[2.0, 0.0], [0.0, 1.0]])
    >>> layers = dln.landscape.critical_factors(loss, (2, 3, 2), [0], generator=0)
    >>> (layers.matrix.abs() > 1e-12).tolist()
    [[True, False], [False, False]]
    """
    plain, resolved = whitened(loss), as_width_sequence(widths)
    m, n = plain.target.shape
    if (resolved[0], resolved[-1]) != (n, m):
        raise ValueError(
            f"widths must start with {n} and end with {m} for this loss, got {resolved}"
        )
    u, s, vh = torch.linalg.svd(plain.target)
    chosen = _checked_modes(modes, s, min(resolved))
    depth, r = len(resolved) - 1, len(chosen)
    if depth == 1 and r < int((s > 1e-12 * s[0]).sum()):
        raise ValueError(
            "modes must be all of positive singular value for one layer, whose only critical point "
            f"is the minimiser, got {shown(modes)}"
        )
    count = depth if zeros is None else as_count(zeros, "zeros", min(2, depth))
    if count > depth:
        raise ValueError(f"zeros must be at most the number of layers, {depth}, got {count}")
    source = as_generator(generator, plain.target.device)
    kind: Any = {"generator": source, "dtype": s.dtype, "device": s.device}
    # Modes first: in these frames layers are block diagonal.
    rest = [[k for k in range(d) if k not in chosen] for d in (m, n)]
    ends = u[:, [*chosen, *rest[0]]], vh[[*chosen, *rest[1]]]
    order = torch.randperm(depth, generator=source, device=source.device).tolist()
    without, layers = set(order[:count]), []
    for p in range(depth):
        after, before = resolved[p + 1], resolved[p]
        w = s.new_zeros(after, before)
        w[:r, :r] = torch.diag(s[chosen] ** (1.0 / depth))
        if p not in without:
            w[r:, r:] = normal((after - r, before - r), source, s.dtype, s.device)
        layers.append(w)
    layers[0] = layers[0] @ ends[1]
    layers[-1] = ends[0] @ layers[-1]
    for p in range(depth - 1):
        d = resolved[p + 1]
        stretch = torch.exp(0.3 * normal((d,), source, s.dtype, s.device))
        turn, other = (haar_stiefel((), d, d, **kind) for _ in "ab")
        layers[p] = turn @ (stretch.unsqueeze(-1) * (other @ layers[p]))
        layers[p + 1] = ((layers[p + 1] @ other.mT) / stretch) @ turn.mT
    layers[0] = torch.linalg.solve(plain.inputs, layers[0].mT).mT
    return Network.from_layers(w.to(loss.dtype) for w in layers)


def _checked_modes(modes: Any, s: Tensor, most: int) -> list[int]:
    """Return modes of a target: each once, no more than the widths allow, of positive value."""
    if isinstance(modes, str | bytes | Tensor) or not isinstance(modes, Sequence):
        raise TypeError(f"modes must be a sequence of integers, got {shown(modes)}")
    chosen = sorted(as_count(k, "modes", 0) for k in modes)
    if len(set(chosen)) != len(chosen) or len(chosen) > most:
        raise ValueError(f"modes must be at most {most} different ones, got {shown(modes)}")
    if any(k >= len(s) or float(s[k]) <= 1e-12 * float(s[0]) for k in chosen):
        raise ValueError(
            f"modes must be of positive singular values of the target, got {shown(modes)} of "
            f"{[round(v, 6) for v in s.tolist()]}"
        )
    return chosen


def saddle_index(target: Any, widths: Sequence[int], modes: Sequence[int]) -> int:
    """Return the index of the critical points without remainders, in closed form.

    It counts the pairs of a mode outside of S and a smaller one in S; at depth 2 also, for each
    mode outside of S, the ``d_1 - r`` hidden directions that are free. All balanced critical
    points, and what hidden changes of basis make of them, have no remainders.

    Parameters
    ----------
    target : array_like, shape (k,)
        Singular values of the target, descending; of a regression those of its whitened one.
    widths, modes
        As in `critical_factors`.

    Examples
    --------
    >>> dln.landscape.saddle_index([3.0, 2.0, 1.0], (3, 4, 3, 3), [2])
    2
    >>> dln.landscape.saddle_index([3.0, 2.0, 1.0], (3, 4, 3), [0])  # two modes, three free each
    6
    """
    s, resolved = as_float_tensor(target, "target", dtype=torch.float64), as_width_sequence(widths)
    if s.ndim != 1 or len(s) != min(resolved[0], resolved[-1]):
        raise ValueError(
            f"target must hold {min(resolved[0], resolved[-1])} singular values, got shape "
            f"{tuple(s.shape)}"
        )
    if bool((s < 0).any()) or bool((s.diff() > 0).any()):
        raise ValueError(f"target must hold descending values, at least 0, got {shown(target)}")
    chosen = _checked_modes(modes, s, min(resolved))
    missed = [float(v) for k, v in enumerate(s) if k not in chosen and float(v) > 0]
    count = sum(v > float(s[a]) for v in missed for a in chosen)
    free = resolved[1] - len(chosen) if len(resolved) == 3 else 0
    return count + free * len(missed) if len(resolved) > 2 else 0
