"""Noise along the gauge orbits of two layers, balanced or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.noise.product_steps import Gaussians
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Network, chain_svd, layer_moments
from dln_geometry.support import as_count, as_generator, as_positive


def gauge_noise(
    factors: Sequence[Any],
    *,
    beta: float,
    t_end: float,
    steps: int,
    generator: torch.Generator | int | None = None,
) -> Trajectory:
    r"""Move two layers by isotropic noise along their orbit under the hidden rotations.

    ``dW_1 = A W_1``, ``dW_2 = -W_2 A`` in the sense of Ito, with
    ``A = sqrt(2/beta) sum_{i<j} (q_i q_j^T - q_j q_i^T) dB_ij / sqrt(p_i + p_j)``, p and q the
    eigenvalues and eigenvectors of ``W_2^T W_2 + W_1 W_1^T``, by steps on straight lines. X moves
    without noise in the limit of small steps, ``dX = W_2 D W_1``,
    ``D = (2/beta) sum_i q_i q_i^T sum_{j != i} 1/(p_i + p_j)``: of balanced layers by
    ``(1/beta) grad S``, and these stay balanced. `gauge_eigenvalues` of other layers stand still,
    and their moment grows. Complex layers turn by anti-Hermitian A: ``q_i q_j^* - q_j q_i^*``,
    ``i (q_i q_j^* + q_j q_i^*)``, and phases ``i q_k q_k^* / sqrt(p_k)``: the sum in D is twice as
    large, and ``1/p_i`` more.

    Parameters
    ----------
    factors : sequence of two array_like
        Layers ``(W_1, W_2)``; leading dimensions are independent runs.
    beta : float
        Inverse temperature of the noise.
    t_end : float
        End of the run.
    steps : int
        Number of steps of equal length.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; a fresh one if not given.

    Returns
    -------
    Trajectory
        With the singular values of X, the norm of the moment as ``observed["moment"]``, and the
        layers at the end.

    References
    ----------
    Menon, arXiv 2411.09004 (whether such noise balances).

    Examples
    --------
    >>> start = torch.eye(2), torch.diag(torch.tensor([3.0, 2.0]))
    >>> path = dln.gauge_noise(start, beta=1.0, t_end=0.1, steps=100, generator=0)
    >>> bool(path.observed["moment"][-1] > path.observed["moment"][0])
    True
    >>> dln.gauge_eigenvalues(path.final), dln.gauge_eigenvalues(start)
    (tensor([0.6000, 0.8000]), tensor([0.6000, 0.8000]))
    """
    network = Network(factors)
    if len(network) != 2:
        raise ValueError(f"factors must be two layers, got {len(network)}")
    beta, t_end = as_positive(beta, "beta"), as_positive(t_end, "t_end")
    steps = as_count(steps, "steps")
    first, second = (w.detach() for w in network)
    noise = Gaussians(as_generator(generator, first.device))
    d, batch = first.shape[-2], network.batch_shape
    i, j = torch.triu_indices(d, d, 1, device=first.device)
    scale = math.sqrt(2.0 * t_end / (beta * steps))
    values, sizes = [], []

    def note(first: Tensor, second: Tensor) -> None:
        values.append(chain_svd((first, second), keep=True)[1])
        sizes.append(torch.linalg.matrix_norm(layer_moments((first, second))[0]))

    note(first, second)
    for _ in range(steps):
        p, q = torch.linalg.eigh(second.mH @ second + first @ first.mH)
        draw, a = noise.draw((*batch, len(i)), first, scale), first.new_zeros(*batch, d, d)
        a[..., i, j], a[..., j, i] = draw, -draw.conj()
        if a.is_complex():
            # The phase i q_k q_k^* has one entry, a pair two.
            phases = noise.draw((*batch, d), p, math.sqrt(2.0) * scale)
            a = a + 1j * phases.diag_embed()
        # A direction that neither layer uses does not turn.
        p = p.clamp_min(0.0)
        total = p.unsqueeze(-1) + p.unsqueeze(-2)
        a = torch.where(total > 0, a / torch.where(total > 0, total, 1.0).sqrt(), 0.0)
        a = q @ a @ q.mH
        first, second = first + a @ first, second - second @ a
        note(first, second)
    t = torch.linspace(0.0, t_end, steps + 1, dtype=torch.float64, device=first.device)
    return Trajectory(
        t=t,
        singular_values=torch.stack(values),
        observed={"moment": torch.stack(sizes)},
        final=Network.from_layers((first, second)),
        stats={"steps": steps},
        depth=2.0,
    )
