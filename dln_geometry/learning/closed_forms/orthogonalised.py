r"""What orthogonalised steps (Muon) conserve: differences of the roots of the layers' squares.

A step ``W_p+ = (1 - lr k) W_p - lr polar(M_p)``, M_p the momentum of the gradients, moves all
singular values of aligned layers alike: with ``W_p = U_p S_p U_{p-1}^T`` and ``M_p`` diagonal in
the same frames each s moves by ``-lr sign(m)``, and Noether's identity ``D_p W_p^T = W_{p+1}^T
D_{p+1}`` makes the signs of all layers agree. So ``S_{p+1} - S_p`` is conserved, not
``S_{p+1}^2 - S_p^2`` as under gradient flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.support import as_factors


def root_moments(factors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return ``sqrt(W_{p+1}^T W_{p+1}) - sqrt(W_p W_p^T)`` for each hidden layer.

    Steps with orthogonalised gradients or momenta (Muon) multiply it by ``1 - lr k``, k the
    decoupled decay, if the layers are aligned with each other and the gradient, and no singular
    value changes sign. Otherwise it moves: `misalignment` says how far layers are from that. The
    polar factor must be exact; Newton-Schulz iterations as in ``torch.optim.Muon`` reach singular
    values between 0.7 and 1.2 only.

    Parameters
    ----------
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``.

    References
    ----------
    Rhee, Simon, Karkada, arXiv 2606.30509 (two layers, aligned).

    Examples
    --------
    >>> dln.learning.closed_forms.root_moments(([[2.0]], [[3.0]]))
    (tensor([[1.]]),)
    """
    layers = as_factors(factors)
    return tuple(_right_root(v) - _right_root(w.mT) for w, v in pairwise(layers))


def misalignment(factors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return ``|C|`` for each hidden layer: 0 if the two layers beside it share singular vectors.

    ``C = [A, B] / (|A| |B|)``, the commutator of ``A = W_{p+1}^T W_{p+1}`` and ``B = W_p W_p^T``,
    in Frobenius norms; at most sqrt(2).

    Examples
    --------
    >>> aligned = dln.learning.closed_forms.misalignment((torch.eye(2), torch.diag(torch.ones(2))))
    >>> aligned
    (tensor(0.),)
    """
    values = []
    for w, v in pairwise(as_factors(factors)):
        a, b = v.mT @ v, w @ w.mT
        size = torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b)
        off = torch.linalg.matrix_norm(a @ b - b @ a)
        values.append(torch.where(size > 0, off / size, off))
    return tuple(values)


def _right_root(v: Tensor) -> Tensor:
    """Return ``(V^T V)^(1/2)``, by singular values: the square would lose half of the digits."""
    _, s, vh = torch.linalg.svd(v, full_matrices=False)
    return (vh.mT * s.unsqueeze(-2)) @ vh
