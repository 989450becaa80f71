"""The free energy as a loss, and its gradient flow: Langevin dynamics with gauge noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.flows.gradient_flow import gradient_flow
from dln_geometry.dynamics.losses import Loss, as_dense, as_text, contract, evaluate, prepared
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy, entropy_slope, hidden_excess, thin_svd
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_depth, as_matrix_shape, as_positive, as_rank, check_loss


class FreeEnergy:
    """The loss ``F_beta(X) = E(X) - S(X)/beta`` on the matrices of one rank, for one depth.

    Parameters
    ----------
    loss : Loss
        The energy E.
    beta : float
        Inverse temperature, positive.
    depth : float
        Depth of the entropy, that of the flow.
    shape : tuple of int
        Shape (m, n) of the matrices.
    rank : int, optional
        Rank of the matrices; ``min(m, n)`` by default.
    widths : sequence of int or int, optional
        Hidden widths, see `dln_geometry.entropy`.

    References
    ----------
    Menon, Yu, arXiv 2509.09088v3.

    Examples
    --------
    >>> import math
    >>> f = dln.FreeEnergy(dln.losses.Quadratic([[0.0]]), 2.0, 3, (1, 1))
    >>> f.value(torch.tensor([[2.0]])) + math.log(4.0) / 2
    tensor(2.)
    """

    def __init__(
        self,
        loss: Loss,
        beta: float,
        depth: float,
        shape: tuple[int, int],
        *,
        rank: int | None = None,
        widths: Sequence[int] | int | None = None,
    ) -> None:
        self.loss, self.beta, self.widths = loss, as_positive(beta, "beta"), widths
        self.depth, self.shape = as_depth(depth), as_matrix_shape(shape)
        least = min(self.shape)
        check_loss(loss, self.shape, "value", "gradient")
        self.rank = least if rank is None else as_rank(rank, least, "min(m, n)")
        self._excess = hidden_excess(self.shape, self.rank, self.depth, widths)[1]

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> FreeEnergy:
        """Return the same with an energy on data of this dtype and device."""
        ready = prepared(self.loss, self.shape, dtype=dtype, device=device)
        rank, widths = self.rank, self.widths
        return FreeEnergy(ready, self.beta, self.depth, self.shape, rank=rank, widths=widths)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the free energy from others."""
        names = ("loss", "beta", "depth", "shape", "rank", "widths")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        facts = f"beta {self.beta:g}", f"depth {self.depth:g}", f"rank {self.rank}"
        return as_text(self, repr(self.loss), *facts)

    def value(self, x: Any) -> Tensor:
        """Return ``E(X) - S(X)/beta``, shape (...)."""
        return self.evaluate(as_dense(x))[0]

    def gradient(self, x: Any) -> Tensor:
        """Return ``E'(X) - U diag(dS/ds) V^T / beta``, shape (..., m, n)."""
        return self.evaluate(as_dense(x))[1]

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient at a matrix."""
        u, s, vh = torch.linalg.svd(_finite(x), full_matrices=False)
        u, s, vh = u[..., : self.rank], s[..., : self.rank], vh[..., : self.rank, :]
        value, gradient = evaluate(self.loss, x)
        value = value - self._entropy(u, s, vh) / self.beta
        f = 1 + u.is_complex()
        return value, gradient - (u * self._slope(s, f).unsqueeze(-2)) @ vh

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(F, G R, G^T L)`` at ``X = L R^T``."""
        value, gr, gl = contract(self.loss, left, right)
        u, s, vh = thin_svd(_finite(left), _finite(right).mH, self.rank)
        slope = self._slope(s, 1 + u.is_complex()).unsqueeze(-1)
        gr = gr - u @ (slope * (vh @ right))
        gl = gl - vh.mH @ (slope * (u.mH @ left))
        return value - self._entropy(u, s, vh) / self.beta, gr, gl

    def _entropy(self, u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
        return entropy(EndToEnd(u, s, vh, self.depth, check=False), widths=self.widths)

    def _slope(self, s: Tensor, f: int) -> Tensor:
        """Return ``dS/ds / beta``, finite at s = 0, where flows multiply it by zero."""
        s = s.clamp_min(torch.finfo(s.dtype).tiny ** 0.5)
        return entropy_slope(s, self.depth, excess=f * self._excess, f=f) / self.beta


def _finite(x: Tensor) -> Tensor:
    """Return the matrices that are finite, zeros in the place of others.

    A loss that is not finite makes the integrator reject a trial step; a decomposition would raise.
    """
    return torch.where(torch.isfinite(x).all(-1).all(-1)[..., None, None], x, 0.0)


def free_energy_flow(
    loss: Loss,
    start: Collapsed | EndToEnd,
    *,
    beta: float,
    widths: Sequence[int] | int | None = None,
    **options: Any,
) -> Trajectory:
    r"""Integrate ``dX/dt = -A_{N,X}(E'(X)) + (1/beta) grad_{g^N} S``, adaptively.

    The gradient flow of the free energy: Langevin dynamics with noise along the orbits alone
    (``kappa = 0``), which acts on X through the mean curvature of the orbits. The start must have
    positive singular values. The ``loss`` of trajectory and stopping rules is the free energy;
    `beta` and `widths` as in `FreeEnergy`, other options and errors as in `gradient_flow`.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088v3.

    Examples
    --------
    At depth 2 two equal singular values obey ``s(t) = s* tanh(2 s* t + c)``, ``s*^2 = 1/(4 beta)``:

    >>> start = dln.EndToEnd.of(0.1 * torch.eye(2), 2)
    >>> ridge = dln.losses.Quadratic(torch.zeros(2, 2))
    >>> path = dln.free_energy_flow(ridge, start, beta=1.0, t_end=20.0)
    >>> path.final.singular_values()
    tensor([0.5000, 0.5000])
    """
    if not isinstance(start, Collapsed | EndToEnd):
        raise TypeError(f"start must be a Collapsed or an EndToEnd, got {type(start).__name__}")
    if start.depth > 1 and bool((start.singular_values <= 0).any()):
        raise ValueError(
            "start must have positive singular values, got a zero: state a smaller rank, or start "
            "from a small multiple of the identity"
        )
    energy = FreeEnergy(loss, beta, start.depth, start.shape, rank=start.rank, widths=widths)
    return gradient_flow(energy, start, **options)
