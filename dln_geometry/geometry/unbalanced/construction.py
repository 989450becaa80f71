"""Make layers of a given product with given moments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import Network, by_power_of_two
from dln_geometry.geometry.unbalanced.chains import (
    Chain,
    layers_of_chains,
    scalar_squares,
    through_squares,
)
from dln_geometry.geometry.unbalanced.existence import check_moments, scalar_intervals
from dln_geometry.geometry.unbalanced.fitting import fitted_layers
from dln_geometry.support import (
    as_double,
    as_float_tensor,
    as_matrix,
    as_width_sequence,
    common_batch,
)


def lambda_balanced(x: Any, lam: Any, widths: Sequence[int]) -> Network:
    """Return layers of a product X whose moments are multiples of the identity.

    ``W_{p+1}^T W_{p+1} - W_p W_p^T = lam_p I`` for p = 1..N-1: an initialisation between lazy
    (`lam` large) and rich (0, balanced).

    Parameters
    ----------
    x : array_like, shape (..., d_N, d_0)
        Real or complex.
    lam : float or sequence of N - 1 floats
        In units of the squares of the layers.
    widths : sequence of int
        ``(d_0, ..., d_N)``.

    Returns
    -------
    Network
        Of the dtype of `x`, computed in double precision, without gradients.

    Raises
    ------
    ValueError
        If no such layers exist, with the inequality between the widths that fails: a positive `lam`
        needs ``d_1 <= d_2``, a negative one ``d_1 <= d_0`` at depth 2.

    References
    ----------
    Dominé et al., From lazy to rich, arXiv 2409.14623 (depth 2).

    Examples
    --------
    >>> network = dln.lambda_balanced([[2.0]], 3.0, (1, 1, 1))
    >>> network[0], network[1]
    (tensor([[1.]]), tensor([[2.]]))
    """
    matrix, widths, depth = _ends(x, widths)
    numbers = as_float_tensor(lam, "lam", dtype=torch.float64, device="cpu")
    if numbers.ndim > 1:
        raise ValueError(f"lam must be a number or a sequence, got shape {tuple(numbers.shape)}")
    # Plain numbers have been rounded to torch's default type.
    values = [float(v) for v in lam] if numbers.ndim else [float(lam)] * (depth - 1)
    if len(values) != depth - 1:
        raise ValueError(f"lam must hold depth - 1 = {depth - 1} numbers, got {len(values)}")
    eps = torch.finfo(matrix.dtype).eps
    samples = as_double(matrix).reshape(-1, *matrix.shape[-2:])

    def scalar(x: Tensor, numbers: Sequence[Any]) -> tuple[Tensor, ...]:
        return _scalar(x, [float(v) for v in numbers], widths, eps)

    given = [samples.real.new_tensor(v) for v in values]
    return _network([_at_unit_size(one, given, scalar) for one in samples], matrix)


def with_moments(x: Any, moments: Sequence[Any], widths: Sequence[int] | None = None) -> Network:
    """Return layers of a product X with given moments, where there are such layers.

    ``W_{p+1}^T W_{p+1} - W_p W_p^T = G_p`` for p = 1..N-1, which are constant along the gradient
    flow of every loss of X. The layers are not unique. Where modes of X can be paired with
    eigenvectors of the moments (multiples of the identity; X of full rank in square layers; most
    pairs of layers) they are made from these in closed form, in the gauge of the eigenvectors of
    the moments; elsewhere by a Gauss-Newton iteration from random layers of fixed seeds.

    Parameters
    ----------
    x : array_like, shape (..., d_N, d_0)
    moments : sequence of array_like
        The N - 1 symmetric (or Hermitian, where x is complex) matrices G_p, (..., d_p, d_p).
    widths : sequence of int, optional
        ``(d_0, ..., d_N)``; by default those of `x` and `moments`.

    Returns
    -------
    Network
        Of the dtype of `x`, computed in double precision, without gradients.

    Raises
    ------
    ValueError
        If the moments are not symmetric, or have no layers: with the inequality that fails. At
        depth 2 layers exist if and only if G has at most d_2 positive and at most d_0 negative
        eigenvalues, and the hidden width is at least the rank of X. Above, inequalities of Weyl
        are tested first (necessary ones); if the iteration then finds no layers, the error says
        how near it came.

    Examples
    --------
    >>> network = dln.with_moments([[2.0]], [[[3.0]]])
    >>> network[0], network[1]
    (tensor([[1.]]), tensor([[2.]]))
    >>> dln.with_moments([[2.0]], [[[3.0, 0.0], [0.0, 1.0]]])
    Traceback (most recent call last):
        ...
    ValueError: moments must leave W_2^T W_2 at most d_2 = 1 positive eigenvalues, but those of \
moments[0] force eigenvalue 2 to be at least 1: no layers of widths (1, 2, 1) have these moments
    """
    like = as_matrix(x, complex=True)
    if isinstance(moments, Tensor | str | bytes) or not isinstance(moments, Sequence):
        raise TypeError(f"moments must be a sequence of matrices, got {type(moments).__name__}")
    kind = as_double(like).dtype
    given = [
        as_matrix(
            g, f"moments[{p}]", dtype=kind, device=like.device, complex=kind.is_complex
        ).detach()
        for p, g in enumerate(moments)
    ]
    if widths is None:
        widths = (like.shape[-1], *(g.shape[-1] for g in given), like.shape[-2])
    matrix, widths, depth = _ends(like, widths)
    if len(given) != depth - 1:
        raise ValueError(f"moments must hold depth - 1 = {depth - 1} matrices, got {len(given)}")
    batch = matrix.shape[:-2]
    eps = torch.finfo(matrix.dtype).eps
    for p, (g, d) in enumerate(zip(given, widths[1:-1], strict=True)):
        if tuple(g.shape[-2:]) != (d, d):
            required = f"shape (..., {d}, {d})"
            raise ValueError(f"moments[{p}] must have {required}, got {tuple(g.shape)}")
        off, size = (x.abs().amax((-2, -1)) for x in (g - g.mH, g))
        if bool((off > 1e3 * eps * size).any()):
            got = f"an asymmetry of {float(off.max()):.2g}"
            raise ValueError(f"moments[{p}] must be symmetric, got {got}")
        batch = common_batch(**{"x": batch, f"moments[{p}]": g.shape[:-2]})
    full = as_double(matrix).expand(*batch, *matrix.shape[-2:])
    samples = full.reshape(-1, *matrix.shape[-2:])
    each = [
        ((g + g.mH) / 2).expand(*batch, d, d).reshape(-1, d, d)
        for g, d in zip(given, widths[1:-1], strict=True)
    ]

    def one(x: Tensor, moments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _one(x, moments, widths, eps)

    made = [_at_unit_size(x, [g[k] for g in each], one) for k, x in enumerate(samples)]
    return _network(made, full.to(matrix.dtype))


def _ends(x: Any, widths: Any) -> tuple[Tensor, tuple[int, ...], int]:
    matrix, resolved = as_matrix(x, complex=True).detach(), as_width_sequence(widths)
    if (resolved[0], resolved[-1]) != (matrix.shape[-1], matrix.shape[-2]):
        required = f"start with {matrix.shape[-1]} and end with {matrix.shape[-2]}, as x does"
        raise ValueError(f"widths must {required}, got {resolved}")
    return matrix, resolved, len(resolved) - 1


def _network(made: list[tuple[Tensor, ...]], like: Tensor) -> Network:
    batch = like.shape[:-2]
    layers = zip(*made, strict=True)
    return Network.from_layers(
        torch.stack(list(w)).reshape(*batch, *w[0].shape).to(like.dtype) for w in layers
    )


def _at_unit_size(
    x: Tensor,
    moments: Sequence[Tensor],
    make: Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Make layers over a power of two near their size, if their squares leave the range."""
    depth = len(moments) + 1
    sizes = [math.log2(float(x.abs().max()) or 1.0) / depth]
    sizes += [0.5 * math.log2(float(g.abs().max())) for g in moments if bool((g != 0).any())]
    unit = x.real.new_tensor(math.floor(max(sizes)))
    if abs(float(unit)) * depth < 400:
        return make(x, moments)
    small = [by_power_of_two(g, -2.0 * unit, 0) for g in moments]
    made = make(by_power_of_two(x, -depth * unit, 0), small)
    return tuple(by_power_of_two(w, unit, 0) for w in made)


def _one(
    x: Tensor, moments: Sequence[Tensor], widths: tuple[int, ...], eps: float
) -> tuple[Tensor, ...]:
    """Return the layers of one matrix."""
    if len(widths) == 2:
        return (x,)
    decomposed = [torch.linalg.eigh(g) for g in moments]
    size = max(float(g.abs().max()) for g, _ in decomposed)
    rounding = 100 * eps * max(widths) * size
    spectra = [torch.where(g.abs() > rounding, g, 0.0).flip(-1) for g, _ in decomposed]
    frames = [q.flip(-1) for _, q in decomposed]
    means = [float(g.mean()) for g in spectra]
    if all(float((g - m).abs().max()) <= rounding for g, m in zip(spectra, means, strict=True)):
        return _scalar(x, [m if abs(m) > rounding else 0.0 for m in means], widths, eps)
    check_moments([g.cpu() for g in spectra], widths, len(widths) * rounding)
    u, s, v = _decomposed(x, min(widths), eps)
    chains = _paired(s, spectra, widths)
    if chains is not None:
        return layers_of_chains(chains, (v, *frames, u), x)
    bound = 1e4 * eps * max(widths)
    layers, error = fitted_layers(x, moments, widths, min(bound, 1e-11))
    if not error <= bound:
        raise ValueError(
            "moments must be those of layers with the product x: no inequality of Weyl fails, but "
            f"the best layers found deviate by {error:.1e} of the size, so others between the "
            f"moments of different layers probably fail (widths {widths}, rank {len(s)})"
        )
    return layers


def _decomposed(x: Tensor, most: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return full singular vectors, and the singular values that are not rounding errors."""
    u, s, vh = torch.linalg.svd(x)
    rank = int((s > 4 * max(x.shape) * eps * s[0]).sum()) if float(s[0]) > 0 else 0
    if rank > most:
        raise ValueError(f"widths must all be at least the rank {rank} of x, got {most}")
    return u, s[:rank], vh.mH


def _scalar(
    x: Tensor, lam: Sequence[float], widths: tuple[int, ...], eps: float
) -> tuple[Tensor, ...]:
    """Return layers with the moments ``lam_p I``."""
    depth = len(widths) - 1
    if depth == 1:
        return (x,)
    u, s, v = _decomposed(x, min(widths), eps)
    r = len(s)
    used, chains = [r] * (depth + 1), []
    for (first, last), count in scalar_intervals(lam, widths, r).items():
        for _ in range(count):
            places = tuple(used[p] for p in range(first, last + 1))
            for p in range(first, last + 1):
                used[p] += 1
            chains.append(Chain(first, places, scalar_squares(first, last, lam) or ()))
    sums = s.new_tensor([0.0, *itertools.accumulate(lam)])[:, None].expand(-1, r)
    chains += _through(through_squares(s, sums), [list(range(r))] * (depth + 1))
    inner = [torch.eye(d, dtype=x.dtype, device=x.device) for d in widths[1:-1]]
    return layers_of_chains(chains, (v, *inner, u), x)


def _through(squares: Tensor, places: Sequence[Sequence[int]]) -> list[Chain]:
    """Return the chains of the modes of X, at these places of the spaces 0, ..., N."""
    return [
        Chain(0, tuple(where[i] for where in places), tuple(squares[:, i].tolist()))
        for i in range(squares.shape[1])
    ]


def _paired(s: Tensor, spectra: Sequence[Tensor], widths: tuple[int, ...]) -> list[Chain] | None:
    """Return chains of modes paired with eigenvalues of the moments, `None` if none are found."""
    r, depth = len(s), len(widths) - 1
    if all(d == r for d in widths[1:-1]):
        hidden = [list(range(r))] * (depth - 1)
    elif depth == 2:
        chosen = _chosen_eigenvalues(spectra[0].tolist(), r, widths)
        if chosen is None:
            return None
        hidden = [chosen]
    else:
        return None
    sums = [torch.zeros_like(s)]
    for g, where in zip(spectra, hidden, strict=True):
        sums.append(sums[-1] + g[where])
    squares = through_squares(s, torch.stack(sums))
    chains = _through(squares, [list(range(r)), *hidden, list(range(r))])
    ends = {0: r, depth: r}
    for p, g in enumerate(spectra, start=1):
        for k, value in enumerate(g.tolist()):
            if k in hidden[p - 1] or value == 0.0:
                continue
            # Only at depth 2: one layer alone makes this eigenvalue.
            end = 0 if value < 0 else depth
            places = (ends[end], k) if end == 0 else (k, ends[end])
            chains.append(Chain(min(end, p), places, (abs(value),)))
            ends[end] += 1
    return chains


def _chosen_eigenvalues(g: Sequence[float], r: int, widths: tuple[int, ...]) -> list[int] | None:
    """Return r eigenvalues to pair with the modes of X at depth 2.

    The positive ones left need directions of the output, the negative ones of the input.
    """
    kinds = {sign: [k for k, x in enumerate(g) if x * sign > 0] for sign in (1, -1)}
    chosen: list[int] = []
    for sign, end in ((1, widths[2]), (-1, widths[0])):
        needed = max(0, r + len(kinds[sign]) - end)
        if needed > len(kinds[sign]):
            return None
        chosen += kinds[sign][:needed]
    if len(chosen) > r:
        return None
    rest = [k for k in range(len(g)) if k not in chosen]
    rest.sort(key=lambda k: abs(g[k]))
    chosen += rest[: r - len(chosen)]
    return sorted(chosen)
