"""Differentiable constraints: weight decay that acts as a sparse norm of chosen coordinates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dln_geometry.learning.constraints.ownership import own_parameters
from dln_geometry.learning.constraints.redundancy import Redundancy, redundancy_of
from dln_geometry.learning.mirror import Mirror
from dln_geometry.support import as_float_tensor

M = TypeVar("M", bound=nn.Module)


class DCS(nn.Module):
    """The parametrisation that `dcs_` registers: ``q = (I - O O^T) z + O (u_1 * ... * u_N)``.

    `mirror` is O, `None` the identity, where there is no z; `redundancy` makes the product.
    """

    def __init__(self, redundancy: Redundancy, mirror: Mirror | None) -> None:
        super().__init__()
        self.redundancy = redundancy
        self.mirror = mirror
        self._met: tuple[torch.device, torch.dtype] | None = None

    def forward(self, *originals: Tensor) -> Tensor:
        """Return the parameter from z (with a mirror only) and the factors."""
        if self.mirror is None:
            return self.redundancy.product(originals)
        z, *factors = originals
        return self._with_coordinates(z, self.redundancy.product(tuple(factors)))

    def right_inverse(self, q: Tensor) -> tuple[Tensor, ...]:
        """Return z (with a mirror only) and the factors of the parameter q."""
        if self.mirror is None:
            return self.redundancy.factors(q)
        c = self.coordinates(q)
        return (self._with_coordinates(q, torch.zeros_like(c)), *self.redundancy.factors(c))

    def coordinates(self, q: Tensor) -> Tensor:
        """Return ``O^T q``, which is to be sparse; without a mirror the parameter itself."""
        if self.mirror is None:
            return q
        if self._met != (q.device, q.dtype):
            self.mirror, self._met = self.mirror.like(q), (q.device, q.dtype)
        ((name, shape),) = self.mirror.shapes.items()
        return self.mirror.pull({name: q.reshape(shape)})

    def _with_coordinates(self, z: Tensor, c: Tensor) -> Tensor:
        """Return z with ``O^T z`` replaced by c."""
        assert self.mirror is not None
        (move,) = self.mirror.push(c - self.coordinates(z)).values()
        return z + move.reshape(z.shape)

    def decayed(self, originals: list[Tensor]) -> list[Tensor]:
        """Return the factors out of the new parameters, which begin with z if there is a mirror."""
        return originals if self.mirror is None else originals[1:]

    def norm(self, q: Tensor) -> Tensor:
        """Return the least half sum of squares of factors of q: a norm for two factors."""
        n, sizes = self.redundancy.depth, self.redundancy.sizes(self.coordinates(q))
        return (n / 2) * (sizes ** (2 / n)).sum()

    def extra_repr(self) -> str:
        """Return the kind, the number of factors and the mirror."""
        what = f"{type(self.redundancy).__name__}, depth={self.redundancy.depth}"
        return what if self.mirror is None else f"{what}, {self.mirror}"


def dcs_(
    module: M,
    name: str | Iterable[str],
    o: Any = None,
    *,
    groups: Any = None,
    rank: int | None = None,
    depth: int = 2,
    spread: float | None = None,
) -> M:
    r"""Rewrite a parameter so that weight decay makes it sparse, of low rank or symmetric.

    The parameter q becomes ``q = (I - O O^T) z + O (u * v)``, a parametrisation of
    `torch.nn.utils.parametrize`. Weight decay kappa on u and v alone, by the groups of
    `dcs_parameter_groups` or the term of `dcs_penalty`, makes gradient descent solve

    ``min_q f(q) + kappa |O^T q|_1``

    since ``min (u^2 + v^2)/2 = |u v|``. The constraint ``O^T q = 0`` holds to the last digit if
    kappa exceeds ``|O^T grad f|_inf`` at the constrained optimum.

    Parameters
    ----------
    module : Module
        Changed in place without changing its function.
    name : str or iterable of str
        Its parameter (dotted), or several to be rewritten in the same way, without `o`. If one
        cannot be rewritten, none is.
    o : array_like of shape (number of entries, k), or Mirror, optional
        Orthonormal columns, or a mirror of this parameter alone. `None` is the identity.
    groups : "row", "column", "nuclear", tuple of int, or Tensor, optional
        Which coordinates vanish together: rows or columns of the parameter (first and second
        axis), blocks of the shape given, or entries with the same number in a tensor of integers
        (of its shape; with `o`, of k numbers). The norm is then the sum of the lengths of the
        groups, by ``c_g = s_g u_g``; for "nuclear" that of the singular values of the matrix
        (first axis, rest), by ``W = U V``.
    rank : int, optional
        Inner width of ``U V``; the full rank if not given.
    depth : int
        Number N of factors. The penalty is then ``kappa N/2`` times the sum of the 2/N-th powers
        of the same sizes, no norm above 2.
    spread : float, optional
        Size of the factors but the first where a coordinate is zero, and by how much they exceed
        balance elsewhere: exactly balanced factors cannot change the sign of their product. The
        mean size of balanced factors if not given (0.1 if all are zero).

    Notes
    -----
    The new parameters of the module are ``parametrizations.<name>.original0``, ...: z (with `o`
    only) and the factors. Make the optimiser afterwards. A state dict holds z and the factors, not
    O: apply `dcs_` before loading one. Decay must be coupled (see `dcs_parameter_groups`).
    ``torch.nn.utils.parametrize.remove_parametrizations`` makes the parameter plain. Tied, lazy
    and parametrised parameters are refused.

    References
    ----------
    Ziyin, Symmetry induces structure and constraint of learning, arXiv 2309.16932 (DCS).

    Examples
    --------
    >>> layer = dln.learning.dcs_(torch.nn.Linear(3, 2), "weight")
    >>> [name for name, _ in layer.named_parameters()][1:]
    ['parametrizations.weight.original0', 'parametrizations.weight.original1']
    """
    sites = own_parameters(module, name, "name")
    if o is not None and len(sites) > 1:
        raise ValueError(f"name must be one parameter with o, got {len(sites)}")
    made = []
    for _, leaf, parameter in sites:
        mirror = _as_mirror(o, parameter, leaf)
        size = None if mirror is None else mirror.dimension
        redundancy = redundancy_of(parameter, size, groups, rank, depth, spread)
        made.append(DCS(redundancy, mirror))
        # Before any is rewritten: a rank too small for one parameter leaves all as they were.
        made[-1].right_inverse(parameter.detach())
    for (owner, leaf, _), parametrisation in zip(sites, made, strict=True):
        parametrize.register_parametrization(owner, leaf, parametrisation)
    return module


def _as_mirror(o: Any, parameter: Tensor, name: str) -> Mirror | None:
    if o is None:
        return None
    if isinstance(o, Mirror):
        if len(o.names) > 1:
            raise ValueError(f"o must be a mirror of {name!r} alone, got one of {o.names}")
        mirror = o
    else:
        matrix = as_float_tensor(o, "o", dtype=parameter.dtype, device=parameter.device)
        if matrix.ndim != 2 or matrix.shape[0] != parameter.numel():
            raise ValueError(
                f"o must have shape ({parameter.numel()}, k) for {name!r}, "
                f"got {tuple(matrix.shape)}"
            )
        mirror = Mirror(matrix)
    mirror.coordinates({mirror.names[0]: parameter} if mirror.names else parameter.reshape(-1))
    return mirror
