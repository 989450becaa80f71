"""The tangent kernel of a module, and how far training moved it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from dln_geometry.learning.functional.parameters import as_arguments, parameters_of
from dln_geometry.learning.functional.purity import pure_copy
from dln_geometry.support import as_float_tensor


def output_map(
    module: nn.Module, inputs: Any
) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], dict[str, nn.Parameter]]:
    """Return the outputs of a module as a function of some of its parameters, and all of them.

    It calls a copy without wrappers: the module and its buffers stay as they are.
    """
    named = parameters_of(module)
    for name, p in named.items():
        if p.is_meta:
            raise ValueError(f"module must have values, got {name!r} on the meta device")
        if p.is_complex():
            raise TypeError(f"parameters must be real, got {p.dtype} for {name!r}")
    twin = pure_copy(module)
    args, kwargs = as_arguments(inputs)

    def outputs(moving: Mapping[str, Tensor]) -> Tensor:
        try:
            made = functional_call(twin, dict(moving), args, kwargs)
        except Exception as error:
            raise TypeError(f"inputs must be what the module takes, which said: {error}") from error
        if not isinstance(made, Tensor):
            raise TypeError(f"module must return one tensor, got {type(made).__name__}")
        return made

    return outputs, named


def tangent_kernel(module: nn.Module, inputs: Any) -> Tensor:
    """Return the tangent kernel ``J J^T`` of a module, J the Jacobian of its outputs.

    Parameters
    ----------
    module : Module
        In evaluation mode where outputs must not depend on the batch; parameters that do not
        require gradients do not count.
    inputs
        The argument of the module, a tuple of its arguments, or a mapping of keyword arguments.

    Returns
    -------
    Tensor, shape (k, k)
        Symmetric; k is the number of entries of the output, a tensor.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1)
    >>> dln.learning.tangent_kernel(net, torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    tensor([[6., 3.],
            [3., 2.]])
    """
    outputs, params = output_map(module, inputs)
    params = {n: p for n, p in params.items() if p.requires_grad}
    if not params:
        raise ValueError("module must have parameters that require gradients, got none")
    state = torch.get_rng_state()
    jacobian = jacrev(lambda q: outputs(q).flatten())({n: p.detach() for n, p in params.items()})
    if not torch.equal(state, torch.get_rng_state()):
        raise ValueError(
            "module must not draw random numbers, got one that does: put dropout layers in "
            "evaluation mode"
        )
    kernel = sum(j.flatten(1) @ j.flatten(1).mT for j in jacobian.values())
    assert isinstance(kernel, Tensor)
    if kernel.numel() == 0:
        raise ValueError("inputs must give outputs, got none")
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("inputs must have finite derivatives, got NaN or infinite ones")
    return kernel.detach()


def kernel_distance(before: Any, after: Any, inputs: Any = None) -> Tensor:
    """Return ``1 - <K, K'> / (|K| |K'|)`` of two tangent kernels: how far training moved one.

    0 for lazy training, in which the kernel keeps its direction, up to 1 for rich training.

    Parameters
    ----------
    before, after : Tensor of shape (..., k, k), or Module
        Kernels, or modules before and after training: then `inputs` are needed.
    inputs : optional
        As in `tangent_kernel`.

    Returns
    -------
    Tensor, shape (...)

    Raises
    ------
    ValueError
        If shapes differ, or a kernel is zero, which has no direction.

    References
    ----------
    Fort et al., arXiv 2010.15110; Dominé et al., arXiv 2409.14623.

    Examples
    --------
    >>> k = torch.eye(2)
    >>> dln.learning.kernel_distance(k, 2 * k)
    tensor(0.)
    >>> dln.learning.kernel_distance(k, torch.ones(2, 2))
    tensor(0.2929)
    """
    kernels = []
    for name, kernel in (("before", before), ("after", after)):
        if isinstance(kernel, nn.Module):
            if inputs is None:
                raise ValueError(f"inputs must be given if {name} is a module, got None")
            kernel = tangent_kernel(kernel, inputs)
        matrix = as_float_tensor(kernel, name)
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(f"{name} must have shape (..., k, k), got {tuple(matrix.shape)}")
        size = torch.linalg.matrix_norm(matrix)[..., None, None]
        if bool((size == 0).any()):
            raise ValueError(f"{name} must not be zero, a zero kernel has no direction")
        kernels.append(matrix / size)
    first, second = kernels
    if first.shape[-2:] != second.shape[-2:]:
        raise ValueError(
            f"after must have the shape of before, {tuple(first.shape)}, got {tuple(second.shape)}"
        )
    # Not 1 minus a cosine, which loses small distances to rounding.
    return (first - second).square().sum((-2, -1)) / 2
