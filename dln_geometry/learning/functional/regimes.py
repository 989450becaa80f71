"""How lazy or rich training was: by kernels, by linearisation, by the way that parameters went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp

from dln_geometry.learning.functional.tangent_kernel import (
    kernel_distance,
    output_map,
    tangent_kernel,
)
from dln_geometry.support import as_float_tensor


@dataclass(frozen=True)
class TrainingRegime:
    """Measures of lazy and rich training; made by `training_regime`.

    Attributes
    ----------
    kernel_distance : float
        `kernel_distance` of the tangent kernels before and after: 0 where features kept still.
    linearization_error : float
        ``|f' - f - J (q' - q)| / |f' - f|`` of the outputs f and parameters q, with the Jacobian J
        before: 0 where the network trained as its linearisation does, lazily.
    parameter_distance : float
        ``|q' - q| / |q|``, infinite from parameters of zero.
    alignment : tuple of float, or None
        ``<K, y y^T> / (|K| |y|^2)`` of the kernels before and after with the targets: rich training
        raises it.

    Examples
    --------
    >>> import copy
    >>> net, x = torch.nn.Linear(2, 1), torch.eye(2)
    >>> after = copy.deepcopy(net)
    >>> with torch.no_grad():
    ...     _ = after.weight.add_(1.0)
    >>> dln.learning.training_regime(net, after, x).kernel_distance  # linear in its parameters
    0.0
    """

    kernel_distance: float
    linearization_error: float
    parameter_distance: float
    alignment: tuple[float, float] | None


def training_regime(
    before: nn.Module, after: nn.Module, inputs: Any, targets: Any = None
) -> TrainingRegime:
    """Return how lazy or rich the training from one module to another was.

    Parameters
    ----------
    before, after : Module
        The module before and after training, with the same parameters, in evaluation mode where
        outputs must not depend on the batch.
    inputs : optional
        As in `tangent_kernel`.
    targets : array_like, optional
        In the shape of the outputs, for the alignment of kernels; centred classes for instance.

    References
    ----------
    Chizat, Oyallon, Bach, arXiv 1812.07956 (linearisation); Fort et al., arXiv 2010.15110 (kernel
    distance); Baratin et al., arXiv 2008.00938 (alignment); Dominé et al., arXiv 2409.14623.

    Examples
    --------
    Two numbers in a row, moved from (1, 1) to (2, 3): ``5 - (1 + 2)`` is not of first order.

    >>> net = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2)))
    >>> _ = [torch.nn.init.ones_(p) for p in net.parameters()]
    >>> after = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(2)))
    >>> _ = [torch.nn.init.constant_(p, x) for p, x in zip(after.parameters(), (2.0, 3.0))]
    >>> round(dln.learning.training_regime(net, after, torch.ones(1, 1)).linearization_error, 3)
    0.4
    """
    kernels = [tangent_kernel(module, inputs) for module in (before, after)]
    maps = [output_map(module, inputs) for module in (before, after)]
    start, end = ({n: p.detach() for n, p in named.items()} for _, named in maps)
    shapes = [{n: tuple(p.shape) for n, p in one.items()} for one in (start, end)]
    if shapes[0] != shapes[1]:
        raise ValueError("after must have the parameters of before, got others")
    moves = {n: end[n] - p for n, p in start.items()}
    with torch.no_grad():
        first, slope = jvp(maps[0][0], (start,), (moves,))[:2]
        change = maps[1][0](end) - first
    beyond, size = float((change - slope).norm()), float(change.norm())
    length, way = (
        float(torch.stack([p.norm() for p in q.values()]).norm()) for q in (start, moves)
    )
    aligned = None
    if targets is not None:
        y = as_float_tensor(targets, "targets", dtype=first.dtype, device=first.device)
        if y.shape != first.shape or not bool(y.any()):
            raise ValueError(
                f"targets must have the shape {tuple(first.shape)} of the outputs and not be zero, "
                f"got {tuple(y.shape)}"
            )
        aligned = _alignment(kernels[0], y), _alignment(kernels[1], y)
    return TrainingRegime(
        float(kernel_distance(*kernels)),
        beyond / size if size else 0.0,
        way / length if length else (float("inf") if way else 0.0),
        aligned,
    )


def _alignment(kernel: Tensor, targets: Tensor) -> float:
    y = targets.flatten() / targets.norm()
    return float(y @ kernel @ y / torch.linalg.matrix_norm(kernel))
